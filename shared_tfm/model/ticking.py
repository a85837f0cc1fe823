"""Texts of one batch, each at a loop of its own.

The weights of a core that loops are the same at every loop. So a batch may hold
tokens at different depths: a tick runs the core once for all of them, and who
has left the loop begins with its next token while others go on.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.config.loops import changing, loops
from shared_tfm.layers.context import Context
from shared_tfm.model.depth import Core
from shared_tfm.model.leaving import COMPARING, Exit, reached

RULES = ('fixed', 'random', 'ponder', 'exits')


class Running(flax.struct.PyTreeNode):
  """Where each text's newest token is.

  Attributes:
    loop_B: the loop that it runs next; 0: it begins.
    first_B1D: what the core was given.
    x_B1D: what the last loop made of that.
    before: the exit behind the last loop.
  """

  loop_B: jax.Array
  first_B1D: jax.Array
  x_B1D: jax.Array
  before: Exit


class Ticked(flax.struct.PyTreeNode):
  """What a tick comes to.

  Attributes:
    running: for the next.
    left_B: which tokens have left the loop.
    logits_BV: what follows those; of others, nothing that counts.
    state: with what is kept.
  """

  running: Running
  left_B: jax.Array
  logits_BV: jax.Array
  state: Any


def fits(model: Model) -> bool:
  """Whether tokens may leave the loop, and share a batch at any depth."""
  return (
    model.depth.criterion != 'none'
    and model.depth.rule in RULES
    and loops(model).times > 1
    and not changing(model)
    and not model.core_width
    and model.embed_project == 'linear'
    and model.tables == 'fixed'
    and model.norm != 'batchnorm'
    and model.quantise.activations == 'none'
    and not (model.sharing.map_source or model.sharing.kv_source)
  )


def begin(model: Model, batch: int) -> Running:
  """Nothing has begun yet."""
  x_B1D = jnp.zeros((batch, 1, model.d_model), model.precision.compute)
  logits_B1V = jnp.zeros((batch, 1, model.vocab_size))
  asks = model.depth.criterion == 'cdf'
  halted_B1 = jnp.zeros((batch, 1)) if asks else None
  before = Exit(x_B1D, logits_B1V, halted_B1)
  return Running(jnp.zeros(batch, jnp.int32), x_B1D, x_B1D, before)


def tick(
  core: Core,
  state: Any,
  running: Running,
  live_B: jax.Array,
  prelude: Callable[[Any, Context], Any],
  coda: Callable[[Any, jax.Array, Context], Any],
  score: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
) -> Ticked:
  """Runs the core once for every text that takes part.

  Args:
    core: its `run` takes a loop for each row of the batch.
    state: with the newest tokens embedded, and what is kept.
    running: of the tick before.
    live_B: which texts take part; of others nothing changes.
    prelude: (state, context) -> the state before the core.
    coda: (state, loops, context) -> the state behind the coda.
    score: see `leaving.until_left`.

  Returns:
    What it comes to; slots of loops left out are yet to be filled.
  """
  model, times = core.model, core.loops.times
  loop_B, before = running.loop_B, running.before
  fresh_B = live_B & (loop_B == 0)

  def of(rows_B: jax.Array) -> Core:
    """A core in which other rows write nothing: their place is nowhere."""
    context = core.context
    positions_B1 = jnp.where(
      rows_B[:, None], context.positions_BL, state.kept.places
    )
    context = context.replace(positions_BL=positions_B1)
    return dataclasses.replace(core, context=context)

  def chosen(rows_B: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    axes = tuple(range(1, new.ndim))
    return jnp.where(jnp.expand_dims(rows_B, axes), new, old)

  state = prelude(state, of(fresh_B).context)
  first_B1D = chosen(fresh_B, state.x_BLD, running.first_B1D)
  x_B1D = chosen(fresh_B, core.start(first_B1D), running.x_B1D)
  state = of(live_B).step(state.replace(x_BLD=x_B1D), loop_B, first_B1D)
  halted_B1 = None
  if before.halted_BL is not None:
    going_B1 = 1 - before.halted_BL
    going_B1 = chosen(fresh_B, jnp.ones_like(going_B1), going_B1)
    halted_B1 = 1 - going_B1 * (1 - core.halting(state.x_BLD))
  end = coda(state, loop_B, of(live_B).context)
  hidden_B1D, logits_B1V = score(end.x_BLD)
  now = Exit(hidden_B1D, logits_B1V, halted_B1)
  hit_B = jnp.zeros_like(live_B)
  if model.depth.criterion != 'none':
    hit_B = reached(model, now, before)[:, 0]
  if model.depth.criterion in COMPARING:
    hit_B &= loop_B > 0
  left_B = live_B & (hit_B | (loop_B == times - 1))
  after = Running(
    loop_B=jnp.where(live_B, jnp.where(left_B, 0, loop_B + 1), loop_B),
    first_B1D=first_B1D,
    x_B1D=chosen(live_B, state.x_BLD, running.x_B1D),
    before=jax.tree.map(lambda a, b: chosen(live_B, a, b), now, before),
  )
  return Ticked(after, left_B, logits_B1V[:, 0], end)
