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

from shared_tfm.sharing.levels import Component, Shape
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
    part: the dotted module that owns it, such as 'attention.key'.
    shape: in a layer.
    names: the logical names of its axes.
    units: how many heads or neurons one of its axes is made of; 0: none is.
    axis: of the units.
  """

  name: str
  part: str
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
      part='.'.join(path[:-1]),
      shape=box.value.shape,
      names=box.names,
      units=units[box.names[axis]] if axes else 0,
      axis=axis,
    )
  return leaves


def init_level(
  level: int,
  layer_init: Init,
  components: Mapping[str, Component],
  leaves: Layout,
  key: jax.Array,
) -> Tree:
  """Initialises one level, in boxes whose leading axis is OWNER_AXIS.

  Every row of the first level is initialised as a layer of its own, from its
  own key; a product there has the variance of the matrix it stands for. The
  other levels are corrections and begin at zero: full rows and diagonals as
  zeros, a product with its second factor zero (LoRA, 2106.09685, section 4.1).

  Args:
    level: which term of the sums.
    layer_init: key -> one layer's parameters in boxes.
    components: by name.
    leaves: see `layout`.
    key: a PRNG key.

  Returns:
    A layer's tree of those tensors that have such a level; empty if none has.
  """
  found: dict[Path, Any] = {}
  if level == 0:
    copies = max(
      max(c.rows(0), c.templates) for c in components.values() if c.owners
    )
    drawn = _flat(jax.vmap(layer_init)(jax.random.split(key, copies)))
  for path, leaf in leaves.items():
    component = components[leaf.name]
    if level not in component.spec.terms(len(leaf.shape)):
      continue
    term = component.spec.levels[level]
    shape = component.shrunk(leaf.shape, leaf.units, leaf.axis)
    matrix = len(shape) > 1
    mixed = bool(term.templates) and matrix
    rows = term.templates if mixed else component.rows(level)
    place = jax.random.fold_in(key, zlib.crc32('/'.join(path).encode()))
    for suffix, size in term.shapes(shape).items():
      size = (rows, *size)
      names: Names = (OWNER_AXIS, *leaf.names)
      if suffix == '' and level == 0:
        value = drawn[path].value[tuple(slice(0, n) for n in size)]
      elif suffix == 'a':
        value = jax.random.normal(place, size) * leaf.shape[0] ** -0.5
        names = (OWNER_AXIS, leaf.names[0], None)
      elif suffix == 'b' and level == 0:
        place = jax.random.fold_in(place, 1)
        value = jax.random.normal(place, size) * size[1] ** -0.5
        names = (OWNER_AXIS, None, leaf.names[1])
      else:
        value = jnp.zeros(size)
        if suffix:
          last = leaf.names[1] if suffix == 'b' else None
          names = (OWNER_AXIS, None, last)[-len(size) :]
          names = (OWNER_AXIS, *names[1:])
      found[path + (suffix,) * bool(suffix)] = nn.LogicallyPartitioned(
        value, names
      )
  return unflatten_dict(found)


def init_mix(components: Mapping[str, Component], key: jax.Array) -> Tree:
  """Coefficients of every soft component: (visits, K), rows of length 1.

  Rows of length 1 give mixed weights the variance of the templates.
  """
  found = {}
  for name, component in components.items():
    if component.templates:
      place = jax.random.fold_in(key, zlib.crc32(name.encode()))
      visits = len(component.owners[0])
      mix = jax.random.normal(place, (visits, component.templates))
      mix /= jnp.linalg.norm(mix, axis=1, keepdims=True)
      found[name] = nn.LogicallyPartitioned(mix, (OWNER_AXIS, None))
  return found


def _flat(tree: Tree) -> dict[Path, Any]:
  return flatten_dict(tree, is_leaf=lambda _, x: not isinstance(x, dict))
