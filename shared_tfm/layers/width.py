"""From one width to another: two ways that are more than a linear map."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared_tfm.config import Model, Quantise
from shared_tfm.layers.attention import Attention
from shared_tfm.layers.cache import Cache, Slots
from shared_tfm.layers.context import Context, Left
from shared_tfm.layers.feed_forward import FeedForward
from shared_tfm.layers.linear import linear_outside
from shared_tfm.layers.norm import Norm


class Safe(nn.Module):
  """Self-attentive factorised embeddings (Subformer, 2101.00234, section 3.2).

  One small layer widens E to D: attention E wide, then a feed-forward network
  from E over E to D, each with a norm behind it. As in the authors' code the
  second has no residual connection, there being no sum of two widths. (That
  code also scales every projection by a learned vector, which is left out.)
  """

  model: Model
  train: bool = False

  def setup(self) -> None:
    """Declares the layer's two parts and their norms."""
    e, outside = self.model.embed_dim, self.model.precision.outside
    m = dataclasses.replace(self.model, dtype=outside.name, quantise=Quantise())
    self.attention = Attention(small(m))
    self.feed_forward = FeedForward(dataclasses.replace(m, d_ff=e))
    self.attention_norm = Norm(m, self.train)
    self.feed_forward_norm = Norm(m, self.train)
    self.drop = nn.Dropout(m.dropout, deterministic=not self.train)

  def __call__(
    self, x_BLE: jax.Array, context: Context
  ) -> tuple[jax.Array, Left]:
    """(B, L, E) to (B, L, D), and what attention leaves behind."""
    mask_BL = context.mask_BL
    y_BLE, left = self.attention(x_BLE, context)
    x_BLE = self.attention_norm(x_BLE + self.drop(y_BLE), mask_BL)
    x_BLD = self.feed_forward(x_BLE)
    return self.feed_forward_norm(self.drop(x_BLD), mask_BL), left

  @staticmethod
  def empty(model: Model, batch: int, places: int) -> Slots:
    """What is kept of no tokens; arguments as of `Backbone.empty`."""
    m = small(model)
    dtype = jnp.dtype(m.cache_dtype)
    sizes = batch, m.num_kv_heads, places, m.head_dim
    zero = jnp.zeros((), jnp.int32)
    return Slots(
      Cache.empty(1, *sizes, dtype), zero, zero[None], jnp.ones(1, bool)
    )


def small(model: Model) -> Model:
  """The attention of `Safe`: E wide, one key and value for every head."""
  return dataclasses.replace(
    model,
    d_model=model.embed_dim,
    head_dim=model.embed_dim // model.num_heads,
    num_kv_heads=model.num_heads,
  )


class Resize(nn.Module):
  """Linear, dropout, norm: into another width and back (Subformer's code)."""

  model: Model
  width: int
  train: bool = False

  def setup(self) -> None:
    """Declares the map and the norm."""
    m = self.model
    self.linear = linear_outside(m, self.width, ('embed', None))
    self.norm = Norm(m, self.train)
    self.drop = nn.Dropout(m.core_dropout, deterministic=not self.train)

  def __call__(
    self, x_BLD: jax.Array, mask_BL: jax.Array | None = None
  ) -> jax.Array:
    """To (B, L, width)."""
    return self.norm(self.drop(self.linear(x_BLD)), mask_BL)
