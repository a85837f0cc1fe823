"""Attention of one block of queries after the other, for CPUs.

The scores of a block of one head fit into a core's cache, and a causal block
meets only the keys up to its own end, which halves the work. Nothing of them is
kept for the backward pass, which computes them again (FlashAttention,
2205.14135, without its blocks of keys); XLA may run blocks at once, so that
scores of many are held meanwhile, some inside of operations, where its count of
temporaries has them not.

Heads are G groups, one for each of the keys', of R heads of queries; C queries
are in a block, which meets E keys, and N = R x C are the rows of its scores.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from shared_tfm.layers.in_memory import turned, turned_whole

NEVER = -1e30  # a score, in float32, that softmax turns into 0
QUERIES = 128  # of a block
BLOCKS = 16  # at most, for each is compiled by itself


def attend(
  q_BLHK: jax.Array,
  k_BMGK: jax.Array,
  v_BMGK: jax.Array,
  mask: jax.Array | None = None,
  is_causal: bool = False,
) -> jax.Array:
  """Mixes values: (B, L, H, K).

  Scores and softmax are float32. All products, those of the gradients too, have
  operands of the dtype of the queries and sums in float32. A query that sees no
  key has the mean of the values its block meets. A score that is no number is
  one for all queries that could meet its key, seen or not.

  Args:
    q_BLHK: queries.
    k_BMGK: keys, G of which divides H.
    v_BMGK: values.
    mask: where a position may attend; of four axes, it broadcasts to
      (B, H, L, M).
    is_causal: whether positions see only those up to their own; M is L then.
  """
  b, length, heads, width = q_BLHK.shape
  groups = k_BMGK.shape[2]
  q_BLGRK = q_BLHK.reshape(b, length, groups, heads // groups, width)
  if mask is not None:
    parts = (groups, heads // groups) if mask.shape[1] > 1 else (1, 1)
    mask = mask.reshape(mask.shape[0], *parts, *mask.shape[2:])
  return _attend(is_causal, q_BLGRK, k_BMGK, v_BMGK, mask).reshape(q_BLHK.shape)


class _Block(NamedTuple):
  """Some queries and what they meet.

  Attributes:
    q_BGNK: the queries.
    k_BGEK: the keys.
    v_BGEK: their values.
    shape: (B, G, R, C, K).
    seen: what of it all is seen, broadcasting to (B, G, R, C, E); None: all.
  """

  q_BGNK: jax.Array
  k_BGEK: jax.Array
  v_BGEK: jax.Array
  shape: tuple[int, ...]
  seen: Any

  def weights(self) -> jax.Array:
    """How much each query attends to each key, (B, G, N, E), in float32."""
    scores_BGNE = _met(self.q_BGNK, self.k_BGEK) * self.shape[-1] ** -0.5
    if self.seen is not None:
      scores_BGRCE = scores_BGNE.reshape(*self.shape[:-1], -1)
      # XLA fuses a minimum with the product, and not a choice.
      most = jnp.where(self.seen, jnp.inf, NEVER)
      scores_BGNE = jnp.minimum(scores_BGRCE, most).reshape(scores_BGNE.shape)
    return jax.nn.softmax(scores_BGNE, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(is_causal: bool, q: Any, k: Any, v: Any, mask: Any) -> jax.Array:
  mixed = [
    _mixed(block.weights().astype(q.dtype), block.v_BGEK)
    .astype(q.dtype)
    .reshape(block.shape)
    for block in _blocks(is_causal, q, k, v, mask)
  ]
  return jnp.moveaxis(jnp.concatenate(mixed, -2), -2, 1)


def _attend_fwd(
  is_causal: bool, q: Any, k: Any, v: Any, mask: Any
) -> tuple[jax.Array, Any]:
  return _attend(is_causal, q, k, v, mask), (q, k, v, mask)


def _attend_bwd(is_causal: bool, kept: Any, grad_BLGRK: jax.Array) -> Any:
  q, k, v, mask = kept
  grad = _heads_first(grad_BLGRK)
  to_q: list[jax.Array] = []
  to_k: Any = None
  to_v: Any = None
  start = 0
  for block in _blocks(is_causal, q, k, v, mask):
    end = start + block.shape[-2]
    back_BGNK = grad[..., start:end, :].reshape(block.q_BGNK.shape)
    start = end
    weights = block.weights()
    slope = _met(back_BGNK, block.v_BGEK)
    slope -= jnp.sum(weights * slope, axis=-1, keepdims=True)
    slope *= weights * block.shape[-1] ** -0.5
    if mask is not None:
      # A query that sees nothing has weights, of scores that are constants.
      slope_BGRCE = slope.reshape(*block.shape[:-1], -1)
      slope = jnp.where(block.seen, slope_BGRCE, 0).reshape(slope.shape)
    slope, weights = slope.astype(q.dtype), weights.astype(q.dtype)
    to_q.append(_mixed(slope, block.k_BGEK).reshape(block.shape))
    to_k = _added(to_k, _mixed(turned_whole(slope, 0, 1, 3, 2), block.q_BGNK))
    to_v = _added(to_v, _mixed(turned_whole(weights, 0, 1, 3, 2), back_BGNK))
  return (
    jnp.moveaxis(jnp.concatenate(to_q, -2), -2, 1).astype(q.dtype),
    jnp.moveaxis(to_k, 2, 1).astype(k.dtype),
    jnp.moveaxis(to_v, 2, 1).astype(v.dtype),
    None,
  )


_attend.defvjp(_attend_fwd, _attend_bwd)


def _blocks(
  is_causal: bool, q: Any, k: Any, v: Any, mask: Any
) -> Iterator[_Block]:
  """All queries, in order."""
  q, k, v = _heads_first(q), _heads_first(k), _heads_first(v)
  *lead, length, _ = q.shape
  size = max(QUERIES, -(-length // BLOCKS))
  for start in range(0, length, size):
    rows = slice(start, min(start + size, length))
    keys = slice(0, rows.stop if is_causal else k.shape[2])
    seen = mask
    if mask is not None:
      seen = mask[..., rows if mask.shape[-2] > 1 else slice(None), :]
      seen = seen[..., keys if mask.shape[-1] > 1 else slice(None)]
    if is_causal:
      own = jnp.tri(rows.stop - start, keys.stop, start, dtype=bool)
      own = jnp.expand_dims(own, (0, 1, 2))
      seen = own if seen is None else seen & own
    some = q[..., rows, :]
    flat = some.reshape(*lead[:2], -1, some.shape[-1])
    yield _Block(flat, k[:, :, keys], v[:, :, keys], some.shape, seen)


def _heads_first(x: jax.Array) -> jax.Array:
  """From (B, L, G, ..., K) to (B, G, ..., L, K)."""
  return turned(x, 0, *range(2, x.ndim - 1), 1, x.ndim - 1)


def _met(a_BGNK: jax.Array, b_BGEK: jax.Array) -> jax.Array:
  return jnp.einsum(
    'bgnk,bgek->bgne', a_BGNK, b_BGEK, preferred_element_type=jnp.float32
  )


def _mixed(a_BGNE: jax.Array, b_BGEK: jax.Array) -> jax.Array:
  return jnp.einsum(
    'bgne,bgek->bgnk', a_BGNE, b_BGEK, preferred_element_type=jnp.float32
  )


def _added(total: jax.Array | None, part: jax.Array) -> jax.Array:
  """The sum of two gradients, the first of which is for fewer keys."""
  if total is None:
    return part
  missing = part.shape[2] - total.shape[2]
  return part + jnp.pad(total, ((0, 0), (0, 0), (0, missing), (0, 0)))
