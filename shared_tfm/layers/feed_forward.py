"""The feed-forward network."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared_tfm.config import GATED, Model
from shared_tfm.layers.linear import linear

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'gelu': partial(nn.gelu, approximate=False),
  'gelu_tanh': partial(nn.gelu, approximate=True),
  'relu': nn.relu,
  'swiglu': nn.silu,
  'geglu': partial(nn.gelu, approximate=True),
}


class FeedForward(nn.Module):
  """Two linear maps around an activation; GLU variants gate (2002.05202)."""

  model: Model

  def setup(self) -> None:
    """Declares the two or three projections: a component's parts."""
    m = self.model
    self.up = linear(m, m.d_ff, ('embed', 'mlp'))
    if m.activation in GATED:
      self.gate = linear(m, m.d_ff, ('embed', 'mlp'))
    self.down = linear(m, m.d_model, ('mlp', 'embed'))

  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    """Maps every position by itself, (B, L, D) to (B, L, D)."""
    m = self.model
    wide_BLF = self.up(x_BLD).astype(jnp.float32)
    if m.activation in GATED:
      gate_BLF = self.gate(x_BLD).astype(jnp.float32)
      hidden_BLF = ACTIVATIONS[m.activation](gate_BLF) * wide_BLF
    else:
      hidden_BLF = ACTIVATIONS[m.activation](wide_BLF)
    return self.down(hidden_BLF)
