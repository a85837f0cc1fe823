"""Attention of a decoder to what an encoder made of the source."""

import jax

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
      The mixed values of the memory, (B, L, D), and nothing left behind.
    """
    memory_BSD, mask_BS = context.memory_BSD, context.memory_mask_BS
    assert memory_BSD is not None, 'cross-attention without a memory'
    mixed_BLHK = dot_product.attend(
      self._heads(self.query(x_BLD)),
      self._heads(self.key(memory_BSD)),
      self._heads(self.value(memory_BSD)),
      mask=None if mask_BS is None else mask_BS[:, None, None, :],
    )
    return self.out(mixed_BLHK.reshape(*x_BLD.shape[:2], -1)), Left()
