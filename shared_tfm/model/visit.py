"""One visit: an owner's weights applied once, and what it hands on.

What the backward pass recomputes of it is in recompute.py.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.config.shapes import components
from shared_tfm.layers.context import Context, Reuse
from shared_tfm.layers.keep import keep
from shared_tfm.layers.layer import Layer
from shared_tfm.model import reused
from shared_tfm.model.kept import Kept
from shared_tfm.model.recompute import INPUT, NOTHING, POLICIES, remat
from shared_tfm.sharing import links
from shared_tfm.sharing.bank import Layout

Tables = dict[str, jax.Array]

STREAMS = ('into', 'out')  # what a watched visit observes besides: x_BLD


class PerVisit(flax.struct.PyTreeNode):
  """What every visit has its own of; leading axes of visits outside the scan.

  Attributes:
    index: its number.
    rows: for every component the row of each level.
    first: whether those are the rows' first visits; None where it is no matter.
    state: collections of the layer other than parameters.
    kv: (own, slot read, slot written) of keys and values; None: no reuse.
    map: the same for attention weights.
    past: which slots hold the same layer in other loops, whether those are
      over, and the own slot; None: loops attend to themselves.
    kept: where keys and values of earlier tokens are; see kept.py. None: they
      are not kept.
  """

  index: jax.Array
  rows: Tables
  first: Tables | None
  state: Any
  kv: Any
  map: Any
  past: Any
  kept: Any = None


class Carry(flax.struct.PyTreeNode):
  """What a visit hands on to the next.

  Attributes:
    x_BLD: the residual stream.
    kv: slots of keys and values, a leading axis of slots; None: no reuse.
    map: slots of attention weights.
    past: a slot of keys and values for every visit of the core.
    kept: keys and values of earlier tokens and of these; None: of no others.
    observed: what layers observed, a leading axis of visits; empty where the
      scan over visits hands it out.
  """

  x_BLD: jax.Array
  kv: Any = None
  map: Any = None
  past: Any = None
  kept: Kept | None = None
  observed: dict[str, jax.Array] = flax.struct.field(default_factory=dict)


# The logical axes of the residual stream. What cuts a batch cuts it everywhere:
# else the compiler may rather move it than the weights, which are smaller.
STREAM = ('batch', 'length', None)


def visit(
  layer: Layer,
  leaves: Layout,
  stored: dict[str, Any],
  dropout: jax.Array | None,
  changing: list[str],
  watched: bool,
  context: Context,
  carry: Carry,
  this: PerVisit,
) -> tuple[Carry, Any]:
  """Picks this visit's rows and runs the layer on them.

  Args:
    layer: unbound.
    leaves: its tensors.
    stored: the bank.
    dropout: a key that each visit derives its own from; None: no dropout.
    changing: the collections that a visit may change.
    watched: whether the residual stream before and after it is observed.
    context: what every visit sees.
    carry: from the visit before.
    this: this visit's own.

  Returns:
    The carry for the next, and (those collections after it, what it observed).
  """
  found = components(layer.model)
  weights = links.weights(stored, found, leaves, this.rows, this.first)
  rngs = {}
  if dropout is not None:
    rngs['dropout'] = jax.random.fold_in(dropout, this.index)
  earlier, kept = {}, carry.kept
  if kept is not None:
    earlier = kept.slots(this.kept, this.index)
  (x_BLD, left), after = layer.apply(
    {'params': weights, **this.state},
    keep(carry.x_BLD, INPUT),
    context.replace(
      index=this.index,
      kv=_keys(layer.model, carry, this),
      map=reused.found(carry.map, this.map),
      past=reused.past(carry.past, this.past),
      **earlier,
    ),
    rngs=rngs,
    mutable=changing,
  )
  seen = left.observed
  if watched:
    streams = carry.x_BLD, x_BLD
    seen = {**seen, **dict(zip(STREAMS, streams, strict=True))}
  observed = {
    name: buffer.at[this.index].set(seen[name], mode='drop')
    for name, buffer in carry.observed.items()
  }
  carry = Carry(
    nn.with_logical_constraint(x_BLD, STREAM),
    reused.left(carry.kv, this.kv, left.kv),
    reused.left(carry.map, this.map, left.map),
    reused.left(carry.past, this.past, left.kv),
    kept and kept.replace(text=left.cache, source=left.source),
    observed,
  )
  return carry, (after, seen)


def over_visits(model: Model, body: Any, carry: Carry, visits: PerVisit) -> Any:
  """Scans visits; `remat_group` of them are recomputed at a time."""
  body = remat(body, POLICIES[model.remat])
  if model.remat_group == 1:
    return jax.lax.scan(body, carry, visits)

  def group(carry: Carry, these: PerVisit) -> tuple[Carry, Any]:
    return jax.lax.scan(body, carry, these)

  groups = jax.tree.map(
    lambda a: a.reshape(-1, model.remat_group, *a.shape[1:]), visits
  )
  carry, out = jax.lax.scan(remat(group, NOTHING), carry, groups)
  return carry, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), out)


def first_visits(tables: Tables) -> Tables:
  """Whether a visit is the first of the row it reads."""

  def first(rows: jax.Array) -> jax.Array:
    same = rows[:, None] == rows[None]
    return ~jnp.tril(same.swapaxes(1, 2).swapaxes(0, 1), -1).any(-1).T

  return jax.tree.map(first, tables)


def _keys(model: Model, carry: Carry, this: PerVisit) -> Reuse | None:
  """Keys and values that this visit does not make: an earlier one's."""
  if this.kv is not None or this.kept is None or 'own' not in this.kept:
    return reused.found(carry.kv, this.kv)
  # They are in the slot that is read; what is made of none is not written.
  shape = *carry.x_BLD.shape[:2], model.num_kv_heads, model.head_dim
  zeros = jnp.zeros(shape, jnp.dtype(model.precision.compute))
  return Reuse(this.kept['own'], (zeros, zeros))
