"""Scaled dot-product attention (1706.03762, section 3.2.1)."""

from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm.layers import blocks, kernels
from shared_tfm.layers.blocks import NEVER


def weights(
  q_BLHK: jax.Array,
  k_BMHK: jax.Array,
  allowed: jax.Array,
  bias: jax.Array | None = None,
) -> jax.Array:
  """How much each position attends to each other: (B, H, L, M).

  Scores and softmax are float32, whatever the dtype of queries and keys.

  Args:
    q_BLHK: queries.
    k_BMHK: keys, one for every query head.
    allowed: where a position may attend; it broadcasts to the result.
    bias: added to the scores, after they are scaled; so does it.
  """
  scores = jnp.einsum(
    'blhk,bmhk->bhlm', q_BLHK, k_BMHK, preferred_element_type=jnp.float32
  )
  scores *= q_BLHK.shape[-1] ** -0.5
  if bias is not None:
    scores += bias
  scores = jnp.where(allowed, scores, NEVER)
  return jax.nn.softmax(scores, axis=-1).astype(q_BLHK.dtype)


def mixed(map_BHLM: Any, v_BMHK: jax.Array) -> jax.Array:
  """Values, mixed by weights: (B, L, H, K)."""
  return jnp.einsum('bhlm,bmhk->blhk', map_BHLM, v_BMHK)


def attend(
  q_BLHK: jax.Array,
  k_BMGK: jax.Array,
  v_BMGK: jax.Array,
  mask: jax.Array | None = None,
  is_causal: bool = False,
  kernel: str = 'auto',
  bias: jax.Array | None = None,
) -> jax.Array:
  """Mixes values: (B, L, H, K). As `jax.nn.dot_product_attention`.

  Which it is where `kernels.choose` says xla or cudnn; but in float16 xla's is
  our own plain form, as the library asks for a product there that XLA has
  neither on a CPU nor on a TPU.

  Args:
    q_BLHK: queries.
    k_BMGK: keys, G of which divides H.
    v_BMGK: values.
    mask: where a position may attend; it broadcasts to (B, H, L, M).
    is_causal: whether positions see only those up to their own.
    kernel: `model.attention_kernel`.
    bias: added to the scores, after they are scaled; (B, H, L, M) broadcasts.

  Raises:
    BadInput: see `kernels.choose`.
  """
  by = kernels.choose(kernel, q_BLHK, k_BMGK, mask, is_causal, bias)
  if by == 'blocks':
    return blocks.attend(q_BLHK, k_BMGK, v_BMGK, mask, is_causal)
  if by == 'splash':
    return kernels.splash(q_BLHK, k_BMGK, v_BMGK, mask, is_causal)
  if by == 'cudnn' or q_BLHK.dtype != jnp.float16:
    library: Any = jax.nn.dot_product_attention
    found: jax.Array = library(
      q_BLHK,
      k_BMGK,
      v_BMGK,
      bias=bias,
      mask=mask,
      is_causal=is_causal,
      implementation=by,
    )
    return found
  (b, length, h, _), m = q_BLHK.shape, k_BMGK.shape[1]
  allowed = jnp.ones((b, 1, length, m), bool)
  if is_causal:
    allowed = jnp.tril(allowed)
  if mask is not None:
    allowed &= mask
  k_BMHK, v_BMHK = (
    jnp.repeat(a, h // a.shape[2], axis=2) for a in (k_BMGK, v_BMGK)
  )
  return mixed(weights(q_BLHK, k_BMHK, allowed, bias), v_BMHK)
