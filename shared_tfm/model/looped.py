"""A stack whose core loops: prelude, the core by a rule of depth, coda."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.config.loops import loops
from shared_tfm.layers.context import Context
from shared_tfm.model import (
  depth,
  halting,
  leaving,
  recurrence,
  routing,
  ticking,
  visit,
)
from shared_tfm.sharing.bank import Layout

RULES = {**recurrence.RULES, **halting.RULES, **routing.RULES}


@dataclasses.dataclass(frozen=True)
class Parts:
  """What the visits of a stack are made of.

  Attributes:
    model: of the stack.
    run: (stored, context, carry, visit) -> as `visit.visit`.
    stored: the bank.
    context: what every visit sees.
    controls: the parameters of `depth.Controls`.
    leaves: the layer's tensors.
    visits: all of them.
    train: whether losses are wanted.
    key: for what is drawn.
  """

  model: Model
  run: Callable[..., Any]
  stored: Any
  context: Context
  controls: dict[str, Any]
  leaves: Layout
  visits: visit.PerVisit
  train: bool
  key: jax.Array

  def part(self, start: int, end: int) -> visit.PerVisit:
    """Some of the visits."""
    return jax.tree.map(lambda a: a[start:end], self.visits)

  def scan(
    self,
    carry: visit.Carry,
    these: visit.PerVisit,
    context: Context | None = None,
    stored: Any = None,
  ) -> visit.Carry:
    """Runs some visits; with another context or bank, if there is one."""
    body = functools.partial(
      self.run, stored or self.stored, context or self.context
    )
    carry, _ = visit.over_visits(self.model, body, carry, these)
    return carry

  def core(self, loop: Callable[..., Any]) -> depth.Core:
    """The core as rules see it; `loop` as `Core.run`, with a bank in front."""
    return depth.Core(
      model=self.model,
      loops=loops(self.model),
      controls=self.controls,
      run=functools.partial(loop, self.stored),
      frozen=functools.partial(loop, jax.lax.stop_gradient(self.stored)),
      context=self.context,
      train=self.train,
      key=self.key,
    )

  def coda(self, state: Any, run: Any, context: Context | None = None) -> Any:
    """Through the coda, which keeps apart what each exit made of a text."""
    p, c, times, k = loops(self.model)
    if not k:
      return state
    state = state.replace(kept=state.kept and state.kept.run(run))
    behind = p + c * times
    state = self.scan(state, self.part(behind, behind + k), context)
    return state.replace(kept=state.kept and state.kept.run(0))


def looped(parts: Parts, carry: visit.Carry, score: Any) -> depth.Ran:
  """Prelude, the core by the rule of depth, and the coda at every exit.

  Args:
    parts: of the stack.
    carry: before the first visit.
    score: as of `Stack`.
  """
  m = parts.model
  p, c, times, k = loops(m)
  core = jax.tree.map(
    lambda a: a.reshape(times, c, *a.shape[1:]), parts.part(p, p + c * times)
  )

  def loop(stored: Any, carry: Any, i: Any, context: Context) -> Any:
    """The core's visits; further loops than the table has repeat its last."""
    these = jax.tree.map(lambda a: a[jnp.minimum(i, times - 1)], core)
    these = these.replace(index=p + i * c + jnp.arange(c))
    return parts.scan(carry, these, context, stored)

  carry = _observing(parts, carry)
  if p:
    carry = parts.scan(carry, parts.part(0, p))
  if score is not None:
    ran = leaving.until_left(parts.core(loop), carry, parts.coda, score)
    return _filled(parts, ran, ran.loops_BL)
  ran = RULES[m.depth.rule](parts.core(loop), carry)
  if not k:
    return ran

  def at_exit(kept: Any, this: Any) -> Any:
    i, x_BLD = this
    state = parts.coda(ran.state.replace(x_BLD=x_BLD, kept=kept), i)
    return state.kept, state.replace(kept=None)

  kept = ran.state.kept and ran.state.kept.run(0)
  numbered = jnp.arange(len(ran.x_XBLD)), ran.x_XBLD
  kept, exits = jax.lax.scan(at_exit, kept, numbered)
  state = jax.tree.map(lambda a: a[-1], exits)
  return ran.replace(x_XBLD=exits.x_BLD, state=state.replace(kept=kept))


def ticked(
  parts: Parts,
  carry: visit.Carry,
  score: Any,
  running: ticking.Running,
  live_B: jax.Array,
) -> ticking.Ticked:
  """The core once, each row of the batch at a loop of its own.

  Args:
    parts: of the stack.
    carry: the newest tokens, embedded.
    score: as of `Stack`.
    running: of the tick before.
    live_B: which rows take part.
  """
  p, c, times, _ = loops(parts.model)

  def loop(stored: Any, carry: Any, loop_B: jax.Array, context: Context) -> Any:
    """The first loop's visits; those of others have other slots alone."""
    index_CB = p + jnp.arange(c)[:, None] + c * loop_B[None]
    kept = jax.tree.map(lambda a: a[index_CB], parts.visits.kept)
    these = parts.part(p, p + c).replace(index=index_CB, kept=kept)
    return parts.scan(carry, these, context, stored)

  def prelude(state: Any, context: Context) -> Any:
    return parts.scan(state, parts.part(0, p), context) if p else state

  found = ticking.tick(
    parts.core(loop), carry, running, live_B, prelude, parts.coda, score
  )
  ran_B = jnp.where(found.left_B, running.loop_B + 1, times)
  return _filled(parts, found, ran_B[:, None])


def _filled(parts: Parts, found: Any, loops_BL: Any) -> Any:
  """What came of it, with the slots of loops that were left out."""
  state, m = found.state, parts.model
  positions_BL = parts.context.positions_BL
  kept = state.kept.filled(m, parts.leaves, loops_BL, positions_BL)
  return found.replace(state=state.replace(kept=kept))


def _observing(parts: Parts, carry: visit.Carry) -> visit.Carry:
  """The carry with room for what every visit observes."""
  this = jax.tree.map(lambda a: a[0], parts.visits)
  _, (_, observed) = jax.eval_shape(
    functools.partial(parts.run, parts.stored, parts.context), carry, this
  )
  room = jax.tree.map(
    lambda s: jnp.zeros((parts.model.num_layers, *s.shape), s.dtype), observed
  )
  return carry.replace(observed=room)
