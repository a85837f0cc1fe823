"""From the bank and a visit to the layer's weights: a chain of links.

Each link is a pure function over stored tensors. In order: the row of each
level is picked (or templates are mixed), products are multiplied out, the terms
are summed, units that share columns are spread out, and parts without weights
read another's. A layer sees only the result. All but picking is opaque to who
chooses what the backward pass recomputes: see `opaque.py`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shared_tfm.sharing import narrow, table
from shared_tfm.sharing.bank import Layout, Leaf
from shared_tfm.sharing.component import Component
from shared_tfm.sharing.levels import DIAGONAL
from shared_tfm.sharing.opaque import opaque

Bank = Mapping[str, Any]  # 'rows', 'level_1', ..., and 'mix' by component
Rows = Mapping[str, jax.Array]


def group(level: int) -> str:
  """The name of a level's tree in the bank."""
  return f'level_{level}' if level else 'rows'


def weights(
  bank: Bank,
  components: Mapping[str, Component],
  leaves: Layout,
  rows: Rows,
  first: Rows | None = None,
) -> Any:
  """One layer's weights.

  Args:
    bank: its trees by name, unboxed.
    components: by name.
    leaves: see `bank.layout`.
    rows: for every component the row of each level, integers (levels,).
    first: where only an owner's first visit is to train it: for every component
      whether this visit is the first of each level's row, booleans (levels,).
  """
  flat = {name: flatten_dict(tree) for name, tree in bank.items()}
  found = {}
  for path, leaf in leaves.items():
    component = components[leaf.name]
    if component.spec.same_as:
      continue
    terms = [
      _term(
        flat,
        component,
        path,
        leaf,
        level,
        rows[leaf.name],
        None if first is None else first[leaf.name][level],
      )
      for level in component.spec.terms(len(leaf.shape))
    ]
    found[path] = _made(terms, component, leaf)
  for path, leaf in leaves.items():
    other = components[leaf.name].spec.same_as
    if other:
      found[path] = found[(*other.split('.'), path[-1])]
  return unflatten_dict(found)


def _term(
  flat: Mapping[str, Any],
  component: Component,
  path: tuple[str, ...],
  leaf: Leaf,
  level: int,
  rows: jax.Array,
  trains: jax.Array | None,
) -> tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]:
  """One level's share of a tensor: a function, and the values it needs."""
  stored = flat[group(level)]
  row, term = rows[level], component.spec.levels[level]

  def pick(leaf: Any) -> jax.Array:
    picked = narrow.row(leaf, row)
    return picked if trains is None else _trained(picked, trains)

  matrix = len(leaf.shape) > 1
  if term.templates and matrix:
    mix = pick(flat['mix'][(leaf.name,)])
    return _mixed, (mix, narrow.whole(stored[path]))
  if term.diagonal and matrix:
    shape = component.shrunk(leaf.shape, leaf.units, leaf.axis)
    return functools.partial(_diagonal, shape), (
      pick(stored[(*path, DIAGONAL)]),
    )
  if term.rank and matrix:
    return _product, (pick(stored[(*path, 'a')]), pick(stored[(*path, 'b')]))
  return _itself, (pick(stored[path]),)


def _itself(tensor: jax.Array) -> jax.Array:
  return tensor


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  return a @ b


def _mixed(mix: jax.Array, templates: jax.Array) -> jax.Array:
  return jnp.tensordot(mix, templates, axes=1)


def _diagonal(shape: tuple[int, ...], values: jax.Array) -> jax.Array:
  index = jnp.arange(values.shape[-1])
  return jnp.zeros(shape, values.dtype).at[..., index, index].set(values)


def _made(terms: Any, component: Component, leaf: Leaf) -> jax.Array:
  """The tensor that a layer gets: the terms' sum, its units spread out."""
  functions, values = zip(*terms, strict=True)
  within = component.spec.within if leaf.units else None
  if functions == (_itself,) and not within:
    return values[0][0]

  def combined(*values: Any) -> jax.Array:
    total = sum(
      function(*operands)
      for function, operands in zip(functions, values, strict=True)
    )
    return _spread(total, within, leaf) if within else total

  return opaque(combined, *values)


def _spread(tensor: Any, within: table.Spec, leaf: Leaf) -> jax.Array:
  """Gives every head or neuron its columns."""
  owners = np.array(within.owners(leaf.units))
  before, after = leaf.shape[: leaf.axis], leaf.shape[leaf.axis + 1 :]
  size = leaf.shape[leaf.axis] // leaf.units
  units = tensor.reshape(*before, -1, size, *after)
  return jnp.take(units, owners, axis=leaf.axis).reshape(leaf.shape)


@jax.custom_vjp
def _trained(picked: jax.Array, trains: jax.Array) -> jax.Array:
  """`picked`, whose gradient is dropped unless this visit trains it."""
  return picked


def _trained_fwd(picked: Any, trains: Any) -> Any:
  return picked, trains


def _trained_bwd(trains: Any, grad: Any) -> Any:
  return jnp.where(trains, grad, jnp.zeros_like(grad)), None


_trained.defvjp(_trained_fwd, _trained_bwd)


def scaled_by_visits(
  bank: Bank,
  components: Mapping[str, Component],
  leaves: Layout,
  rows: Rows,
) -> dict[str, Any]:
  """The bank, its gradients divided by how many visits each row has.

  The gradient of a row is a sum over its visits; what comes out is their mean
  (Yang et al., 2110.03848, section 3). Templates, which every layer reads, are
  divided by the number of layers.

  Args:
    bank: see `weights`.
    components: by name.
    leaves: see `bank.layout`.
    rows: for every component the tables of its levels, (visits, levels).
  """
  scaled = {name: flatten_dict(tree) for name, tree in bank.items()}
  for path, leaf in leaves.items():
    component = components[leaf.name]
    if component.spec.same_as:
      continue
    reads = jnp.array(component.reads or [True] * len(rows[leaf.name]))
    for level in component.spec.terms(len(leaf.shape)):
      term = component.spec.levels[level]
      stored = scaled[group(level)]
      for suffix in term.shapes(leaf.shape):
        place = (*path, suffix) if suffix else path
        if term.templates and len(leaf.shape) > 1:
          visits = jnp.full(term.templates, reads.sum())
        else:
          visits = jnp.zeros(len(stored[place]), int)
          visits = visits.at[rows[leaf.name][:, level]].add(reads)
        stored[place] = _divided(stored[place], visits)
  return {name: unflatten_dict(tree) for name, tree in scaled.items()}


@jax.custom_vjp
def _divided(stored: jax.Array, visits: jax.Array) -> jax.Array:
  return stored


def _divided_fwd(stored: Any, visits: Any) -> Any:
  return stored, visits


def _divided_bwd(visits: Any, grad: Any) -> Any:
  each = jnp.maximum(visits, 1).reshape(-1, *([1] * (grad.ndim - 1)))
  return grad / each.astype(grad.dtype), None


_divided.defvjp(_divided_fwd, _divided_bwd)
