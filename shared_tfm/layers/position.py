"""Where a token stands, and at which visit: tables, sinusoids, rotations.

Or how far away another stands: a bias of what attends to it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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
  places_BL = positions_BL.astype(jnp.float32)
  angle_BL1K = jnp.einsum('bl,k->blk', places_BL, rate)[:, :, None]
  cos, sin = jnp.cos(angle_BL1K), jnp.sin(angle_BL1K)
  a, b = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return turned.astype(x_BLHK.dtype)


class RelativeBias(nn.Module):
  """What a score gains by how far apart two tokens are (T5, 1910.10683, 2.1).

  For each head and bucket of distances a learned number. A stack has one such
  table, which all its layers read; a decoder's buckets are of what came before
  alone. Scores are divided by the root of K first, as anywhere, where T5's own
  are not: that root is in the query weights then.
  """

  model: Model

  def setup(self) -> None:
    """Declares the table, (buckets, H)."""
    m = self.model
    init = nn.initializers.normal(m.d_model**-0.5)
    self.table: Any = self.param(
      'table',
      nn.with_logical_partitioning(init, (None, 'heads')),
      (m.relative_buckets, m.num_heads),
    )

  def __call__(self, queries_BL: jax.Array, keys_BM: jax.Array) -> jax.Array:
    """The bias of scores, float32 (B, H, L, M).

    Args:
      queries_BL: where tokens stand that attend.
      keys_BM: where those stand that they attend to.
    """
    m = self.model
    ahead_BLM = keys_BM[:, None, :] - queries_BL[:, :, None]
    buckets_BLM = bucket(
      ahead_BLM, m.relative_buckets, m.relative_distance, m.causal
    )
    return jnp.moveaxis(self.table[buckets_BLM], -1, 1)


def bucket(
  ahead: jax.Array, buckets: int, farthest: int, causal: bool
) -> jax.Array:
  """The bucket of each distance, as T5's released code counts them.

  Half the buckets of a direction are for one distance each, from 0 on; the
  others grow with the logarithm, and the last has all from `farthest` on.

  Args:
    ahead: how far behind a token those stand that it attends to; negative:
      they stand before it.
    buckets: their number. Causal, all are of one direction, and what is ahead
      is in the bucket of distance 0; else the second half is of what is ahead.
    farthest: see above.
    causal: see above.
  """
  if causal:
    return _bucket_one_way(jnp.maximum(-ahead, 0), buckets, farthest)
  half = buckets // 2
  one_way = _bucket_one_way(jnp.abs(ahead), half, farthest)
  return one_way + half * (ahead > 0)


def _bucket_one_way(far: jax.Array, buckets: int, farthest: int) -> jax.Array:
  """The number of buckets that begin no farther away, less one."""
  alone = buckets // 2
  distance = np.arange(alone, farthest + 1, dtype=np.float32)
  rate = np.float32((buckets - alone) / np.log(farthest / alone))
  grown = alone + (np.log(distance / np.float32(alone)) * rate).astype(int)
  bucket_of = np.r_[np.arange(alone), np.minimum(grown, buckets - 1)]
  starts = np.searchsorted(bucket_of, np.arange(1, buckets))
  begun = far[..., None] >= starts.reshape(*far.ndim * (1,), -1)
  return jnp.sum(begun, axis=-1)
