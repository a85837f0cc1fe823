"""The Transformer: embeddings, the stack of visits, a head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm import config as configs
from shared_tfm.config.loops import loops
from shared_tfm.layers.context import Context
from shared_tfm.model import ticking
from shared_tfm.model.scored import Scored


class Transformer(Scored):
  """A decoder-only language model, a bidirectional encoder, or both in one.

  Its parameters: 'embedding', 'stack' (the bank), 'norm' (the final norm, which
  'post' placement does not have), 'head', 'classes' or 'spans' (what is
  scored), 'relative' (where scores gain by distance), and 'controls' of an
  adaptive depth.
  An encoder-decoder has in 'stack' its decoder, and besides 'source' (the
  source's embedding), 'encoder' (a bank), 'encoder_norm', 'encoder_relative'
  and 'encoder_controls'.
  Where the first and last layers are of another width, they are in 'prelude'
  and 'coda', what changes the width in 'core_in' and 'core_out', and the same
  for the encoder in 'encoder_prelude' and so on.
  """

  def following(
    self,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    mask_BT: jax.Array,
    kept: dict[str, Any],
    leaves: bool = False,
    **source: Any,
  ) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """What follows the last of some tokens, and what is kept of them.

    Args:
      tokens_BT: that stand behind those that were kept.
      positions_BT: where.
      mask_BT: False where there is none; at least one in each row.
      kept: of `empty`, or of the call before.
      leaves: whether the one token of each row does without the loops behind
        the one that the criterion of depth lets it leave at.
      **source: as of `outputs`, in the first call.

    Returns:
      Logits, float32 (B, V), after how many loops they were read, (B,), and
      what is kept.
    """
    variables, alone = self.variables, Transformer(self.model, parent=None)

    def score(x_BLD: jax.Array) -> Any:
      return alone.apply(variables, x_BLD, method='ended')

    leaves = leaves and self.model.depth.criterion != 'none'
    outputs = self.outputs(
      tokens_BT,
      mask_BT,
      positions_BL=positions_BT,
      kept=kept,
      score=score if leaves else None,
      **source,
    )
    assert outputs.kept is not None
    if outputs.logits_BLV is not None and outputs.loops_BL is not None:
      return outputs.logits_BLV[:, 0], outputs.loops_BL[:, 0], outputs.kept
    places_T = jnp.arange(tokens_BT.shape[1])
    last_B = jnp.max(jnp.where(mask_BT, places_T[None], 0), axis=1)

    def at_last(values_XBTD: jax.Array) -> jax.Array:
      return jnp.take_along_axis(
        values_XBTD, last_B[None, :, None, None], axis=2
      )

    weight_XBL = outputs.weight_XBL
    if weight_XBL is not None:
      weight_XBL = at_last(weight_XBL[..., None])[..., 0]
    last = outputs.replace(
      hidden_XBLD=at_last(outputs.hidden_XBLD), weight_XBL=weight_XBL
    )
    logits_B1V, exit_B1 = self.read_at_exits(last, None)
    times = loops(self.model).times
    loops_B = jnp.full(len(logits_B1V), times)
    if exit_B1 is not None:
      loops_B = 1 + exit_B1[:, 0]
    return logits_B1V[:, 0], loops_B, outputs.kept

  def tick(
    self,
    tokens_B: jax.Array,
    positions_B: jax.Array,
    live_B: jax.Array,
    running: ticking.Running,
    kept: dict[str, Any],
  ) -> tuple[ticking.Ticked, dict[str, Any]]:
    """Runs the core once, for the newest token of every text; see ticking.py.

    Args:
      tokens_B: the newest token of each text.
      positions_B: where it stands.
      live_B: which texts take part; of others nothing changes.
      running: of the tick before, or of `ticking.begin`.
      kept: of `empty`, or of the call before.
    """
    variables, alone = self.variables, Transformer(self.model, parent=None)

    def score(x_BLD: jax.Array) -> Any:
      return alone.apply(variables, x_BLD, method='ended')

    positions_B1 = positions_B[:, None]
    x_B1D = self.embedding(tokens_B[:, None], positions_B1)
    ticked: ticking.Ticked = self.stack(
      x_B1D,
      Context(positions_B1, bias_BHLM=self._bias(tokens_B, positions_B1, kept)),
      self.controls(),
      kept=kept['stack'],
      score=score,
      running=(running, live_B),
    )
    return ticked, {'stack': ticked.state.kept}

  def ended(self, x_BLD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The last residual stream, normalised, and its logits."""
    if self.model.norm_position != 'post':
      x_BLD = self.norm(x_BLD)
    return x_BLD, self.scores(x_BLD)


def build(config: Any, train: bool = False) -> Transformer:
  """The model of a config.

  Only training multiplies float8, whose scales are made of all that a batch
  holds: what a text is given elsewhere does not depend on what stands beside
  it.

  Args:
    config: a ConfigDict, a dict of fields, or a Config.
    train: whether dropout acts and batch statistics are updated.

  Returns:
    An unbound Linen module: `build(c).init(key, tokens)`, `.apply(...)`.

  Raises:
    BadInput: see `config.cross`.
  """
  model = configs.cross(config).model
  if not train:
    model = dataclasses.replace(model, dtype=model.precision.outside.name)
  return Transformer(model, train)
