"""The bank in the dtype that it is multiplied in, cast once for all visits.

The gradient of a row goes to the stored bank all the same, in its own dtype: so
what several visits send is added up there.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from shared_tfm.sharing.bank import Layout, Leaf
from shared_tfm.sharing.component import Component


class Cast(flax.struct.PyTreeNode):
  """A stored tensor, and the same in the dtype it is multiplied in.

  Attributes:
    stored: what the gradient of a picked row goes to, in its own dtype.
    narrow: what rows are picked from; on a CPU, which has no operations on
      narrow floats and would hold them as wide ones, their bits.
    dtype: of what is picked.
  """

  stored: jax.Array
  narrow: jax.Array
  dtype: Any = flax.struct.field(pytree_node=False)


def cast(
  bank: Mapping[str, Any],
  components: Mapping[str, Component],
  leaves: Layout,
  dtype: Any,
  multiplied: Callable[[tuple[str, ...]], bool],
) -> dict[str, Any]:
  """The bank, cast where a layer would cast what it reads.

  Which is where a weight is one stored row, and not made of several. A row
  picked is a wide tensor of narrow values, so that to cast it costs nothing.

  Args:
    bank: see `links.weights`.
    components: by name.
    leaves: see `bank.layout`.
    dtype: of the computation.
    multiplied: of a leaf's path, whether it is rounded to that before use.
  """
  if 'rows' not in bank or jnp.dtype(dtype) == jnp.float32:
    return dict(bank)
  rows = flatten_dict(bank['rows'])
  for path, leaf in leaves.items():
    if path in rows and multiplied(path) and _is_row(components, leaf):
      narrow = jax.lax.stop_gradient(rows[path]).astype(dtype)
      if narrow.dtype.itemsize == 2 and jax.default_backend() == 'cpu':
        narrow = jax.lax.bitcast_convert_type(narrow, jnp.uint16)
      rows[path] = Cast(rows[path], narrow, jnp.dtype(dtype))
  return {**bank, 'rows': unflatten_dict(rows)}


def _is_row(components: Mapping[str, Component], leaf: Leaf) -> bool:
  """Whether a layer's tensor is one stored row as it is."""
  spec = components[leaf.name].spec
  whole = len(spec.levels) == 1 and spec.levels[0].full
  return whole and not (spec.within and leaf.units)


def row(leaf: Any, index: jax.Array) -> jax.Array:
  """A row of a leaf of the bank, cast or not, in the stored dtype."""
  if isinstance(leaf, Cast):
    return _picked(leaf.dtype, leaf.stored, leaf.narrow, index)
  return _at(leaf, index)


def _at(stored: jax.Array, index: jax.Array) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(stored, index, axis=0, keepdims=False)


def _narrow_row(dtype: Any, stored: Any, narrow: Any, index: Any) -> jax.Array:
  picked = _at(narrow, index)
  if picked.dtype != dtype:
    picked = jax.lax.bitcast_convert_type(picked, dtype)
  return picked.astype(stored.dtype)


_picked = jax.custom_vjp(_narrow_row, nondiff_argnums=(0,))


def _picked_fwd(dtype: Any, stored: Any, narrow: Any, index: Any) -> Any:
  # By itself and not by `_picked`, in which no policy would see a movement.
  return _narrow_row(dtype, stored, narrow, index), (stored, index)


def _picked_bwd(_: Any, kept: Any, grad: Any) -> Any:
  stored, index = kept
  zeros = jnp.zeros_like(stored)
  return jax.lax.dynamic_update_index_in_dim(zeros, grad, index, 0), None, None


_picked.defvjp(_picked_fwd, _picked_bwd)
