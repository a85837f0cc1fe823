"""Images as sequences of patches (ViT, 2010.11929, section 3.1)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.layers.linear import linear_outside
from shared_tfm.layers.norm import Norm
from shared_tfm.layers.position import position_table, sinusoids


class Patches(nn.Module):
  """Projected patches, row by row, with their positions.

  Where classes are told from the first position, that is a learned vector of
  its own ('class') before the patches.
  """

  model: Model
  train: bool = False

  def setup(self) -> None:
    """Declares the projection, the class vector and the positions."""
    m = self.model
    self.patch = linear_outside(m, m.d_model, (None, 'embed'))
    if m.pool == 'first':
      self.first: Any = self.param(
        'class',
        nn.with_logical_partitioning(nn.initializers.zeros, ('embed',)),
        (m.d_model,),
      )
    self.positions = m.position if m.positions_at == 'input' else 'none'
    if self.positions == 'learned':
      self.position = position_table(m, m.d_model)
    if m.embed_norm:
      self.norm = Norm(m, self.train)
    self.drop = nn.Dropout(m.dropout, deterministic=not self.train)

  def __call__(
    self, pixels_BYXC: jax.Array, positions_BL: jax.Array
  ) -> jax.Array:
    """Embeds images.

    Args:
      pixels_BYXC: numbers around 0, `image_size` in both directions.
      positions_BL: 0, 1, ..., of the class vector and the patches.

    Returns:
      (B, L, D) in the compute dtype.
    """
    m = self.model
    patches_BLP = cut(pixels_BYXC, m.patch_size).astype(
      jnp.dtype(m.precision.compute)
    )
    x_BLD = self.patch(patches_BLP)
    if m.pool == 'first':
      first_B1D = jnp.broadcast_to(
        self.first.astype(x_BLD.dtype), (x_BLD.shape[0], 1, m.d_model)
      )
      x_BLD = jnp.concatenate([first_B1D, x_BLD], axis=1)
    if self.positions == 'learned':
      x_BLD += self.position(positions_BL)
    if self.positions == 'sinusoidal':
      x_BLD += sinusoids(positions_BL, m.d_model).astype(x_BLD.dtype)
    if m.embed_norm:
      x_BLD = self.norm(x_BLD, None)
    return self.drop(x_BLD)


def cut(pixels_BYXC: jax.Array, size: int) -> jax.Array:
  """Square patches, row by row, each as one row of numbers: (B, L, P)."""
  b, height, width, channels = pixels_BYXC.shape
  grid = pixels_BYXC.reshape(
    b, height // size, size, width // size, size, channels
  )
  return grid.swapaxes(2, 3).reshape(b, -1, size * size * channels)
