"""Where a token stands, and at which visit: tables, sinusoids, rotations."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.layers.lookup import Lookup


def position_table(model: Model, width: int) -> Lookup:
  """A learned vector of `width` features for each position."""
  init = nn.initializers.normal(width**-0.5)
  return Lookup(
    model.max_len,
    width,
    dtype=jnp.dtype(model.precision.compute),
    embedding_init=nn.with_logical_partitioning(init, (None, 'embed')),
  )


class StepSignal(nn.Module):
  """A learned vector that is added at a visit (1807.03819; T2T, 'learned')."""

  model: Model

  @nn.compact
  def __call__(self) -> jax.Array:
    """The signal, (1, 1, D)."""
    d = self.model.d_model
    init = nn.initializers.normal(d**-0.5)
    signal_D: Any = self.param(
      'signal', nn.with_logical_partitioning(init, ('embed',)), (d,)
    )
    return signal_D[None, None].astype(jnp.dtype(self.model.precision.compute))


def sinusoids(positions_BL: jax.Array, width: int) -> jax.Array:
  """Sinusoidal position signals (Vaswani et al., 1706.03762, section 3.5).

  Args:
    positions_BL: integer positions.
    width: features; sines fill the first half, cosines the second.

  Returns:
    float32 of shape (B, L, width).
  """
  half = (width + 1) // 2
  rate = 10000.0 ** (-jnp.arange(half) / half)
  angle = positions_BL[..., None].astype(jnp.float32) * rate[None, None]
  signal = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
  return signal[..., :width]


def rotate(
  x_BLHK: jax.Array,
  positions_BL: jax.Array,
  theta: float,
  fraction: float = 1.0,
) -> jax.Array:
  """Rotary positions (RoFormer, 2104.09864), pairing feature i with i + K/2.

  Args:
    x_BLHK: queries or keys.
    positions_BL: integer positions.
    theta: the base of the wavelengths.
    fraction: of the features, the first of which are rotated as if there were
      no others, rounded down to an even number (GPT-J; MoEUT's is a half).

  Returns:
    x rotated, in its own dtype; the rotation itself runs in float32.
  """
  half = int(fraction * x_BLHK.shape[-1]) // 2
  if 2 * half < x_BLHK.shape[-1]:
    turned, kept = jnp.split(x_BLHK, [2 * half], axis=-1)
    turned = rotate(turned, positions_BL, theta)
    return jnp.concatenate([turned, kept], axis=-1)
  rate = theta ** (-jnp.arange(half) / half)
  angle_BL1K = jnp.einsum('bl,k->blk', positions_BL, rate)[:, :, None]
  cos, sin = jnp.cos(angle_BL1K), jnp.sin(angle_BL1K)
  a, b = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return turned.astype(x_BLHK.dtype)
