"""One Transformer layer."""

import flax.linen as nn
import jax

from shared_tfm.config import Model
from shared_tfm.layers.attention import Attention
from shared_tfm.layers.context import Context, Left
from shared_tfm.layers.feed_forward import FeedForward
from shared_tfm.layers.norm import Norm


class Norms(nn.Module):
  """A layer's norms in one scope, so that they are one component."""

  model: Model
  train: bool = False

  def setup(self) -> None:
    """Declares a norm per sublayer, and for 'sandwich' one behind each."""
    self.attention = Norm(self.model, self.train)
    self.feed_forward = Norm(self.model, self.train)
    if self.model.norm_position == 'sandwich':
      self.attention_out = Norm(self.model, self.train)
      self.feed_forward_out = Norm(self.model, self.train)

  def __call__(
    self, which: str, x_BLD: jax.Array, mask_BL: jax.Array | None
  ) -> jax.Array:
    """Applies the norm of that name."""
    return getattr(self, which)(x_BLD, mask_BL)


class Layer(nn.Module):
  """Attention, then feed-forward, each with a residual connection.

  The norm stands before the sublayer ('pre'), after the residual sum ('post',
  as in 1706.03762), or both before and behind the sublayer ('sandwich').
  Dropout is applied to what each sublayer adds; `residual_scale` 'depth'
  divides that by the root of the number of sublayers applied, 2N.
  """

  model: Model
  train: bool = False

  def setup(self) -> None:
    """Declares the three components."""
    self.attention = Attention(self.model)
    self.feed_forward = FeedForward(self.model)
    self.norm = Norms(self.model, self.train)
    self.drop = nn.Dropout(self.model.dropout, deterministic=not self.train)

  def __call__(
    self, x_BLD: jax.Array, context: Context
  ) -> tuple[jax.Array, Left]:
    """Runs the layer.

    Args:
      x_BLD: the residual stream.
      context: what else the layer sees.

    Returns:
      The residual stream after the layer, (B, L, D), and what is left behind.
    """
    m = self.model
    post, sandwich = m.norm_position == 'post', m.norm_position == 'sandwich'
    scale = (2 * m.num_layers) ** -0.5 if m.residual_scale == 'depth' else 1
    left = Left()
    for name in ('attention', 'feed_forward'):
      y_BLD = x_BLD if post else self.norm(name, x_BLD, context.mask_BL)
      if name == 'attention':
        y_BLD, left = self.attention(y_BLD, context)
      else:
        y_BLD = self.feed_forward(y_BLD)
      if sandwich:
        y_BLD = self.norm(f'{name}_out', y_BLD, context.mask_BL)
      x_BLD = x_BLD + scale * self.drop(y_BLD)
      if post:
        x_BLD = self.norm(name, x_BLD, context.mask_BL)
    return x_BLD, left
