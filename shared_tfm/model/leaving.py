"""When a token leaves the loop, by what is known of it after each.

    cdf          the halting distribution reaches the threshold (Ouro)
    probability  the likeliest token has more than the threshold
    entropy      of the prediction over log V, is below it
    kl           from the last exit's prediction to this one's, is below it
                 (Huginn, 2502.05171, section 6.1)
    latent       the stream's relative change since the last exit is below it
    argmax       the likeliest token is the last exit's

A text that is written token by token can do without the loops that are left.
A later token may run them, and then attends to what the last loop that did run
made of this one, layer by layer: the rule of Huginn (section 6.1).
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.model.depth import Core, Ran

COMPARING = ('kl', 'latent', 'argmax')  # criteria that look at two exits


class Exit(flax.struct.PyTreeNode):
  """What is known after a loop.

  Attributes:
    hidden_BLD: the normalised stream.
    logits_BLV: what the head makes of it.
    halted_BL: the probability of having halted by now; None: nobody asks.
  """

  hidden_BLD: jax.Array
  logits_BLV: jax.Array
  halted_BL: jax.Array | None = None


def reached(model: Model, now: Exit, before: Exit) -> jax.Array:
  """Whether the criterion holds at an exit: booleans (B, L).

  Args:
    model: says which criterion.
    now: the exit.
    before: the one before it; any at the first, where what compares does not
      hold.
  """
  depth = model.depth
  log_BLV = jax.nn.log_softmax(now.logits_BLV, axis=-1)
  p_BLV = jnp.exp(log_BLV)
  if depth.criterion == 'cdf':
    assert now.halted_BL is not None
    return now.halted_BL >= depth.threshold
  if depth.criterion == 'probability':
    return jnp.max(p_BLV, axis=-1) > depth.threshold
  if depth.criterion == 'entropy':
    entropy_BL = -jnp.sum(p_BLV * log_BLV, axis=-1)
    return entropy_BL / jnp.log(model.vocab_size) < depth.threshold
  if depth.criterion == 'kl':
    change_BLV = log_BLV - jax.nn.log_softmax(before.logits_BLV, axis=-1)
    return jnp.sum(p_BLV * change_BLV, axis=-1) < depth.threshold
  if depth.criterion == 'latent':
    x_BLD = now.hidden_BLD.astype(jnp.float32)
    moved_BLD = x_BLD - before.hidden_BLD.astype(jnp.float32)
    moved_BL = jnp.linalg.norm(moved_BLD, axis=-1)
    return moved_BL / jnp.linalg.norm(x_BLD, axis=-1) < depth.threshold
  if depth.criterion == 'argmax':
    best_BL = jnp.argmax(now.logits_BLV, axis=-1)
    return best_BL == jnp.argmax(before.logits_BLV, axis=-1)
  return jnp.zeros(p_BLV.shape[:2], bool)  # none


def left_at(
  model: Model,
  hidden_XBLD: jax.Array,
  logits_XBLV: jax.Array,
  weight_XBL: jax.Array | None,
) -> jax.Array:
  """The exit at which each token leaves the loop: integers (B, L).

  It is the first at which the criterion holds, or the last.
  """
  halted_XBL = None if weight_XBL is None else jnp.cumsum(weight_XBL, axis=0)
  every = Exit(hidden_XBLD, logits_XBLV, halted_XBL)
  first = jax.tree.map(lambda a: jnp.concatenate([a[:1], a[:-1]]), every)
  reached_XBL = jax.vmap(lambda now, then: reached(model, now, then))(
    every, first
  )
  if model.depth.criterion in COMPARING:
    reached_XBL = reached_XBL.at[0].set(False)
  return jnp.argmax(reached_XBL.at[-1].set(True), axis=0)


def until_left(
  core: Core,
  state: Any,
  coda: Callable[[Any, jax.Array], Any],
  score: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
) -> Ran:
  """Loops until all tokens have left: one of each text, with texts kept.

  Args:
    core: of a rule that has a criterion.
    state: before the first loop.
    coda: (state, loop) -> the state behind the coda.
    score: the stream behind the coda -> (normalised, logits).

  Returns:
    One exit: where each token left; its logits and its number of loops, too.
    The slots of loops that were left out are yet to be filled.
  """
  model, times = core.model, core.loops.times
  first_BLD = state.x_BLD
  state = state.replace(x_BLD=core.start(first_BLD))
  shape = first_BLD.shape[:2]
  asks = model.depth.criterion == 'cdf'

  def loop(carry: Any) -> Any:
    i, state, x_BLD, out, before, left_BL, loops_BL = carry
    state = core.step(state, i, first_BLD)
    halted_BL = None
    if asks:
      going_BL = (1 - before.halted_BL) * (1 - core.halting(state.x_BLD))
      halted_BL = 1 - going_BL
    end = coda(state, i)
    hidden_BLD, logits_BLV = score(end.x_BLD)
    now = Exit(hidden_BLD, logits_BLV, halted_BL)
    hit_BL = reached(model, now, before)
    if model.depth.criterion in COMPARING:
      hit_BL &= i > 0

    def kept(old: jax.Array, new: jax.Array) -> jax.Array:
      axes = tuple(range(2, new.ndim))
      return jnp.where(jnp.expand_dims(left_BL, axes), old, new)

    return (
      i + 1,
      state.replace(kept=end.kept),
      kept(x_BLD, end.x_BLD),
      jax.tree.map(kept, out, now),
      now,
      left_BL | hit_BL,
      loops_BL + ~left_BL,
    )

  def going(carry: Any) -> jax.Array:
    return (carry[0] < times) & ~jnp.all(carry[5])

  ends = jax.eval_shape(
    lambda state: score(coda(state, jnp.zeros((), jnp.int32)).x_BLD), state
  )
  hidden_BLD, logits_BLV = (jnp.zeros(end.shape, end.dtype) for end in ends)
  blank = Exit(hidden_BLD, logits_BLV, jnp.zeros(shape) if asks else None)
  no_BL, none_BL = jnp.zeros(shape, bool), jnp.zeros(shape, jnp.int32)
  zero = jnp.zeros((), jnp.int32)
  carry = (zero, state, jnp.zeros_like(first_BLD), blank, blank, no_BL, none_BL)
  _, state, x_BLD, out, _, _, loops_BL = jax.lax.while_loop(going, loop, carry)
  return Ran(x_BLD[None], state, logits_BLV=out.logits_BLV, loops_BL=loops_BL)
