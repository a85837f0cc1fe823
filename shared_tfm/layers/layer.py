"""One Transformer layer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.layers.attention import Attention
from shared_tfm.layers.context import Context, Left
from shared_tfm.layers.cross_attention import CrossAttention
from shared_tfm.layers.experts import ATTENTION, FeedForwardExperts
from shared_tfm.layers.feed_forward import FeedForward
from shared_tfm.layers.norm import Norm
from shared_tfm.layers.position import StepSignal, position_table, sinusoids


class Norms(nn.Module):
  """A layer's norms in one scope, so that they are one component."""

  model: Model
  train: bool = False

  def setup(self) -> None:
    """Declares a norm per sublayer, and for 'sandwich' one behind each."""
    behind = self.model.norm_position == 'sandwich'
    for name in self.model.sublayers:
      setattr(self, name, Norm(self.model, self.train))
      if behind:
        setattr(self, f'{name}_out', Norm(self.model, self.train))

  def __call__(
    self, which: str, x_BLD: jax.Array, mask_BL: jax.Array | None
  ) -> jax.Array:
    """Applies the norm of that name."""
    return getattr(self, which)(x_BLD, mask_BL)


class Layer(nn.Module):
  """Attention, then feed-forward, each with a residual connection.

  The layer of a decoder with a source attends to that in between.

  The norm stands before the sublayer ('pre'), after the residual sum ('post',
  as in 1706.03762), or both before and behind the sublayer ('sandwich'). At
  'peri' (MoEUT, 2405.16039, section 2.4) it stands before what feeds a softmax
  or a sigmoid: queries, keys and routers; values and experts read the stream.
  Dropout is applied to what each sublayer adds; `residual_scale` 'depth'
  divides that by the root of the number of sublayers applied, 2N (or 3N); a
  network that is looped further, or loses visits, keeps its N.
  """

  model: Model
  train: bool = False

  def setup(self) -> None:
    """Declares the components."""
    experts = self.model.experts
    attention = ATTENTION[experts.style] if experts.num_attention else Attention
    feed_forward: Any = FeedForwardExperts if experts.num_ff else FeedForward
    self.attention = attention(self.model)
    if 'cross_attention' in self.model.sublayers:
      self.cross_attention = CrossAttention(self.model)
    if 'feed_forward' in self.model.sublayers:
      self.feed_forward = feed_forward(self.model)
    self.norm = Norms(self.model, self.train)
    if self._at_every_layer == 'learned':
      self.position = position_table(self.model, self.model.d_model)
    if self.model.step_signal == 'learned':
      self.step = StepSignal(self.model)
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
    applied = len(m.sublayers) * m.scaled_visits
    scale = applied**-0.5 if applied else 1
    left = Left()
    x_BLD = self._signalled(x_BLD, context)
    for name in m.sublayers:
      y_BLD = x_BLD if post else self.norm(name, x_BLD, context.mask_BL)
      if m.norm_position == 'peri':
        context = context.replace(plain_BLD=x_BLD)
      if name == 'attention':
        y_BLD, left = self.attention(y_BLD, self._attending(context))
      elif name == 'cross_attention':
        y_BLD, kept = self.cross_attention(y_BLD, context)
        left = left.replace(source=kept.source)
      elif m.experts.num_ff:
        y_BLD, observed = self.feed_forward(y_BLD, context)
        left = left.replace(observed={**left.observed, **observed})
      else:
        y_BLD = self.feed_forward(y_BLD)
      if sandwich:
        y_BLD = self.norm(f'{name}_out', y_BLD, context.mask_BL)
      x_BLD = x_BLD + scale * self.drop(y_BLD)
      if post:
        x_BLD = self.norm(name, x_BLD, context.mask_BL)
    return x_BLD, left

  def _attending(self, context: Context) -> Context:
    """What attention sees: what is attended to, treated as the stream is."""
    m, attended_BLD = self.model, context.attended_BLD
    if attended_BLD is None:
      return context
    attended_BLD = self._signalled(attended_BLD, context)
    if m.norm_position == 'peri':
      context = context.replace(plain_BLD=attended_BLD)
    if m.norm_position != 'post':
      attended_BLD = self.norm('attention', attended_BLD, context.mask_BL)
    return context.replace(attended_BLD=attended_BLD)

  @property
  def _at_every_layer(self) -> str:
    """The kind of positions that every layer adds, or none."""
    m = self.model
    return m.position if m.positions_at == 'every_layer' else 'none'

  def _signalled(self, x_BLD: jax.Array, context: Context) -> jax.Array:
    """The stream, plus where a token stands and which visit this is.

    Both sinusoidal, it is the Universal Transformer's P^t (1807.03819, section
    2.1): the same sinusoids of the position and of the step, counted from 1.
    """
    m, d = self.model, self.model.d_model
    if self._at_every_layer == 'learned':
      x_BLD = x_BLD + self.position(context.positions_BL)
    if self._at_every_layer == 'sinusoidal':
      x_BLD = x_BLD + sinusoids(context.positions_BL, d).astype(x_BLD.dtype)
    if m.step_signal == 'learned':
      x_BLD = x_BLD + self.step()
    if m.step_signal == 'sinusoidal':
      index = 0 if context.index is None else context.index
      step = 1 + m.first_visit + jnp.reshape(index, (-1, 1))
      x_BLD = x_BLD + sinusoids(step, d).astype(x_BLD.dtype)
    return x_BLD
