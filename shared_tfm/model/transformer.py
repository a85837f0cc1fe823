"""The Transformer: embeddings, the stack of visits, a head."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from shared_tfm import config as configs
from shared_tfm.layers.context import Context
from shared_tfm.layers.embedding import Embedding, Head
from shared_tfm.layers.norm import Norm
from shared_tfm.model.stack import Stack


class Outputs(flax.struct.PyTreeNode):
  """What a training step needs of a forward pass.

  Attributes:
    hidden_XBLD: the normalised residual stream at each of X exits; one, unless
      the depth is adaptive and its loss looks at several.
    weight_XBL: how much each exit counts in the loss of a token; None: one exit
      that counts 1.
    losses: further terms of the loss, by name: scalars, already multiplied by
      their coefficients, to be added to the mean loss of a token.
    metrics: scalars worth logging, by name.
  """

  hidden_XBLD: jax.Array
  weight_XBL: jax.Array | None = None
  losses: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
  metrics: dict[str, jax.Array] = flax.struct.field(default_factory=dict)


class Transformer(nn.Module):
  """A decoder-only language model or a bidirectional encoder.

  Its parameters: 'embedding', 'stack' (the bank), 'norm' (the final norm, which
  'post' placement does not have) and 'head'.
  """

  model: configs.Model
  train: bool = False

  def setup(self) -> None:
    """Declares the rooms of the model."""
    self.embedding = Embedding(self.model, self.train)
    self.stack = Stack(self.model, self.train)
    if self.model.norm_position != 'post':
      self.norm = Norm(self.model, self.train)
    self.head = Head(self.model, self.train)

  def outputs(
    self,
    tokens_BL: jax.Array,
    mask_BL: jax.Array | None = None,
    types_BL: jax.Array | None = None,
  ) -> Outputs:
    """Runs everything but the head.

    Args:
      tokens_BL: integers below `vocab_size`; L at most `max_len`.
      mask_BL: False at padding, which nobody attends to; None for no padding.
      types_BL: segment types below `type_vocab_size`; None for all zero.
    """
    positions_BL = jnp.broadcast_to(
      jnp.arange(tokens_BL.shape[1]), tokens_BL.shape
    )
    x_BLD = self.embedding(tokens_BL, positions_BL, mask_BL, types_BL)
    x_BLD, _ = self.stack(x_BLD, Context(positions_BL, mask_BL))
    if self.model.norm_position != 'post':
      x_BLD = self.norm(x_BLD, mask_BL)
    return Outputs(x_BLD[None])

  def hidden(
    self,
    tokens_BL: jax.Array,
    mask_BL: jax.Array | None = None,
    types_BL: jax.Array | None = None,
  ) -> jax.Array:
    """The last residual stream, normalised: (B, L, D) in `model.dtype`."""
    return self.outputs(tokens_BL, mask_BL, types_BL).hidden_XBLD[-1]

  def scores(
    self, hidden_BLD: jax.Array, mask_BL: jax.Array | None = None
  ) -> jax.Array:
    """Logits of a normalised residual stream: float32 (B, L, V)."""
    return self.head(hidden_BLD, self.embedding, mask_BL)

  def __call__(
    self,
    tokens_BL: jax.Array,
    mask_BL: jax.Array | None = None,
    types_BL: jax.Array | None = None,
  ) -> jax.Array:
    """Logits over the vocabulary: float32 (B, L, V). Arguments as `outputs`."""
    return self.scores(self.hidden(tokens_BL, mask_BL, types_BL), mask_BL)


def build(config: Any, train: bool = False) -> Transformer:
  """The model of a config.

  Args:
    config: a ConfigDict, a dict of fields, or a Config.
    train: whether dropout acts and batch statistics are updated.

  Returns:
    An unbound Linen module: `build(c).init(key, tokens)`, `.apply(...)`.

  Raises:
    BadInput: see `config.cross`.
  """
  return Transformer(configs.cross(config).model, train)
