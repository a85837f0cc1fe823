"""The bank: stored rows of weights, one tree for every level of a sum.

A level's tree is a layer's parameter tree whose leaves have a leading axis of
rows, or hold the factors of a product. Which row a layer reads is a number per
component and level; a leaf follows the nearest component above it in the tree.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from shared_tfm.sharing.component import Component
from shared_tfm.sharing.levels import DIAGONAL, Shape
from shared_tfm.sharing.table import resolve

Tree = Any
Path = tuple[str, ...]
Names = tuple[str | None, ...]
Init = Callable[[jax.Array], Tree]
OWNER_AXIS = 'owner'  # the logical name of a bank's leading axis


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One tensor of a layer.

  Attributes:
    name: the component it follows.
    shape: in a layer.
    names: the logical names of its axes.
    units: how many heads or neurons one of its axes is made of; 0: none is.
    axis: of the units.
  """

  name: str
  shape: Shape
  names: Names
  units: int
  axis: int


Layout = dict[Path, Leaf]


def layout(
  shapes: Tree,
  components: Mapping[str, Component],
  units: Mapping[str, int],
) -> Layout:
  """Every tensor of a layer, by path.

  Args:
    shapes: a layer's parameters in boxes with logical axis names; the arrays
      may be abstract.
    components: by name, ROOT among them.
    units: how many units an axis of that logical name is made of.
  """
  leaves = {}
  for path, box in _flat(shapes).items():
    axes = [i for i, name in enumerate(box.names) if name in units]
    axis = axes[0] if axes else 0
    leaves[path] = Leaf(
      name=resolve(components, '.'.join(path)),
      shape=box.value.shape,
      names=box.names,
      units=units[box.names[axis]] if axes else 0,
      axis=axis,
    )
  return leaves


def levels(components: Mapping[str, Component], leaves: Layout) -> list[int]:
  """The levels that this bank stores some tensor of, in order."""
  found: set[int] = set()
  for leaf in leaves.values():
    component = components[leaf.name]
    if not component.borrowed:
      found.update(component.spec.terms(len(leaf.shape)))
  return sorted(found)


def init_level(
  level: int,
  layer_init: Init,
  components: Mapping[str, Component],
  leaves: Layout,
  key: jax.Array,
) -> Tree:
  """Initialises one level, in boxes whose leading axis is OWNER_AXIS.

  Every row of a tensor's first term is initialised as a layer of its own, from
  its own key; a product or a diagonal there keeps the variance of what it is
  multiplied with. The other terms are corrections and begin at zero: full rows
  and diagonals as zeros, a product with its second factor zero (LoRA,
  2106.09685, section 4.1).

  Args:
    level: which term of the sums.
    layer_init: key -> one layer's parameters in boxes.
    components: by name.
    leaves: see `layout`.
    key: a PRNG key.

  Returns:
    A layer's tree of those tensors that have such a level; empty if none has.
  """
  rows, first = {}, set()
  for path, leaf in leaves.items():
    component, axes = components[leaf.name], len(leaf.shape)
    terms = component.spec.terms(axes)
    if level in terms and not component.borrowed:
      rows[path] = component.copies(level, axes)
      if terms[0] == level:
        first.add(path)
  found: dict[Path, Any] = {}
  if first:
    keys = jax.random.split(key, max(rows[path] for path in first))
    drawn = _flat(jax.vmap(layer_init)(keys))
  for path in rows:
    leaf = leaves[path]
    component = components[leaf.name]
    stored = component.shrunk(leaf.shape, leaf.units, leaf.axis)
    for suffix, shape in component.spec.levels[level].shapes(stored).items():
      place = (*path, suffix) if suffix else path
      shape = (rows[path], *shape)
      if path in first and not suffix:
        value = drawn[path].value[tuple(map(slice, shape))]
      elif path in first or suffix == 'a':
        own = jax.random.fold_in(key, zlib.crc32('/'.join(place).encode()))
        fan_in = {'a': leaf.shape[-2], 'b': shape[-2], DIAGONAL: 1}[suffix]
        value = jax.random.normal(own, shape) * fan_in**-0.5
      else:
        value = jnp.zeros(shape)
      names = (OWNER_AXIS, *_names(suffix, leaf.names))
      found[place] = nn.LogicallyPartitioned(value, names)
  return unflatten_dict(found)


def _names(suffix: str, names: Names) -> Names:
  """The logical axis names of what is stored of a tensor with these."""
  if not suffix:
    return names
  *several, d_in, d_out = names
  return {
    'a': (*several, d_in, None),
    'b': (*several, None, d_out),
    DIAGONAL: (*several, None),
  }[suffix]


def init_mix(
  components: Mapping[str, Component], leaves: Layout, key: jax.Array
) -> Tree:
  """Coefficients of every soft component: (rows, K), each row of length 1.

  Rows of length 1 give mixed weights the variance of the templates. Only a
  component that some matrix follows has any.
  """
  found = {}
  for name in sorted({x.name for x in leaves.values() if len(x.shape) > 1}):
    shape = components[name].mix
    if shape[0]:
      place = jax.random.fold_in(key, zlib.crc32(name.encode()))
      mix = jax.random.normal(place, shape)
      mix /= jnp.linalg.norm(mix, axis=1, keepdims=True)
      found[name] = nn.LogicallyPartitioned(mix, (OWNER_AXIS, None))
  return found


def borrowed(
  own: Mapping[str, Tree],
  lender: Mapping[str, Tree],
  components: Mapping[str, Component],
  leaves: Layout,
) -> dict[str, Tree]:
  """A bank, completed by the rows that are stored in another one.

  Args:
    own: the bank's trees by name, unboxed.
    lender: those of the bank that stores what `components` borrow.
    components: by name.
    leaves: see `layout`.
  """
  whole = {name: flatten_dict(tree) for name, tree in own.items()}
  for name, tree in lender.items():
    found = whole.setdefault(name, {})
    for path, value in flatten_dict(tree).items():
      if name == 'mix':
        follows = path[0]
      else:
        leaf = leaves.get(path) or leaves.get(path[:-1])
        follows = leaf.name if leaf else ''
      if follows in components and components[follows].borrowed:
        found[path] = value
  return {name: unflatten_dict(tree) for name, tree in whole.items()}


def _flat(tree: Tree) -> dict[Path, Any]:
  return flatten_dict(tree, is_leaf=lambda _, x: not isinstance(x, dict))
