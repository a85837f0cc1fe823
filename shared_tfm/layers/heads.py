"""Heads that score something else than tokens."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.layers.linear import linear_outside


class Classes(nn.Module):
  """Scores the classes of a whole sequence.

  It reads one position, or the mean over all, and may transform it by a linear
  map and tanh first, BERT's pooler (1810.04805; its released code).
  """

  model: Model
  train: bool = False

  def setup(self) -> None:
    """Declares the pooler, and what scores the classes."""
    m = self.model
    if m.pooler:
      self.pool = linear_outside(m, m.d_model, ('embed', None))
    self.drop = nn.Dropout(m.dropout, deterministic=not self.train)
    self.score = linear_outside(m, m.num_classes, (None, None))

  def __call__(
    self, x_BLD: jax.Array, mask_BL: jax.Array | None = None
  ) -> jax.Array:
    """From the last residual stream to float32 logits (B, classes).

    Args:
      x_BLD: the stream, normalised.
      mask_BL: False at padding, which is read by no pooling; None for none.
    """
    x_BD = _pooled(self.model.pool, x_BLD, mask_BL)
    if self.model.pooler:
      x_BD = jnp.tanh(self.pool(x_BD))
    scored: Any = self.score(self.drop(x_BD))
    return scored.astype(self.model.precision.output)


def _pooled(how: str, x_BLD: jax.Array, mask_BL: jax.Array | None) -> jax.Array:
  if how == 'first':
    return x_BLD[:, 0]
  if mask_BL is None:
    mask_BL = jnp.ones(x_BLD.shape[:2], bool)
  if how == 'last':
    places_B = jnp.max(jnp.arange(mask_BL.shape[1])[None] * mask_BL, axis=1)
    return jnp.take_along_axis(x_BLD, places_B[:, None, None], axis=1)[:, 0]
  count_B = jnp.maximum(jnp.sum(mask_BL, axis=1), 1)
  summed_BD = jnp.einsum(  # float16 could not hold every sum
    'bld,bl->bd',
    x_BLD,
    mask_BL.astype(x_BLD.dtype),
    preferred_element_type=jnp.float32,
  )
  return (summed_BD / count_B[:, None]).astype(x_BLD.dtype)


class Spans(nn.Module):
  """Scores each position as the first and as the last of an answer.

  One linear map to two numbers (BERT, 1810.04805, section 4.2).
  """

  model: Model

  def setup(self) -> None:
    """Declares the map."""
    self.score = linear_outside(self.model, 2, ('embed', None))

  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    """From the last residual stream to float32 logits (B, L, 2)."""
    scored: Any = self.score(x_BLD)
    return scored.astype(self.model.precision.output)
