"""Scaled dot-product attention (1706.03762, section 3.2.1)."""

from typing import Any

import jax
import jax.numpy as jnp

_NEVER = -1e30  # a score, in float32, that softmax turns into 0


def weights(
  q_BLHK: jax.Array, k_BMHK: jax.Array, allowed: jax.Array
) -> jax.Array:
  """How much each position attends to each other: (B, H, L, M).

  Scores and softmax are float32, whatever the dtype of queries and keys.

  Args:
    q_BLHK: queries.
    k_BMHK: keys, one for every query head.
    allowed: where a position may attend; it broadcasts to the result.
  """
  scores = jnp.einsum(
    'blhk,bmhk->bhlm', q_BLHK, k_BMHK, preferred_element_type=jnp.float32
  )
  scores = jnp.where(allowed, scores * q_BLHK.shape[-1] ** -0.5, _NEVER)
  return jax.nn.softmax(scores, axis=-1).astype(q_BLHK.dtype)


def mixed(map_BHLM: Any, v_BMHK: jax.Array) -> jax.Array:
  """Values, mixed by weights: (B, L, H, K)."""
  return jnp.einsum('bhlm,bmhk->blhk', map_BHLM, v_BMHK)


def fused(dtype: Any, head_dim: int, backend: str) -> bool:
  """Whether cuDNN has a kernel that never holds all scores (2205.14135).

  It has where numbers have 16 bits and heads are of a multiple of 8, up to 128.

  Args:
    dtype: of queries, keys and values.
    head_dim: K.
    backend: as `jax.default_backend()` names it.
  """
  narrow = jnp.dtype(dtype).itemsize == 2
  return backend == 'gpu' and narrow and head_dim % 8 == 0 and head_dim <= 128


def attend(
  q_BLHK: jax.Array,
  k_BMGK: jax.Array,
  v_BMGK: jax.Array,
  mask: jax.Array | None = None,
  is_causal: bool = False,
) -> jax.Array:
  """Mixes values: (B, L, H, K). As `jax.nn.dot_product_attention`.

  Which it is, by cuDNN where `fused` says so and cuDNN agrees, and else by XLA;
  but in float16, for which that asks for a product that XLA has neither on a
  CPU nor on a TPU, it is written out.
  """
  dtype, library = q_BLHK.dtype, jax.nn.dot_product_attention

  def by(implementation: str) -> jax.Array:
    options: Any = {'mask': mask, 'is_causal': is_causal}
    options['implementation'] = implementation
    found: jax.Array = library(q_BLHK, k_BMGK, v_BMGK, **options)
    return found

  if fused(dtype, q_BLHK.shape[-1], jax.default_backend()):
    try:
      return by('cudnn')
    except (NotImplementedError, RuntimeError, ValueError):
      pass  # cuDNN is not there, or is too old for the device or the shapes
  if dtype != jnp.float16:
    return by('xla')
  (b, length, h, _), m = q_BLHK.shape, k_BMGK.shape[1]
  allowed = jnp.ones((b, 1, length, m), bool)
  if is_causal:
    allowed = jnp.tril(allowed)
  if mask is not None:
    allowed &= mask
  k_BMHK, v_BMHK = (
    jnp.repeat(a, h // a.shape[2], axis=2) for a in (k_BMGK, v_BMGK)
  )
  return mixed(weights(q_BLHK, k_BMHK, allowed), v_BMHK)
