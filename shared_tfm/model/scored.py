"""What a network's head makes of the residual stream."""

from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm.config.loops import exits
from shared_tfm.layers.cross_entropy import (
  by_positions,
  cross_entropy,
  in_pieces,
  on_device,
)
from shared_tfm.layers.embedding import Head
from shared_tfm.layers.heads import Classes, Spans
from shared_tfm.model.backbone import Backbone, Outputs
from shared_tfm.model.leaving import left_at


class Scored(Backbone):
  """A network with its head."""

  def setup(self) -> None:
    """Declares the rooms of the model."""
    super().setup()
    if 'tokens' in self.model.head:
      self.head = Head(self.model, self.train)
    if 'classes' in self.model.head:
      self.classes = Classes(self.model, self.train)
    if self.model.head == 'spans':
      self.spans = Spans(self.model)

  def scores(
    self, hidden_BLD: jax.Array, mask_BL: jax.Array | None = None
  ) -> jax.Array:
    """Logits of a normalised residual stream: float32 (B, L, V)."""
    score = self.head.scorer(self.embedding)
    return score(self.head.transform(hidden_BLD, mask_BL))

  def token_losses(
    self,
    hidden_BLD: jax.Array,
    targets_BL: jax.Array,
    smoothing: float = 0.0,
    mask_BL: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of `scores`, and whether the target scores best: (B, L).

    No more than `model.logits_mb` of logits are held at once by a device, of
    all exits that a training step scores so together.

    Args:
      hidden_BLD: a normalised residual stream.
      targets_BL: the tokens to be told.
      smoothing: see `cross_entropy`.
      mask_BL: False at padding.
    """
    return in_pieces(
      self.head.scorer(self.embedding),
      self.head.transform(hidden_BLD, mask_BL),
      targets_BL,
      smoothing,
      self.model.logits_mb * 2**20 // exits(self.model),
    )

  def __call__(
    self,
    tokens_BL: jax.Array,
    mask_BL: jax.Array | None = None,
    types_BL: jax.Array | None = None,
    **source: Any,
  ) -> Any:
    """What the head scores, as float32. Arguments as `outputs`.

    Returns:
      Logits over the vocabulary, (B, L, V), of head tokens; over the classes,
      (B, classes); of an answer's first and last position, (B, L, 2). Of head
      tokens_classes a pair of the first two.
    """
    if self.model.head == 'tokens':
      return self.exited(tokens_BL, mask_BL, types_BL, **source)[0]
    x_BLD = self.hidden(tokens_BL, mask_BL, types_BL)
    if self.model.head == 'spans':
      return self.spans(x_BLD)
    classes = self.classes(x_BLD, mask_BL)
    if self.model.head == 'classes':
      return classes
    return self.scores(x_BLD, mask_BL), classes

  def exited(
    self,
    tokens_BL: jax.Array,
    mask_BL: jax.Array | None = None,
    *args: Any,
    **source: Any,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Logits where each token leaves the loop, and the mean number of loops.

    Arguments as `outputs`; the number is None where depth does not adapt.
    """
    outputs = self.outputs(tokens_BL, mask_BL, *args, **source)
    logits_BLV, exit_BL = self.read_at_exits(outputs, mask_BL)
    if exit_BL is None:
      return logits_BLV, _loops(outputs)
    return logits_BLV, _mean(1.0 + exit_BL, mask_BL)

  def read_at_exits(
    self, outputs: Outputs, mask_BL: jax.Array | None
  ) -> tuple[jax.Array, jax.Array | None]:
    """Logits where each token leaves, and at which exit; None: there is one."""
    if self.model.depth.criterion == 'none':
      return self.scores(outputs.hidden_XBLD[-1], mask_BL), None
    return self._left(
      self.head.scorer(self.embedding), *self._exits(outputs, mask_BL)
    )

  def _exits(self, outputs: Outputs, mask_BL: jax.Array | None) -> Any:
    """What `_left` takes: what is scored at each exit, its stream and weight.

    Positions come first, (B, L, X, ...).
    """
    scored = [
      self.head.transform(x_BLD, mask_BL) for x_BLD in outputs.hidden_XBLD
    ]
    each = jnp.stack(scored), outputs.hidden_XBLD, outputs.weight_XBL
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 2), each)

  def _left(
    self, score: Any, x_BLXE: Any, hidden_BLXD: Any, weight_BLX: Any
  ) -> tuple[jax.Array, jax.Array]:
    """Logits where each token leaves the loop, and which exit that is."""
    x_XBLE, hidden_XBLD, weight_XBL = jax.tree.map(
      lambda a: jnp.moveaxis(a, 2, 0), (x_BLXE, hidden_BLXD, weight_BLX)
    )
    logits_XBLV = score(x_XBLE)
    exit_BL = left_at(self.model, hidden_XBLD, logits_XBLV, weight_XBL)
    logits_1BLV = jnp.take_along_axis(
      logits_XBLV, exit_BL[None, :, :, None], axis=0
    )
    return logits_1BLV[0], exit_BL

  def exit_losses(
    self,
    targets_BL: jax.Array,
    tokens_BL: jax.Array,
    mask_BL: jax.Array | None = None,
    *args: Any,
    **source: Any,
  ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """`token_losses` where each token leaves the loop; loops as `exited`."""
    outputs = self.outputs(tokens_BL, mask_BL, *args, **source)
    if self.model.depth.criterion == 'none':
      x_BLD = outputs.hidden_XBLD[-1]
      found = self.token_losses(x_BLD, targets_BL, mask_BL=mask_BL)
      return *found, _loops(outputs)
    score = self.head.scorer(self.embedding)

    def piece(targets_BC: jax.Array, *each: Any) -> Any:
      logits_BCV, exit_BC = self._left(score, *each)
      hits_BC = jnp.argmax(logits_BCV, axis=-1) == targets_BC
      return cross_entropy(logits_BCV, targets_BC), hits_BC, 1.0 + exit_BC

    each = self._exits(outputs, mask_BL)
    logits_BLV = jax.eval_shape(score, each[0][:, :, 0])
    losses_BL, hits_BL, loops_BL = by_positions(
      piece,
      (targets_BL, *each),
      len(outputs.hidden_XBLD) * on_device(logits_BLV),
      self.model.logits_mb * 2**20,
    )
    return losses_BL, hits_BL, _mean(loops_BL, mask_BL)


def _mean(loops_BL: jax.Array, mask_BL: jax.Array | None) -> jax.Array:
  """The mean number of loops, of tokens that are no padding."""
  if mask_BL is None:
    return jnp.mean(loops_BL)
  return jnp.sum(loops_BL * mask_BL) / jnp.maximum(jnp.sum(mask_BL), 1)


def _loops(outputs: Outputs) -> jax.Array | None:
  """The mean number of loops, where the last exit is the only one."""
  several = len(outputs.hidden_XBLD) > 1
  return None if several else outputs.metrics.get('loops')
