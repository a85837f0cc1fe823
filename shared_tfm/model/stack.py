"""The stack: one scan over depth, where sharing and layers meet.

The body of the scan picks this visit's rows from the bank and runs an ordinary
layer on them. Parameters are broadcast to every step of the scan (one set,
however deep); everything else a layer keeps (batch statistics, dropout keys)
has one slot per visit. Depth costs no compile time, whatever the scheme.

What the backward pass recomputes is `model.remat`:

    none  nothing but data movement: every computed value is kept
    dots  what is cheap: the results of matrix products are kept
    full  the whole layer: only its input is kept

`model.remat_group = k` keeps only every k-th layer's input in the first place,
and recomputes the k layers in between one group at a time, each by the policy
above. No policy ever keeps a picked weight: the pick happens inside what is
recomputed, and a copy of it per layer would undo what sharing saves.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.config.shapes import components
from shared_tfm.layers.context import Context, Reuse
from shared_tfm.layers.layer import Layer
from shared_tfm.sharing import bank, levels, links, reuse, table

Tables = dict[str, jax.Array]
Observed = dict[str, jax.Array]

# Primitives that only move or convert what is already there. A picked weight
# reaches the layer's products through these alone, so a policy that recomputes
# them never keeps one.
_MOVES = frozenset(
  {
    'broadcast_in_dim',
    'convert_element_type',
    'copy',
    'custom_vjp_call',  # what combines stored weights, see sharing/links.py
    'dynamic_slice',
    'gather',
    'reshape',
    'slice',
    'squeeze',
    'transpose',
  }
)


def _all_but_moves(primitive: Any, *_: Any, **__: Any) -> bool:
  return primitive.name not in _MOVES


POLICIES: dict[str, Callable[..., bool]] = {
  'none': _all_but_moves,
  'dots': jax.checkpoint_policies.dots_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


class PerVisit(flax.struct.PyTreeNode):
  """What every visit has its own of; leading axes of visits outside the scan.

  Attributes:
    index: its number.
    rows: for every component the row of each level.
    first: whether those are the rows' first visits; None where it is no matter.
    state: collections of the layer other than parameters.
    kv: (own, slot read, slot written) of keys and values; None: no reuse.
    map: the same for attention weights.
  """

  index: jax.Array
  rows: Tables
  first: Tables | None
  state: Any
  kv: Any
  map: Any


class Carry(flax.struct.PyTreeNode):
  """What a visit hands on to the next.

  Attributes:
    x_BLD: the residual stream.
    kv: slots of keys and values, a leading axis of slots; None: no reuse.
    map: slots of attention weights.
  """

  x_BLD: jax.Array
  kv: Any = None
  map: Any = None


class Stack(nn.Module):
  """All visits, in order."""

  model: Model
  train: bool = False

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, context: Context
  ) -> tuple[jax.Array, Observed]:
    """Runs the residual stream (B, L, D) through `num_layers` visits.

    Returns:
      The stream, and what the layers observed, by name: leading axis of visits.
    """
    m = self.model
    layer = Layer(m, self.train, parent=None)
    found, leaves = components(m), layout(m)
    stored = self._bank(found, leaves)
    tables = {name: jnp.array(c.owners).T for name, c in found.items()}
    if m.shared_gradient == 'mean':
      stored = links.scaled_by_visits(stored, found, leaves, tables)
    state = self._collections(layer)
    dropout = self.make_rng('dropout') if self.train and m.dropout else None

    def visit(carry: Carry, this: PerVisit) -> tuple[Carry, Any]:
      weights = links.weights(stored, found, leaves, this.rows, this.first)
      rngs = (
        {}
        if dropout is None
        else {'dropout': jax.random.fold_in(dropout, this.index)}
      )
      (x_BLD, left), after = layer.apply(
        {'params': weights, **this.state},
        carry.x_BLD,
        context.replace(
          index=this.index,
          kv=_found(carry.kv, this.kv),
          map=_found(carry.map, this.map),
        ),
        rngs=rngs,
        mutable=list(this.state),
      )
      carry = Carry(
        x_BLD,
        _kept(carry.kv, this.kv, left.kv),
        _kept(carry.map, this.map, left.map),
      )
      return carry, (after, left.observed)

    (kv, kv_slots), (maps, map_slots) = self._reused(x_BLD)
    per_visit = PerVisit(
      index=jnp.arange(m.num_layers),
      rows=tables,
      first=_first(tables) if m.shared_gradient == 'owner' else None,
      state={name: kept.value for name, kept in state.items()},
      kv=kv,
      map=maps,
    )
    carry = Carry(x_BLD, kv_slots, map_slots)
    carry, (after, observed) = self._scan(visit, carry, per_visit)
    for name, kept in state.items():
      if self.is_mutable_collection(name):
        kept.value = after[name]
    return carry.x_BLD, observed

  def _bank(
    self, found: Mapping[str, levels.Component], leaves: bank.Layout
  ) -> dict[str, Any]:
    """Declares the stored parameters: a tree for each level."""
    stored = {}
    for level in range(max(len(c.spec.levels) for c in found.values())):
      stored[links.group(level)] = self.param(
        links.group(level),
        lambda key, level=level: bank.init_level(
          level, functools.partial(_init, self.model), found, leaves, key
        ),
      )
    if any(c.templates for c in found.values()):
      stored['mix'] = self.param('mix', lambda key: bank.init_mix(found, key))
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

  def _reused(self, x_BLD: jax.Array) -> Any:
    """For keys and values, and for maps: the visits' slots, and empty ones."""
    m, (b, length, _) = self.model, x_BLD.shape
    dtype = jnp.dtype(m.dtype)
    kv: Any = (None, None)
    maps: Any = (None, None)
    if m.sharing.kv_source:
      plan = reuse.plan(table.owners(m.sharing.kv_source, m.num_layers))
      shape = (plan.slots, b, length, m.num_kv_heads, m.head_dim)
      kv = _slots(plan), (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
    if m.sharing.map_source:
      plan = reuse.plan(table.owners(m.sharing.map_source, m.num_layers))
      shape = (plan.slots, b, m.num_heads, length, length)
      maps = _slots(plan), jnp.zeros(shape, dtype)
    return kv, maps

  def _scan(self, visit: Any, carry: Carry, per_visit: PerVisit) -> Any:
    """Runs all visits, recomputing in the backward pass what remat says."""
    m = self.model
    visit = _remat(visit, POLICIES[m.remat])
    if m.remat_group == 1:
      return jax.lax.scan(visit, carry, per_visit)

    def group(carry: Carry, these: PerVisit) -> tuple[Carry, Any]:
      return jax.lax.scan(visit, carry, these)

    groups = jax.tree.map(
      lambda a: a.reshape(-1, m.remat_group, *a.shape[1:]), per_visit
    )
    carry, after = jax.lax.scan(_remat(group, POLICIES['full']), carry, groups)
    return carry, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), after)


@functools.lru_cache
def layout(model: Model) -> bank.Layout:
  """Every tensor of a layer, and the component it follows."""
  shapes = jax.eval_shape(functools.partial(_init, model), jax.random.key(0))
  units = {
    'heads': model.num_heads,
    'kv_heads': model.num_kv_heads,
    'mlp': model.d_ff,
  }
  return bank.layout(shapes, components(model), units)


def _init(model: Model, key: jax.Array) -> Any:
  """One layer's parameters."""
  return Layer(model, parent=None).init(key, *_blank(model))['params']


def _blank(model: Model) -> tuple[jax.Array, Context]:
  """The smallest input of a layer."""
  x_BLD = jnp.zeros((1, 1, model.d_model), jnp.dtype(model.dtype))
  return x_BLD, Context(jnp.zeros((1, 1), jnp.int32))


def _first(tables: Tables) -> Tables:
  """Whether a visit is the first of the row it reads."""

  def first(rows: jax.Array) -> jax.Array:
    same = rows[:, None] == rows[None]
    return ~jnp.tril(same.swapaxes(1, 2).swapaxes(0, 1), -1).any(-1).T

  return jax.tree.map(first, tables)


def _slots(plan: reuse.Plan) -> dict[str, jax.Array]:
  return {
    'own': jnp.array(plan.own),
    'read': jnp.array(plan.read),
    'write': jnp.array(plan.write),
  }


def _found(slots: Any, plan: Any) -> Reuse | None:
  """What an earlier layer left for this one."""
  if plan is None:
    return None
  made = jax.tree.map(lambda s: _at(s, plan['read']), slots)
  return Reuse(plan['own'], made)


def _kept(slots: Any, plan: Any, made: Any) -> Any:
  """The slots after this layer has left what it made."""
  if plan is None:
    return None
  return jax.tree.map(
    lambda s, new: s.at[plan['write']].set(new, mode='drop'), slots, made
  )


def _at(slots: jax.Array, index: jax.Array) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(slots, index, axis=0, keepdims=False)


def _remat(body: Any, policy: Callable[..., bool]) -> Any:
  return jax.checkpoint(body, policy=policy, prevent_cse=False)
