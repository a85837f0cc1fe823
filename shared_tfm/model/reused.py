"""Activations of one text that a later visit reuses: where they wait.

Keys and values and attention weights of another layer (`kv_source`,
`map_source`), and keys and values of earlier loops (`depth.attention`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.config import Model
from shared_tfm.config.loops import loops
from shared_tfm.layers.context import Past, Reuse
from shared_tfm.sharing import reuse, table


def slots(model: Model, x_BLD: jax.Array, places: int) -> Any:
  """For keys and values, and for maps: the visits' slots, and empty ones.

  Args:
    model: of the stack.
    x_BLD: the stream.
    places: how many each of its positions may attend to.
  """
  b, length, _ = x_BLD.shape
  heads, kv_heads, width = model.num_heads, model.num_kv_heads, model.head_dim
  dtype = jnp.dtype(model.precision.compute)
  keys = jax.ShapeDtypeStruct((b, length, kv_heads, width), dtype)
  weights = jax.ShapeDtypeStruct((b, heads, length, places), dtype)
  return (
    _empty(model, model.sharing.kv_source, (keys, keys)),
    _empty(model, model.sharing.map_source, weights),
  )


def _empty(model: Model, source: str, one: Any) -> Any:
  """The visits' slots, and empty ones; (None, None) where nothing is reused."""
  plan = reuse.plan(table.owners(source or 'none', model.num_layers))
  if not plan.slots:
    return None, None
  empty = jax.tree.map(
    lambda s: jnp.zeros((plan.slots, *s.shape), s.dtype), one
  )
  return _slots(plan), empty


def loop_slots(model: Model, x_BLD: jax.Array) -> Any:
  """The visits' slots of other loops' keys and values, and empty ones."""
  if model.depth.attention == 'loop':
    return None, None
  p, c, times, _ = loops(model)
  visits = np.arange(model.num_layers) - p
  inside = (visits >= 0) & (visits < c * times)
  slots = visits[:, None] % c + c * np.arange(times)[None]
  over = inside[:, None] & (np.arange(times)[None] < visits[:, None] // c)
  shape = (c * times, *x_BLD.shape[:2], model.num_kv_heads, model.head_dim)
  empty = jnp.zeros(shape, jnp.dtype(model.precision.compute))
  return {
    'slots': jnp.array(np.where(inside[:, None], slots, 0)),
    'over': jnp.array(over),
    'write': jnp.array(np.where(inside, visits, c * times)),
  }, (empty, empty)


def past(slots: Any, plan: Any) -> Past | None:
  """What other loops left for this visit."""
  if plan is None:
    return None
  made = jax.tree.map(lambda s: s[plan['slots']], slots)
  return Past(made, plan['over'])


def _slots(plan: reuse.Plan) -> dict[str, jax.Array]:
  return {
    'own': jnp.array(plan.own),
    'read': jnp.array(plan.read),
    'write': jnp.array(plan.write),
  }


def found(slots: Any, plan: Any) -> Reuse | None:
  """What an earlier layer left for this one."""
  if plan is None:
    return None
  made = jax.tree.map(lambda s: _at(s, plan['read']), slots)
  return Reuse(plan['own'], made)


def left(slots: Any, plan: Any, made: Any) -> Any:
  """The slots after this layer has left what it made."""
  if plan is None:
    return None
  return jax.tree.map(
    lambda s, new: s.at[plan['write']].set(new, mode='drop'), slots, made
  )


def _at(slots: jax.Array, index: jax.Array) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(slots, index, axis=0, keepdims=False)
