"""Cross-entropy, also of more logits than there is room for at once."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Score = Callable[[jax.Array], jax.Array]
LOGITS = ('batch', 'length', 'vocab')  # their logical axes


def cross_entropy(
  logits: Any, targets: jax.Array, smoothing: float = 0.0
) -> jax.Array:
  """Cross-entropy in nats, in the shape of the targets.

  Args:
    logits: (..., V).
    targets: integers from 0 to V - 1.
    smoothing: the share of a label that is spread evenly over all V
      (1512.00567, section 7).
  """
  return _cross_entropy(smoothing, logits, targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(
  smoothing: float, logits: Any, targets: jax.Array
) -> jax.Array:
  """Without a rule of its own all exponentials would be kept, and scattered."""
  return _cross_entropy_fwd(smoothing, logits, targets)[0]


def _cross_entropy_fwd(smoothing: float, logits: Any, targets: Any) -> Any:
  total = jax.nn.logsumexp(logits, axis=-1)
  own = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  score = own
  if smoothing:
    score = (1 - smoothing) * own + smoothing * jnp.mean(logits, axis=-1)
  return total - score, (logits, targets, total)


def _cross_entropy_bwd(smoothing: float, kept: Any, grad: jax.Array) -> Any:
  logits, targets, total = kept
  classes = jax.lax.broadcasted_iota(int, logits.shape, logits.ndim - 1)
  label = jnp.where(classes == targets[..., None], 1 - smoothing, 0)
  if smoothing:
    label += smoothing / logits.shape[-1]
  slope = jnp.exp(logits - total[..., None]) - label
  return (slope * grad[..., None]).astype(logits.dtype), None


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def in_pieces(
  score: Score,
  x_BLE: jax.Array,
  targets_BL: jax.Array,
  smoothing: float,
  most: int,
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of `score(x_BLE)`, and whether the target scores best.

  The logits of a piece are made again in the backward pass; those of all pieces
  are never held together.

  Args:
    score: a pure function, (B, C, E) to logits (B, C, V).
    x_BLE: what is scored.
    targets_BL: integers below V.
    smoothing: as in `cross_entropy`.
    most: how many bytes of logits a piece may have, see `by_positions`.

  Returns:
    Losses in nats (B, L), and booleans (B, L).
  """

  def piece(x_BCE: jax.Array, targets_BC: jax.Array) -> Any:
    logits_BCV = score(x_BCE)
    hits_BC = jnp.argmax(logits_BCV, axis=-1) == targets_BC
    return cross_entropy(logits_BCV, targets_BC, smoothing), hits_BC

  held = on_device(jax.eval_shape(score, x_BLE))
  found: tuple[jax.Array, jax.Array]
  found = by_positions(piece, (x_BLE, targets_BL), held, most)
  return found


def by_positions(piece: Any, arrays: Any, held: int, most: int) -> Any:
  """A function of all positions, run on a part of them at a time.

  A piece is every n-th position of all sequences, so that positions cut over
  devices stay where they are. What it computes is not kept for the backward
  pass, unless one piece is all.

  Args:
    piece: of arrays (B, C, ...); its results are alike.
    arrays: those, (B, L, ...); a tree for each argument.
    held: how many bytes a device would hold of them all at once.
    most: how many it may; one position of each sequence, if that has more.

  Returns:
    What `piece(*arrays)` does.
  """
  batch, length = jax.tree.leaves(arrays)[0].shape[:2]
  count = min(length, -(-held // most))
  if count <= 1:
    return piece(*arrays)

  def cut(a: jax.Array) -> jax.Array:
    rest = [(0, 0)] * (a.ndim - 2)
    a = jnp.pad(a, [(0, 0), (0, -length % count), *rest])
    return jnp.moveaxis(a.reshape(batch, -1, count, *a.shape[2:]), 2, 0)

  def whole(a: jax.Array) -> jax.Array:
    a = jnp.moveaxis(a, 0, 2)
    return a.reshape(batch, -1, *a.shape[3:])[:, :length]

  found = jax.lax.map(
    lambda one: jax.checkpoint(piece)(*one), jax.tree.map(cut, arrays)
  )
  return jax.tree.map(whole, found)


def on_device(logits: Any) -> int:
  """Bytes that each device holds of logits (B, L, V), wherever this is traced.

  What the compiler cuts over the mesh is said by the rules of logical axes;
  inside a map over shards those are of what a shard has.
  """
  ways = jax.sharding.get_abstract_mesh().shape
  spec: Any = nn.logical_to_mesh_axes(LOGITS)
  held: int = logits.dtype.itemsize
  for size, axes in zip(logits.shape, spec, strict=True):
    names = (axes,) if isinstance(axes, str) else axes or ()
    cut = math.prod(ways[name] for name in names)
    held *= size // cut if size % cut == 0 else size
  return held
