"""Tokens to vectors and back."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.layers import dot
from shared_tfm.layers.context import Context
from shared_tfm.layers.feed_forward import ACTIVATIONS
from shared_tfm.layers.linear import KERNEL_INIT, linear_outside
from shared_tfm.layers.lookup import Lookup
from shared_tfm.layers.norm import Norm
from shared_tfm.layers.position import position_table, sinusoids
from shared_tfm.layers.width import Safe


def _table(model: Model, rows: int, axis: str | None) -> Lookup:
  init = nn.initializers.normal(model.embed_dim**-0.5)
  return Lookup(
    rows,
    model.embed_dim,
    dtype=jnp.dtype(model.precision.compute),
    embedding_init=nn.with_logical_partitioning(init, (axis, 'embed')),
  )


class Embedding(nn.Module):
  """The sum of token, position and type vectors, and its projection to D.

  Token vectors may be read times sqrt(E) (1706.03762, section 3.4), for else
  sinusoids, whose length is sqrt(E / 2), drown them at first.
  With E < D the tables are factorised (ALBERT, 1909.11942, section 3.1): they
  hold E features, which one linear map widens, or a small layer ('safe').
  """

  model: Model
  train: bool = False

  def setup(self) -> None:
    """Declares the tables the config asks for."""
    m = self.model
    self.token = _table(m, m.vocab_size, 'vocab')
    at_input = m.positions_at == 'input'
    self.positions = m.position if at_input else 'none'
    if self.positions == 'learned':
      self.position = position_table(m, m.embed_dim)
    if m.type_vocab_size:
      self.type = _table(m, m.type_vocab_size, None)
    if m.embed_norm:
      self.norm = Norm(m, self.train)
    if m.embed_project == 'safe':
      self.project: Any = Safe(m, self.train)
    elif m.embed_dim != m.d_model:
      self.project = linear_outside(m, m.d_model, (None, 'embed'))
    self.drop = nn.Dropout(m.dropout, deterministic=not self.train)

  def __call__(
    self,
    tokens_BL: jax.Array,
    positions_BL: jax.Array,
    mask_BL: jax.Array | None = None,
    types_BL: jax.Array | None = None,
    table: 'Embedding | None' = None,
    kept: dict[str, Any] | None = None,
  ) -> jax.Array:
    """Embeds tokens.

    Args:
      tokens_BL: integers below `vocab_size`.
      positions_BL: theirs.
      mask_BL: False at padding; None for no padding.
      types_BL: segment types; None for all zero.
      table: whose token table is read; None: this embedding's own, which it
        has only then.
      kept: 'embedding' in it is what a small layer kept of the tokens in front
        of these, and is replaced by what it keeps now; None: of none.

    Returns:
      (B, L, D) in the compute dtype.
    """
    m = self.model
    x_BLE = (table or self).token(tokens_BL)
    if m.embed_scale == 'width':
      x_BLE *= m.embed_dim**0.5
    if self.positions == 'learned':
      x_BLE += self.position(positions_BL)
    if self.positions == 'sinusoidal':
      x_BLE += sinusoids(positions_BL, m.embed_dim).astype(x_BLE.dtype)
    if m.type_vocab_size:
      zeros_BL = jnp.zeros_like(tokens_BL)
      x_BLE += self.type(zeros_BL if types_BL is None else types_BL)
    if m.embed_norm:
      x_BLE = self.norm(x_BLE, mask_BL)
    x_BLE = self.drop(x_BLE)
    if m.embed_project == 'safe':
      cache = None if kept is None else kept['embedding']
      context = Context(positions_BL, mask_BL, cache=cache)
      x_BLD, left = self.project(x_BLE, context)
      if kept is not None:
        kept['embedding'] = kept['embedding'].replace(cache=left.cache)
      return x_BLD
    return self.project(x_BLE) if m.embed_dim != m.d_model else x_BLE


class Head(nn.Module):
  """From the last residual stream to what the output table is scored with.

  An encoder transforms it first, as BERT's masked-LM head does (1810.04805):
  linear to E, activation, norm. A decoder goes to E by one linear map where the
  table is tied and E < D, and otherwise leaves it as it is.
  """

  model: Model
  train: bool = False

  def setup(self) -> None:
    """Declares the transform, and the output table where it is not tied."""
    m = self.model
    encoder = m.family == 'encoder'
    if encoder or (m.tie_embeddings and m.embed_dim != m.d_model):
      self.project = linear_outside(m, m.embed_dim, ('embed', None))
    if encoder:
      self.norm = Norm(m, self.train)
    if encoder or m.head_bias:
      self.bias: Any = self.param(
        'bias',
        nn.with_logical_partitioning(nn.initializers.zeros, ('vocab',)),
        (m.vocab_size,),
      )
    if not m.tie_embeddings:
      self.table = Table(m)

  def transform(
    self, x_BLD: jax.Array, mask_BL: jax.Array | None = None
  ) -> jax.Array:
    """What is scored, (B, L, E), of the last residual stream."""
    m = self.model
    if hasattr(self, 'project'):
      x_BLD = self.project(x_BLD)
    if m.family == 'encoder':
      x_BLD = self.norm(ACTIVATIONS[m.activation](x_BLD), mask_BL)
    return x_BLD

  def scorer(self, embedding: Embedding) -> Callable[[jax.Array], jax.Array]:
    """The map from (..., E) to float32 logits (..., V), as a pure function."""
    m = self.model
    if m.tie_embeddings:
      table, axes = embedding.token.embedding, 've'
    else:
      table, axes = self.table.kernel, 'ev'
    bias: Any = None
    if m.family == 'encoder' or m.head_bias:
      bias = self.bias

    def score(x: jax.Array) -> jax.Array:
      return dot.scores(x, table, m.precision, axes, bias)

    return score


class Table(nn.Module):
  """An output table of its own, (E, V)."""

  model: Model

  def setup(self) -> None:
    """Declares it."""
    m = self.model
    width = m.embed_dim if m.family == 'encoder' else m.d_model
    self.kernel: Any = self.param(
      'kernel',
      nn.with_logical_partitioning(KERNEL_INIT, ('embed', 'vocab')),
      (width, m.vocab_size),
    )
