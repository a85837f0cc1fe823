"""Embeddings, the stack of visits, and what stands around them."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from shared_tfm import config as configs
from shared_tfm.config import sides
from shared_tfm.errors import need
from shared_tfm.layers.context import Context
from shared_tfm.layers.embedding import Embedding
from shared_tfm.layers.norm import Norm
from shared_tfm.layers.patches import Patches
from shared_tfm.layers.position import RelativeBias
from shared_tfm.layers.width import Resize, Safe
from shared_tfm.model import kept as keeping
from shared_tfm.model.depth import Controls, Ran
from shared_tfm.model.stack import Stack
from shared_tfm.model.storage import layout
from shared_tfm.sharing import masks


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
    kept: by the name of what attends, keys and values of all tokens so far;
      None: they were not asked for.
    logits_BLV: where loops were left out, those of the only exit.
    loops_BL: how many loops each token ran, where halting or a router says so;
      where loops were left out, how many were not.
  """

  hidden_XBLD: jax.Array
  weight_XBL: jax.Array | None = None
  losses: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
  metrics: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
  kept: dict[str, Any] | None = None
  logits_BLV: jax.Array | None = None
  loops_BL: jax.Array | None = None


class Backbone(nn.Module):
  """Everything but the head."""

  model: configs.Model
  train: bool = False

  def setup(self) -> None:
    """Declares the rooms of the model."""
    reads = Patches if self.model.family == 'vision' else Embedding
    self.embedding: Any = reads(self.model, self.train)
    stacks = sides.stacks(self.model)
    for name, stack in stacks.items():
      setattr(self, name, Stack(stack, self.train))
    for name, width in sides.resizes(self.model).items():
      setattr(self, name, Resize(self.model, width, self.train))
    if self.model.position == 'relative':
      for name, side in sides.sides(self.model).items():
        at = '' if name == 'stack' else f'{name}_'
        setattr(self, f'{at}relative', RelativeBias(side))
    self.controls = Controls(stacks['stack'], self.train)
    if 'encoder' in stacks:
      self.source = Embedding(sides.sides(self.model)['encoder'], self.train)
      self.encoder_controls = Controls(stacks['encoder'], self.train)
      if self.model.norm_position != 'post':
        self.encoder_norm = Norm(self.model, self.train)
    if self.model.norm_position != 'post':
      self.norm = Norm(self.model, self.train)

  def outputs(
    self,
    tokens_BL: jax.Array,
    mask_BL: jax.Array | None = None,
    types_BL: jax.Array | None = None,
    *,
    source_BS: jax.Array | None = None,
    source_mask_BS: jax.Array | None = None,
    memory_BSD: jax.Array | None = None,
    positions_BL: jax.Array | None = None,
    kept: dict[str, Any] | None = None,
    score: Any = None,
  ) -> Outputs:
    """Runs everything but the head.

    Args:
      tokens_BL: integers below `vocab_size`; L at most `max_len`. Of family
        vision images instead, (B, `image_size`, `image_size`, `channels`).
      mask_BL: False at padding, which nobody attends to; None for no padding.
      types_BL: segment types below `type_vocab_size`; None for all zero.
      source_BS: what the encoder of an encoder-decoder reads, and only of such.
      source_mask_BS: False at the source's padding; None for no padding.
      memory_BSD: what `encoded` made of a source, in place of that source.
      positions_BL: where the tokens stand; None: from the first place on.
      kept: of `empty`, or of the outputs for the tokens in front of these.
        Then they attend to those, too, and no source is needed again.
      score: of `leaving.until_left`: loops behind the one at which a token
        leaves are left out; None: all are run.

    Raises:
      BadInput: a source is missing, or nobody would read it.
    """
    reads = source_BS is not None or memory_BSD is not None
    encodes = self.model.family == 'encoder_decoder'
    need(
      reads == encodes or (encodes and kept is not None),
      f'a source is for an encoder_decoder, which needs one; this model is of'
      f' family {self.model.family}',
    )
    bias_BHLM = self._bias(tokens_BL, positions_BL, kept)
    if positions_BL is None:
      positions_BL = self._positions(tokens_BL)
    losses, metrics, lender = {}, {}, None
    if source_BS is not None:
      encoded = self.encoded(source_BS, source_mask_BS)
      memory_BSD = encoded.hidden_XBLD[-1]
      losses, metrics = encoded.losses, encoded.metrics
    if encodes:
      there = self.encoder.variables
      lender = masks.applied(nn.unbox(there['params']), there.get('masks', {}))
    context = Context(
      positions_BL, mask_BL, memory_BSD, source_mask_BS, bias_BHLM=bias_BHLM
    )
    kept = None if kept is None else dict(kept)
    if self.model.family == 'vision':
      x_BLD = self.embedding(tokens_BL, positions_BL)
    else:
      x_BLD = self.embedding(
        tokens_BL, positions_BL, mask_BL, types_BL, kept=kept
      )
    ran = self._run('stack', self.controls, x_BLD, context, lender, kept, score)
    x_XBLD = ran.x_XBLD
    if self.model.norm_position != 'post':
      x_XBLD = self.norm(x_XBLD, None if mask_BL is None else mask_BL[None])
    return Outputs(
      x_XBLD,
      ran.weight_XBL,
      {**ran.losses, **losses},
      {**ran.metrics, **metrics},
      kept,
      ran.logits_BLV,
      ran.loops_BL,
    )

  def empty(
    self, batch: int, places: int, source_places: int = 0, policy: str = 'visit'
  ) -> dict[str, Any]:
    """What is kept of no tokens.

    Args:
      batch: B.
      places: the most tokens of a text.
      source_places: of an encoder-decoder's source.
      policy: what visits keep apart; see kept.py.

    Raises:
      BadInput: the policy does not fit the model.
    """
    found: dict[str, Any] = {
      name: keeping.empty(
        side, layout(side), batch, places, source_places, policy
      )
      for name, side in sides.stacks(self.model).items()
      if not name.startswith('encoder')
    }
    if self.model.embed_project == 'safe':
      found['embedding'] = Safe.empty(self.model, batch, places)
    return found

  def _positions(self, read: jax.Array) -> jax.Array:
    """0, 1, ... for every row that is read."""
    vision = self.model.family == 'vision'
    length = self.model.max_len if vision else read.shape[1]
    return jnp.broadcast_to(jnp.arange(length), (read.shape[0], length))

  def _bias(
    self,
    read: jax.Array,
    positions_BL: jax.Array | None = None,
    kept: dict[str, Any] | None = None,
    side: str = '',
  ) -> jax.Array | None:
    """What scores gain by distance; made once, and read by every visit.

    Args:
      read: tokens, or images.
      positions_BL: where they stand; None: all rows from the first place on.
      kept: as of `outputs`, whose places are attended to.
      side: of an encoder-decoder, 'encoder_' for that.
    """
    if self.model.position != 'relative':
      return None
    if positions_BL is None:
      positions_BL = self._positions(read[:1])
    keys_BM = positions_BL
    if kept is not None:
      keys_BM = jnp.arange(kept['stack'].places)[None]
    bias_BHLM: jax.Array = getattr(self, f'{side}relative')(
      positions_BL, keys_BM
    )
    return bias_BHLM

  def encoded(self, source_BS: jax.Array, mask_BS: jax.Array | None) -> Outputs:
    """The source as the decoder sees it; names begin with 'encoder_'."""
    positions_BS = self._positions(source_BS)
    table = self.embedding if self.model.tie_source else None
    x_BSD = self.source(source_BS, positions_BS, mask_BS, table=table)
    bias_BHSS = self._bias(source_BS, side='encoder_')
    context = Context(positions_BS, mask_BS, bias_BHLM=bias_BHSS)
    ran = self._run('encoder', self.encoder_controls, x_BSD, context)
    x_XBSD = ran.x_XBLD
    if self.model.norm_position != 'post':
      x_XBSD = self.encoder_norm(
        x_XBSD, None if mask_BS is None else mask_BS[None]
      )
    return Outputs(
      x_XBSD,
      losses={f'encoder_{name}': x for name, x in ran.losses.items()},
      metrics={f'encoder_{name}': x for name, x in ran.metrics.items()},
    )

  def _run(
    self,
    name: str,
    controls: Controls,
    x_BLD: jax.Array,
    context: Context,
    lender: Any = None,
    kept: dict[str, Any] | None = None,
    score: Any = None,
  ) -> Ran:
    """Runs a side, its first and last layer apart where widths differ.

    What is kept is replaced by what is kept afterwards.
    """

    def through(name: str, x_BLD: jax.Array, *args: Any) -> Ran:
      ran: Ran = getattr(self, name)(
        x_BLD, context, *args, kept=kept and kept[name], score=score
      )
      if kept:
        kept[name] = ran.state.kept
      return ran

    if not self.model.core_width:
      ran = through(name, x_BLD, controls(), lender)
      controls.after(ran)
      return ran
    at, mask_BL = ('' if name == 'stack' else f'{name}_'), context.mask_BL
    x_BLD = through(f'{at}prelude', x_BLD).x_XBLD[-1]
    x_BLC = getattr(self, f'{at}core_in')(x_BLD, mask_BL)
    x_BLC = through(name, x_BLC).x_XBLD[-1]
    x_BLD = getattr(self, f'{at}core_out')(x_BLC, mask_BL)
    return through(f'{at}coda', x_BLD)

  def hidden(self, *args: Any, **kwargs: Any) -> jax.Array:
    """The last residual stream, normalised: (B, L, D) in the compute dtype.

    Arguments as `outputs`.
    """
    return self.outputs(*args, **kwargs).hidden_XBLD[-1]
