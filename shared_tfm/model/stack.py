"""The stack: one scan over depth, where sharing and layers meet.

The body of the scan picks this visit's rows from the bank and runs an ordinary
layer on them. Parameters are broadcast to every step of the scan (one set,
however deep); everything else a layer keeps (batch statistics, dropout keys)
has one slot per visit. Depth costs no compile time, whatever the scheme.

`model.remat_group = k` keeps only every k-th layer's input in the first place,
and recomputes the k layers in between one group at a time; `recompute.py` says
what is kept inside a layer.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared_tfm.config import Model, pruning, shapes
from shared_tfm.config.loops import is_plain
from shared_tfm.config.shapes import components, mixes
from shared_tfm.layers.context import Context
from shared_tfm.layers.layer import Layer
from shared_tfm.layers.ranges import RANGES
from shared_tfm.model import (
  balance,
  depth,
  looped,
  ranges,
  reused,
  storage,
  ticking,
  visit,
)
from shared_tfm.model.kept import Kept
from shared_tfm.sharing import bank, links, masks, narrow
from shared_tfm.sharing.component import Component

# The collection that streams before and after every visit are sown in, (N, B,
# L, D), for who applies a network with it mutable.
WATCHED = 'intermediates'


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
    running: tuple[ticking.Running, jax.Array] | None = None,
  ) -> Any:
    """Runs the residual stream (B, L, D) through its visits.

    Args:
      x_BLD: the embedded sequence.
      context: what every visit sees.
      controls: the parameters of `depth.Controls`, where the rule has any.
      lender: the bank of the stack that some components' rows are stored in.
      kept: what the visits kept of earlier tokens; None: there are none.
      score: of `leaving.until_left`, which leaves out the loops behind the one
        at which a token leaves; None: all are run.
      running: of `ticking.tick`, with who takes part: the core is run once, for
        every row at a loop of its own. Then what is returned is `Ticked`.

    Returns:
      The stream at each exit. Its state holds what the layers observed, by
      name, with a leading axis of visits. While a plain stack is initialised,
      the stream as it came: visits declare nothing.
    """
    m = self.model
    layer = Layer(m, self.train, parent=None)
    found, leaves = components(m), storage.layout(m)
    stored = self._masked(self._bank(found, leaves))
    tables, state = self._tables(found), self._collections()
    if self.is_initializing() and is_plain(m):
      return depth.Ran(x_BLD[None], visit.Carry(x_BLD))  # all is declared
    if lender is not None:
      stored = bank.borrowed(stored, lender, found, leaves)
    if m.shared_gradient == 'mean' and not m.quantise.integers:
      stored = links.scaled_by_visits(stored, found, leaves, tables)
    stored = storage.rounded(m, stored)
    stored = narrow.cast(
      stored, found, leaves, m.precision.compute, shapes.is_multiplied
    )
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

    changing = [name for name in state if self._may_change(name)]
    watched = self.is_mutable_collection(WATCHED)

    def run(stored: Any, context: Context, carry: Any, this: Any) -> Any:
      return visit.visit(
        layer, leaves, stored, dropout, changing, watched, context, carry, this
      )

    drawn = self.has_rng('depth') and self.train
    parts = looped.Parts(
      model=m,
      run=run,
      stored=stored,
      context=context,
      controls=controls or {},
      leaves=leaves,
      visits=visits,
      train=self.train,
      key=self.make_rng('depth') if drawn else jax.random.key(0),
    )
    if running:
      return looped.ticked(parts, carry, score, *running)
    if is_plain(m):
      body = functools.partial(run, stored, context)
      carry, (after, observed) = visit.over_visits(m, body, carry, visits)
      if m.quantise.ranges == 'owner' and RANGES in after:
        same = ranges.common(after[RANGES], found, leaves, visits.rows)
        after = {**after, RANGES: same}
      for name, held in state.items():
        if name in after and self.is_mutable_collection(name):
          held.value = after[name]
      ran = depth.Ran(carry.x_BLD[None], carry.replace(observed=observed))
    else:
      ran = looped.looped(parts, carry, score)
    if watched:
      for name in visit.STREAMS:
        self.sow(WATCHED, name, ran.state.observed[name])
    found_losses = balance.losses(
      m, visits.rows, ran.state.observed, context.mask_BL
    )
    return ran.replace(losses={**ran.losses, **found_losses})

  def _may_change(self, collection: str) -> bool:
    """Whether visits may: ranges do so only where somebody wants to know."""
    if collection != RANGES:
      return True
    return self.is_mutable_collection(RANGES) and not self.is_initializing()

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
    start = storage.level if self.is_initializing() else storage.shaped_as_level
    stored = {}
    for level in bank.levels(found, leaves):
      init = functools.partial(start, self.model, level)
      stored[links.group(level)] = self.param(links.group(level), init)
    if mixes(self.model):
      stored['mix'] = self.param(
        'mix', lambda key: bank.init_mix(found, leaves, key)
      )
    return stored

  def _masked(self, stored: dict[str, Any]) -> dict[str, Any]:
    """The bank, masked; masks are state, and begin with letting all through."""
    names = self.model.masked
    masked = functools.partial(pruning.masked, names)
    found = {}
    for group in stored if names else ():
      if start := masks.ones(stored[group], masked):
        kept: Any = self.variable('masks', group, lambda start=start: start)
        found[group] = kept.value
    return masks.applied(stored, found)

  def _collections(self) -> dict[str, Any]:
    """Declares every other collection of a layer, with a slot per visit."""

    def start(name: str) -> Any:
      first = storage.layer(self.model, jax.random.key(0))[name]
      return jax.tree.map(
        lambda a: jnp.repeat(a[None], self.model.num_layers, axis=0), first
      )

    return {
      name: self.variable(name, 'layer', start, name)
      for name in storage.layer_shapes(self.model)
      if name != 'params'
    }


def _here(tables: visit.Tables, found: Mapping[str, Component]) -> visit.Tables:
  """The part of every table that is about this stack's own visits."""
  return {name: rows[found[name].here] for name, rows in tables.items()}
