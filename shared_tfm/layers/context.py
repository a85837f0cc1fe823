"""What a layer sees besides the residual stream, and what it leaves behind."""

from typing import Any

import flax.struct
import jax

from shared_tfm.layers.cache import Slots


class Reuse(flax.struct.PyTreeNode):
  """An activation that an earlier layer may have made already.

  Attributes:
    own: a boolean scalar: whether this layer makes its own.
    made: what the earlier layer left; anything of the right shape where `own`.
  """

  own: jax.Array
  made: Any


class Past(flax.struct.PyTreeNode):
  """Keys and values of the same layer in other loops.

  Attributes:
    made: a pair, (loops, B, L, G, K).
    readable: which loops are over, booleans (loops,).
  """

  made: Any
  readable: jax.Array


class Context(flax.struct.PyTreeNode):
  """The inputs of a layer that are not its residual stream.

  Attributes:
    positions_BL: integer positions.
    mask_BL: False at padding, which nobody attends to; None for no padding.
    memory_BSD: what an encoder made of the source, S long; None: no source.
    memory_mask_BS: False at the source's padding; None for no padding.
    plain_BLD: the residual stream, where values and experts read it without
      the norm before their sublayer; None: they read what the others do.
    attended_BLD: what keys and values are made of, where it is not the
      residual stream; None: it is.
    index: which visit this is, an integer scalar; or of each row, (B,).
    kv: keys and values to be reused, a pair (B, L, G, K); None: none ever are.
    map: attention weights to be reused, (B, H, L, L); None: none ever are.
    past: keys and values of earlier loops, to be attended to besides the own
      ones; None: they never are.
    cache: keys and values of earlier tokens, to be attended to besides the own
      ones, and where those go; None: the sequence is whole.
    source: the same of the memory: written where there is a memory, and read
      in its place where there is none.
    bias_BHLM: what is added to the scores of self-attention, float32; M is of
      all that is attended to, and B may be 1. None: nothing.
  """

  positions_BL: jax.Array
  mask_BL: jax.Array | None = None
  memory_BSD: jax.Array | None = None
  memory_mask_BS: jax.Array | None = None
  plain_BLD: jax.Array | None = None
  attended_BLD: jax.Array | None = None
  index: jax.Array | None = None
  kv: Reuse | None = None
  map: Reuse | None = None
  past: Past | None = None
  cache: Slots | None = None
  source: Slots | None = None
  bias_BHLM: jax.Array | None = None

  def read_by_keys(self, x_BLD: jax.Array) -> jax.Array:
    """What keys are given, beside a sublayer's input `x_BLD`."""
    return x_BLD if self.attended_BLD is None else self.attended_BLD

  def read_by_values(self, x_BLD: jax.Array) -> jax.Array:
    """What values are given, beside a sublayer's input `x_BLD`."""
    return self.read_by_experts(self.read_by_keys(x_BLD))

  def read_by_experts(self, x_BLD: jax.Array) -> jax.Array:
    """What experts are given, beside a sublayer's input `x_BLD`."""
    return x_BLD if self.plain_BLD is None else self.plain_BLD


class Left(flax.struct.PyTreeNode):
  """What a layer leaves behind besides the residual stream.

  Attributes:
    kv: the keys and values it attended with.
    map: the attention weights, where the context has a map; else None.
    cache: the context's, with the sequence's own keys and values; else None.
    source: the context's, with the memory's.
    observed: what somebody outside wants to know of this visit, by name.
  """

  kv: Any = None
  map: Any = None
  cache: Any = None
  source: Any = None
  observed: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
