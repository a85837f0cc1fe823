"""The stack: one scan over depth, where sharing and layers meet.

The body of the scan picks this visit's rows from the bank and runs an ordinary
layer on them. Parameters are broadcast to every step of the scan (one set,
however deep); everything else a layer keeps (batch statistics, dropout keys)
has one slot per visit. Depth costs no compile time, whatever the scheme.

`model.remat_group = k` keeps only every k-th layer's input in the first place,
and recomputes the k layers in between one group at a time; `visit.py` says what
is kept inside a layer.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.config.loops import is_plain, loops
from shared_tfm.config.shapes import components, mixes
from shared_tfm.layers.context import Context
from shared_tfm.layers.layer import Layer
from shared_tfm.model import (
  balance,
  depth,
  halting,
  leaving,
  recurrence,
  reused,
  routing,
  visit,
)
from shared_tfm.model.kept import Kept
from shared_tfm.sharing import bank, links, narrow
from shared_tfm.sharing.component import Component

RULES = {**recurrence.RULES, **halting.RULES, **routing.RULES}


class Stack(nn.Module):
  """All visits, in order."""

  model: Model
  train: bool = False

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    context: Context,
    controls: dict[str, Any] | None = None,
    lender: Mapping[str, Any] | None = None,
    kept: Kept | None = None,
    score: Any = None,
  ) -> depth.Ran:
    """Runs the residual stream (B, L, D) through its visits.

    Args:
      x_BLD: the embedded sequence.
      context: what every visit sees.
      controls: the parameters of `depth.Controls`, where the rule has any.
      lender: the bank of the stack that some components' rows are stored in.
      kept: what the visits kept of earlier tokens; None: there are none.
      score: of `leaving.until_left`, which leaves out the loops behind the one
        at which a token leaves; None: all are run.

    Returns:
      The stream at each exit. Its state holds what the layers observed, by
      name, with a leading axis of visits.
    """
    m = self.model
    layer = Layer(m, self.train, parent=None)
    found, leaves = components(m), layout(m)
    stored = self._bank(found, leaves)
    if lender is not None:
      stored = bank.borrowed(stored, lender, found, leaves)
    tables = self._tables(found)
    if m.shared_gradient == 'mean':
      stored = links.scaled_by_visits(stored, found, leaves, tables)
    stored = narrow.cast(
      stored, found, leaves, m.precision.compute, _is_multiplied
    )
    state = self._collections(layer)
    dropout = self.make_rng('dropout') if self.train and m.dropout else None
    kept = kept and kept.run(0)
    places = kept.places if kept else x_BLD.shape[1]
    (kv, kv_slots), (maps, map_slots) = reused.slots(m, x_BLD, places)
    past = past_slots = None
    if kept is None:
      past, past_slots = reused.loop_slots(m, x_BLD)
    visits = visit.PerVisit(
      index=jnp.arange(m.num_layers),
      rows=_here(tables, found),
      first=_here(visit.first_visits(tables), found)
      if m.shared_gradient == 'owner'
      else None,
      state={name: kept.value for name, kept in state.items()},
      kv=kv,
      map=maps,
      past=past,
      kept=kept and kept.plan(m, leaves),
    )
    carry = visit.Carry(x_BLD, kv_slots, map_slots, past_slots, kept)

    def run(stored: Any, context: Context, carry: Any, this: Any) -> Any:
      return visit.visit(layer, leaves, stored, dropout, context, carry, this)

    if is_plain(m):
      body = functools.partial(run, stored, context)
      carry, (after, observed) = visit.over_visits(m, body, carry, visits)
      for name, held in state.items():
        if self.is_mutable_collection(name):
          held.value = after[name]
      ran = depth.Ran(carry.x_BLD[None], carry.replace(observed=observed))
    else:
      ran = self._looped(
        run, stored, context, controls or {}, carry, visits, score
      )
    found_losses = balance.losses(
      m, visits.rows, ran.state.observed, context.mask_BL
    )
    return ran.replace(losses={**ran.losses, **found_losses})

  def _looped(
    self,
    run: Any,
    stored: Any,
    context: Context,
    controls: dict[str, Any],
    carry: visit.Carry,
    visits: visit.PerVisit,
    score: Any,
  ) -> depth.Ran:
    """Prelude, the core by the rule of depth, and the coda at every exit."""
    m = self.model
    p, c, times, k = loops(m)
    prelude, core, coda = (
      jax.tree.map(lambda a, part=part: a[part], visits)
      for part in (
        slice(p),
        slice(p, p + c * times),
        slice(p + c * times, None),
      )
    )
    core = jax.tree.map(lambda a: a.reshape(times, c, *a.shape[1:]), core)

    def scan(stored: Any, carry: Any, these: Any, context: Context) -> Any:
      body = functools.partial(run, stored, context)
      return visit.over_visits(m, body, carry, these)[0]

    def loop(stored: Any, carry: Any, i: Any, context: Context) -> Any:
      """The core's visits; further loops than the table has repeat its last."""
      these = jax.tree.map(lambda a: a[jnp.minimum(i, times - 1)], core)
      these = these.replace(index=p + i * c + jnp.arange(c))
      return scan(stored, carry, these, context)

    carry = self._observing(
      functools.partial(run, stored, context), carry, visits
    )
    if p:
      carry = scan(stored, carry, prelude, context)
    drawn = self.has_rng('depth') and self.train
    core_of = depth.Core(
      model=m,
      loops=loops(m),
      controls=controls,
      run=functools.partial(loop, stored),
      frozen=functools.partial(loop, jax.lax.stop_gradient(stored)),
      context=context,
      train=self.train,
      key=self.make_rng('depth') if drawn else jax.random.key(0),
    )

    def to_exit(state: Any, i: jax.Array) -> Any:
      """Through the coda, which keeps apart what each exit made of a text."""
      if not k:
        return state
      kept = state.kept and state.kept.run(i)
      state = scan(stored, state.replace(kept=kept), coda, context)
      return state.replace(kept=kept and state.kept.run(0))

    if score is not None:
      ran = leaving.until_left(core_of, carry, to_exit, score)
      kept = ran.state.kept.filled(
        m, layout(m), ran.loops_BL, context.positions_BL
      )
      return ran.replace(state=ran.state.replace(kept=kept))
    ran = RULES[m.depth.rule](core_of, carry)
    if not k:
      return ran

    def at_exit(kept: Any, this: Any) -> Any:
      i, x_BLD = this
      state = to_exit(ran.state.replace(x_BLD=x_BLD, kept=kept), i)
      return state.kept, state.replace(kept=None)

    kept = ran.state.kept and ran.state.kept.run(0)
    numbered = jnp.arange(len(ran.x_XBLD)), ran.x_XBLD
    kept, exits = jax.lax.scan(at_exit, kept, numbered)
    state = jax.tree.map(lambda a: a[-1], exits)
    return ran.replace(x_XBLD=exits.x_BLD, state=state.replace(kept=kept))

  def _observing(self, body: Any, carry: Any, visits: Any) -> Any:
    """The carry with room for what every visit observes."""
    this = jax.tree.map(lambda a: a[0], visits)
    _, (_, observed) = jax.eval_shape(body, carry, this)
    room = jax.tree.map(
      lambda s: jnp.zeros((self.model.num_layers, *s.shape), s.dtype), observed
    )
    return carry.replace(observed=room)

  def _tables(self, found: Mapping[str, Component]) -> visit.Tables:
    """The rows that visits read, (visits, levels): constants, or state.

    Tables that may change stand in the collection 'tables', so that changing
    them compiles nothing.
    """
    start = {n: jnp.array(c.owners).T for n, c in found.items() if c.owners}
    if self.model.tables == 'fixed':
      return start
    kept: Any = self.variable('tables', 'owners', lambda: start)
    return kept.value

  def _bank(
    self, found: Mapping[str, Component], leaves: bank.Layout
  ) -> dict[str, Any]:
    """Declares the stored parameters: a tree for each level that has any."""
    init = functools.partial(_init, self.model)
    stored = {}
    for level in bank.levels(found, leaves):
      stored[links.group(level)] = self.param(
        links.group(level),
        lambda key, level=level: bank.init_level(
          level, init, found, leaves, key
        ),
      )
    if mixes(self.model):
      stored['mix'] = self.param(
        'mix', lambda key: bank.init_mix(found, leaves, key)
      )
    return stored

  def _collections(self, layer: Layer) -> dict[str, Any]:
    """Declares every other collection of a layer, with a slot per visit."""
    shapes = jax.eval_shape(
      lambda: layer.init(jax.random.key(0), *_blank(self.model))
    )

    def start(name: str) -> Any:
      first = layer.init(jax.random.key(0), *_blank(self.model))[name]
      return jax.tree.map(
        lambda a: jnp.repeat(a[None], self.model.num_layers, axis=0), first
      )

    return {
      name: self.variable(name, 'layer', start, name)
      for name in shapes
      if name != 'params'
    }


def _here(tables: visit.Tables, found: Mapping[str, Component]) -> visit.Tables:
  """The part of every table that is about this stack's own visits."""
  return {name: rows[found[name].here] for name, rows in tables.items()}


def _is_multiplied(path: tuple[str, ...]) -> bool:
  """Whether a tensor is rounded to the compute dtype before it is used."""
  return path[-1] == 'kernel' and not any('router' in name for name in path)


@functools.lru_cache
def layout(model: Model) -> bank.Layout:
  """Every tensor of a layer, and the component it follows."""
  shapes = jax.eval_shape(functools.partial(_init, model), jax.random.key(0))
  units = {
    'heads': model.num_heads,
    'kv_heads': model.num_kv_heads,
    'mlp': model.experts.ff_width if model.experts.num_ff else model.d_ff,
  }
  return bank.layout(shapes, components(model), units)


def _init(model: Model, key: jax.Array) -> Any:
  """One layer's parameters."""
  return Layer(model, parent=None).init(key, *_blank(model))['params']


def _blank(model: Model) -> tuple[jax.Array, Context]:
  """The smallest input of a layer."""
  x_BLD = jnp.zeros((1, 1, model.d_model), jnp.dtype(model.precision.compute))
  memory_BSD = None
  if model.family == 'encoder_decoder':
    memory_BSD = jnp.zeros((1, 1, model.memory_width), x_BLD.dtype)
  return x_BLD, Context(jnp.zeros((1, 1), jnp.int32), memory_BSD=memory_BSD)
