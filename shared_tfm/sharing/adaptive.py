"""Tables that change during training, and the weights that follow them.

A bank with a row for every layer can hold any table. The table is data, an int
array in the train state, so changing it is an update of arrays like any other
and compiles nothing. When it changes, rows of everything that belongs to a
weight move along: the weight itself and every moment the optimizer keeps of it.

    table   0 0 0 0  ->  0 0 1 1    row 1 becomes a copy of row 0
    table   0 1 2 3  ->  0 0 1 2    row 0 becomes the mean of rows 0 and 1

Tables stay dense: rows run from 0 without gaps, so that the first U rows of the
bank are all of it once the table has U.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.sharing import levels, table
from shared_tfm.sharing.table import Owners

Tree = Any
Tables = Mapping[str, Any]  # by component: (visits, levels) integers
STACK, FIRST, LATER = 'stack', 'rows', 'level_'  # see model/stack.py


def dense(owners: Sequence[int]) -> Owners:
  """The same table with its rows numbered in the order of first readers.

  >>> dense((3, 3, 0, 3))
  (0, 0, 1, 0)
  """
  seen = list(dict.fromkeys(owners))
  return tuple(seen.index(row) for row in owners)


def untied(owners: Owners) -> Owners:
  """Every layer owns its weights."""
  return tuple(range(len(owners)))


def halved(owners: Owners) -> Owners:
  """Each row's readers fall into two halves, the later one with a new row."""
  rows = list(owners)
  for row in set(owners):
    readers = [i for i, other in enumerate(owners) if other == row]
    for i in readers[(len(readers) + 1) // 2 :]:
      rows[i] = len(owners) + row
  return dense(rows)


def merged(owners: Owners, row: int, other: int) -> Owners:
  """The readers of two rows read one."""
  return dense([row if owner == other else owner for owner in owners])


def tied(owners: Owners, layer: int, to: int) -> Owners:
  """A layer reads what an earlier one reads, or its own row if `to` is itself.

  A layer that owns its row, which is to say reads it first, goes on doing so
  with those that follow it; where it leaves, they keep that row.
  """
  if to == layer and owners.index(owners[layer]) == layer:
    return owners
  rows = list(owners)
  rows[layer] = len(owners) if to == layer else owners[to]
  return dense(rows)


def similar(similarity: np.ndarray, owners: Owners) -> tuple[int, int]:
  """The pair of rows in use with the largest similarity.

  Args:
    similarity: (rows, rows), symmetric.
    owners: a table with two rows or more.
  """
  rows = max(owners) + 1
  pairs = [(i, j) for i in range(rows) for j in range(i + 1, rows)]
  return max(pairs, key=lambda pair: similarity[pair])


def correlation(cosines: np.ndarray, owners: Owners) -> float | None:
  """The mean cosine over pairs of visits to one row; None: there is none.

  Args:
    cosines: (visits, visits), of the gradients of single visits.
    owners: the table.
  """
  visits = range(len(owners))
  pairs = [
    cosines[i, j]
    for i in visits
    for j in visits
    if i < j and owners[i] == owners[j]
  ]
  return float(np.mean(pairs)) if pairs else None


@functools.partial(jax.jit, static_argnames='join', donate_argnames='tree')
def retie(tree: Tree, old: Tables, new: Tables, join: str = 'mean') -> Tree:
  """Moves rows so that every layer's weights, and their moments, come along.

  A row that is read by layers of one earlier row is a copy of it. Where layers
  of several earlier rows now read one, it is the mean over these layers, or the
  first one's; in integers always that. A row that nobody reads is zero.

  Args:
    tree: anything in which banks occur: parameters, the state of an optimizer;
      it is used up.
    old: the tables that `tree` was made under.
    new: the tables from now on; same shapes.
    join: 'mean' or 'first'.

  Returns:
    The same tree. Leaves outside of banks are what they were.
  """

  def move(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    place = _place(path, old)
    if place is None:
      return leaf
    name, level = place
    if not leaf.ndim or leaf.shape[0] != old[name].shape[0]:
      return leaf  # what an optimizer keeps is not always one for each row
    rows = old[name][:, level], new[name][:, level]
    return _moved(leaf, *rows, mean=join == 'mean')

  return jax.tree_util.tree_map_with_path(move, tree)


def _moved(
  leaf: jax.Array, old: jax.Array, new: jax.Array, mean: bool
) -> jax.Array:
  """One bank leaf. Integers (visits,) say the row each layer read and reads."""
  capacity = len(old)
  reads = new[None] == jnp.arange(capacity)[:, None]  # (row, layer)
  first = old[jnp.argmax(reads, axis=1)]  # what each row's first reader read
  alike = jnp.all(~reads | (old[None] == first[:, None]), axis=1)
  used = jnp.any(reads, axis=1)

  def wide(flags: jax.Array) -> jax.Array:
    return flags.reshape(-1, *[1] * (leaf.ndim - 1))

  copied = leaf[first]
  if not (mean and jnp.issubdtype(leaf.dtype, jnp.floating)):
    return jnp.where(wide(used), copied, jnp.zeros_like(leaf))
  share = reads / jnp.maximum(jnp.sum(reads, axis=1, keepdims=True), 1)
  joined = jnp.tensordot(share.astype(leaf.dtype), leaf[old], axes=1)
  moved = jnp.where(wide(alike), copied, joined)
  return jnp.where(wide(used), moved, jnp.zeros_like(leaf))


@jax.jit
def similarity(params: Tree, tables: Tables) -> dict[str, jax.Array]:
  """The cosine between all rows of each component, first levels alone.

  Args:
    params: the model's parameters.
    tables: for every component; only its name counts.

  Returns:
    By component (rows, rows); components that store nothing are left out.
  """
  products: dict[str, jax.Array] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    place = _place(path, tables)
    if place and place[1] == 0:
      flat = leaf.reshape(leaf.shape[0], -1).astype(jnp.float32)
      products[place[0]] = products.get(place[0], 0) + jnp.matmul(
        flat, flat.T, precision='highest'
      )
  return {name: cosines(gram) for name, gram in products.items()}


def cosines(gram: jax.Array) -> jax.Array:
  """Cosines from inner products (n, n); 0 where a vector is zero."""
  length = jnp.sqrt(jnp.diagonal(gram))
  scale = length[:, None] * length[None]
  return jnp.where(scale > 0, gram / jnp.where(scale > 0, scale, 1), 0)


def compact(params: Tree, tables: Mapping[str, Sequence[Owners]]) -> Tree:
  """Parameters without the rows that nobody reads.

  Args:
    params: a model's, of a bank that has a row for every layer.
    tables: for every component the table of each level.
  """

  def kept(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    place = _place(path, tables)
    if place is None:
      return leaf
    name, level = place
    return leaf[: max(tables[name][level]) + 1]

  return jax.tree_util.tree_map_with_path(kept, params)


def literals(
  specs: Mapping[str, levels.Spec], tables: Mapping[str, Sequence[Owners]]
) -> dict[str, str]:
  """Specs that have the tables as they are now, and all else unchanged.

  >>> literals({'norm': levels.parse('all+none@4')}, {'norm': [(0, 1), (0, 1)]})
  {'norm': '0,1+none@4'}

  Args:
    specs: by component.
    tables: for every component the table of each level, dense.
  """
  found = {}
  for name, spec in specs.items():
    terms = tuple(
      _with_table(level, owners)
      for level, owners in zip(spec.levels, tables.get(name, ()), strict=True)
    )
    found[name] = str(dataclasses.replace(spec, levels=terms))
  return found


def _with_table(level: levels.Level, owners: Owners) -> levels.Level:
  if level.table.owners(len(owners)) == owners:
    return level
  return dataclasses.replace(level, table=table.Spec('literal', owners))


def first_level(
  tables: Mapping[str, np.ndarray], change: Callable[[str, Owners], Owners]
) -> dict[str, np.ndarray]:
  """The tables with the first level of each changed; corrections stay.

  Args:
    tables: by component (visits, levels).
    change: (component, its first table) -> the new one.
  """
  found = {}
  for name, rows in tables.items():
    changed = rows.copy()
    changed[:, 0] = change(name, tuple(map(int, rows[:, 0])))
    found[name] = changed
  return found


def _place(path: Sequence[Any], names: Mapping[str, Any]) -> Any:
  """(component, level) of a leaf inside a bank; None outside of any."""
  keys = [getattr(key, 'key', None) for key in path]
  if STACK not in keys:
    return None
  group, *rest = keys[keys.index(STACK) + 1 :]
  if group != FIRST and not str(group).startswith(LATER):
    return None
  return table.resolve(names, '.'.join(map(str, rest))), level_of(str(group))


def level_of(group: str) -> int:
  """The level whose tree in the bank has this name, see links.group."""
  return 0 if group == FIRST else int(group.removeprefix(LATER))
