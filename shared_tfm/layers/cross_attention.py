"""Attention of a decoder to what an encoder made of the source."""

from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm.layers import dot_product
from shared_tfm.layers.attention import Attention
from shared_tfm.layers.context import Context, Left


class CrossAttention(Attention):
  """Queries from the target, keys and values from the source's memory.

  "Encoder-decoder attention" of 1706.03762, section 3.2.3. Every position sees
  the whole source but its padding. Places in two texts do not compare, so that
  rotary positions turn nothing here.
  """

  def __call__(
    self, x_BLD: jax.Array, context: Context
  ) -> tuple[jax.Array, Left]:
    """Attends.

    Args:
      x_BLD: the target.
      context: the memory, and where it is padding.

    Returns:
      The mixed values of the memory, (B, L, D), and its keys and values, where
      they are kept.
    """
    if context.source is not None:
      return self._attend_to_kept(x_BLD, context)
    memory_BSD, mask_BS = context.memory_BSD, context.memory_mask_BS
    assert memory_BSD is not None, 'cross-attention without a memory'
    mixed_BLHK = dot_product.attend(
      self._heads(self.query(x_BLD)),
      self._heads(self.key(memory_BSD)),
      self._heads(self.value(memory_BSD)),
      mask=None if mask_BS is None else mask_BS[:, None, None, :],
      kernel=self.model.attention_kernel,
    )
    return self.out(mixed_BLHK.reshape(*x_BLD.shape[:2], -1)), Left()

  def _attend_to_kept(
    self, x_BLD: jax.Array, context: Context
  ) -> tuple[jax.Array, Left]:
    """Attends to what is kept of the memory, or now will be."""
    kept: Any = context.source
    memory_BSD = context.memory_BSD
    if memory_BSD is not None:
      kept = kept.added(
        self._heads(self.key(memory_BSD)),
        self._heads(self.value(memory_BSD)),
        jnp.broadcast_to(jnp.arange(memory_BSD.shape[1]), memory_BSD.shape[:2]),
        context.memory_mask_BS,
      )
    last_BL = jnp.full(x_BLD.shape[:2], kept.cache.seen_SBM.shape[-1] - 1)
    mixed_BLHK = kept.attend(self._heads(self.query(x_BLD)), last_BL)
    y_BLD = self.out(mixed_BLHK.reshape(*x_BLD.shape[:2], -1))
    return y_BLD, Left(source=kept.cache)
