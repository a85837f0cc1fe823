"""Rows of a table, by their numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Lookup(nn.Embed):
  """Rows that are rounded after they are read, and not the table before.

  So the gradients of a row that is read often are added up in float32, and
  nothing but that table's gradient has a table's size.
  """

  def __call__(self, rows: jax.Array) -> jax.Array:
    """The rows of these numbers, in `dtype`."""
    return jnp.take(self.embedding, rows, axis=0).astype(self.dtype)
