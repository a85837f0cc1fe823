"""The bank in fewer bits, rounded once for all visits.

That is the dtype it is multiplied in, or whole numbers (`quantise.py`). The
gradient of a row goes to the stored bank all the same, in its own dtype: so
what several visits send is added up there, and rounding lets it through
(1308.3432, the straight-through estimator).
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from shared_tfm.sharing.bank import Layout, Leaf
from shared_tfm.sharing.component import Component
from shared_tfm.sharing.integers import Rounded


class Bits(flax.struct.PyTreeNode):
  """A tensor in a narrow dtype.

  Attributes:
    bits: its values; on a CPU, which has no operations on narrow floats and
      would hold them as wide ones, their bits.
    dtype: of the values.
  """

  bits: jax.Array
  dtype: Any = flax.struct.field(pytree_node=False)

  def row(self, index: Any) -> jax.Array:
    """One entry of the leading axis."""
    picked = _at(self.bits, index)
    if picked.dtype != self.dtype:
      picked = jax.lax.bitcast_convert_type(picked, self.dtype)
    return picked


class Cast(flax.struct.PyTreeNode):
  """A stored tensor, and the same in fewer bits.

  Attributes:
    stored: what the gradient of a picked row goes to, in its own dtype.
    narrow: what rows are picked from.
  """

  stored: jax.Array
  narrow: Bits | Rounded


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
  What is rounded already stays as it is.

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
    if path not in rows or isinstance(rows[path], Cast | Rounded):
      continue
    if multiplied(path) and _is_row(components, leaf):
      narrow = jax.lax.stop_gradient(rows[path]).astype(dtype)
      if narrow.dtype.itemsize == 2 and jax.default_backend() == 'cpu':
        narrow = jax.lax.bitcast_convert_type(narrow, jnp.uint16)
      rows[path] = Cast(rows[path], Bits(narrow, jnp.dtype(dtype)))
  return {**bank, 'rows': unflatten_dict(rows)}


def _is_row(components: Mapping[str, Component], leaf: Leaf) -> bool:
  """Whether a layer's tensor is one stored row as it is."""
  spec = components[leaf.name].spec
  whole = len(spec.levels) == 1 and spec.levels[0].full
  return whole and not (spec.within and leaf.units)


def row(leaf: Any, index: jax.Array) -> jax.Array:
  """A row of a leaf of the bank, in fewer bits or not, as a wide tensor."""
  if isinstance(leaf, Cast):
    return _picked(leaf.stored, leaf.narrow, index)
  return leaf.row(index) if isinstance(leaf, Rounded) else _at(leaf, index)


def whole(leaf: Any) -> jax.Array:
  """All of a leaf, so too."""
  if isinstance(leaf, Cast):
    return _through(leaf.stored, leaf.narrow)
  return leaf.whole() if isinstance(leaf, Rounded) else leaf


def _at(stored: jax.Array, index: jax.Array) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(stored, index, axis=0, keepdims=False)


def _narrow_row(stored: Any, narrow: Any, index: Any) -> jax.Array:
  return narrow.row(index).astype(stored.dtype)


_picked = jax.custom_vjp(_narrow_row)


def _picked_fwd(stored: Any, narrow: Any, index: Any) -> Any:
  # By itself and not by `_picked`, in which no policy would see a movement.
  return _narrow_row(stored, narrow, index), (stored, index)


def _picked_bwd(kept: Any, grad: Any) -> Any:
  stored, index = kept
  zeros = jnp.zeros_like(stored)
  return jax.lax.dynamic_update_index_in_dim(zeros, grad, index, 0), None, None


_picked.defvjp(_picked_fwd, _picked_bwd)


@jax.custom_vjp
def _through(stored: jax.Array, narrow: Any) -> jax.Array:
  return narrow.whole()


def _through_fwd(stored: Any, narrow: Any) -> Any:
  return narrow.whole(), None


def _through_bwd(_: None, grad: Any) -> Any:
  return grad, None


_through.defvjp(_through_fwd, _through_bwd)
