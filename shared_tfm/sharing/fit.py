"""A bank fitted to weights that exist: from a donor's layers to any spec.

Relaxed Recursive Transformers (2410.20672, section 2.2) start a looped model
from a trained one: a tied row from the layers that will read it, and for each
layer a product that makes up for most of what tying loses. The same steps, one
level after the other, fit any spec; what a level leaves over, the next one
takes. Everything here runs in NumPy, once.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shared_tfm.errors import unknown
from shared_tfm.sharing import links
from shared_tfm.sharing.bank import Layout, Leaf
from shared_tfm.sharing.component import Component
from shared_tfm.sharing.levels import DIAGONAL, Level

Array = np.ndarray
Flat = dict[tuple[str, ...], Array]


def _mean(same: Array) -> Array:
  """The mean over the leading axis; of equal entries exactly these."""
  return same[0] + (same - same[:1]).mean(axis=0)


def _average(layers: Array, table: Array) -> Array:
  """Every row is the mean of its layers: the least squared error."""
  rows = range(table.max() + 1)
  return np.stack([_mean(layers[table == row]) for row in rows])


def _principal(layers: Array, table: Array) -> Array:
  """Every row is its layers' mean along their leading singular direction.

  What they have in common stays, and what only some of them have goes.
  """
  rows = []
  for row in range(table.max() + 1):
    same = layers[table == row]
    flat = same.reshape(len(same), -1)
    leading = np.linalg.eigh(flat @ flat.T)[1][:, -1]
    rows.append(np.tensordot(leading.mean() * leading, same, axes=1))
  return np.stack(rows)


def _stepwise(layers: Array, table: Array) -> Array:
  """Layers at even distances, the first and the last among them."""
  picked = np.linspace(0, len(layers) - 1, table.max() + 1)
  return layers[np.round(picked).astype(int)]


def _lower(layers: Array, table: Array) -> Array:
  """The first layers, one for each row."""
  return layers[: table.max() + 1]


def _upper(layers: Array, table: Array) -> Array:
  """The last layers, one for each row."""
  return layers[len(layers) - table.max() - 1 :]


STARTS: dict[str, Callable[[Array, Array], Array]] = {
  'average': _average,
  'stepwise': _stepwise,
  'lower': _lower,
  'upper': _upper,
  'svd': _principal,
}
PRODUCTS = ('svd', 'zero')


def fit(
  layers: Any,
  components: Mapping[str, Component],
  leaves: Layout,
  start: str = 'average',
  products: str = 'svd',
  seed: int = 0,
) -> dict[str, Any]:
  """The bank whose weights are as near to given layers as its specs allow.

  Level by level, each to what those before it leave over:

  * The first full-rank level is made by `start`, later ones by averages.
  * A product of rank r is the truncated singular value decomposition U S V^T of
    the average: its factors are U and S V^T, so that the second, which training
    starts at zero without a donor, holds the sizes (2410.20672, section 2.3).
  * A diagonal is the average's.
  * Templates are the leading right singular vectors of all layers, each layer a
    vector of all matrices that follow the component: exact where there are as
    many templates as layers. Coefficients have a mean squared length of 1.
  * Units that share columns, and parts that share weights, are averaged first.

  Args:
    layers: a layer's parameters, with a leading axis of layers. Of a part that
      a layer does not read, any values.
    components: of the bank, by name; all its rows its own.
    leaves: see `bank.layout`.
    start: a key of STARTS.
    products: 'svd', or 'zero' for products that add nothing at first.
    seed: of what is drawn: first factors of products that add nothing, and
      coefficients of templates beyond the number of layers, which are zero.

  Returns:
    The bank's trees by name, unboxed, as `links.weights` takes them.

  Raises:
    BadInput: a start or a kind of products that is none.
  """
  if start not in STARTS:
    raise unknown('start', start, STARTS)
  if products not in PRODUCTS:
    raise unknown('kind of products', products, PRODUCTS)
  random = np.random.default_rng(seed)
  left = _targets(layers, components, leaves)
  found: dict[str, Flat] = {}
  for name in dict.fromkeys(leaves[path].name for path in left):
    spec, tables = components[name].spec, components[name].owners
    mine = [path for path in left if leaves[path].name == name]
    for level, term in enumerate(spec.levels):
      table = np.array(tables[level])
      reads = table >= 0
      here = {
        path: left[path][reads]
        for path in mine
        if level in spec.terms(len(leaves[path].shape))
      }
      soft = {p: w for p, w in here.items() if term.templates and w.ndim > 2}
      group = found.setdefault(links.group(level), {})
      if soft:
        mix, templates = _mixture(list(soft.values()), term.templates, random)
        found.setdefault('mix', {})[(name,)] = mix
        for path, each in zip(soft, templates, strict=True):
          group[path] = each
          left[path][reads] -= np.tensordot(mix, each, axes=1)
      full = [i for i, other in enumerate(spec.levels) if other.full]
      rule = STARTS[start if level in full[:1] or not full else 'average']
      for path in here.keys() - soft.keys():
        if here[path].ndim == 2 or term.full:
          rows = group[path] = rule(here[path], table[reads])
        else:
          mean = _average(here[path], table[reads])
          parts, rows = _matrix(mean, term, products, random)
          group.update({(*path, suffix): p for suffix, p in parts.items()})
        left[path][reads] -= rows[table[reads]]
  return {name: unflatten_dict(flat) for name, flat in found.items() if flat}


def _targets(
  layers: Any, components: Mapping[str, Component], leaves: Layout
) -> Flat:
  """What each stored tensor should be, layer by layer: averages over uses."""
  given = {
    p: np.asarray(w, np.float32) for p, w in flatten_dict(layers).items()
  }
  uses: dict[tuple[str, ...], list[Array]] = {}
  for path, leaf in leaves.items():
    other = components[leaf.name].spec.same_as
    owner = (*other.split('.'), path[-1]) if other else path
    uses.setdefault(owner, []).append(given[path])
  return {
    path: _folded(_mean(np.stack(same)), components[leaves[path].name], leaf)
    for path, same in uses.items()
    for leaf in [leaves[path]]
  }


def _folded(layers: Array, component: Component, leaf: Leaf) -> Array:
  """The average of all units that share columns, for each that is stored."""
  if not (component.spec.within and leaf.units):
    return layers
  owners = np.array(component.spec.within.owners(leaf.units))
  axis = 1 + leaf.axis
  shape = list(layers.shape)
  units = layers.reshape(*shape[:axis], leaf.units, -1, *shape[axis + 1 :])
  stored = _average(np.moveaxis(units, axis, 0), owners)
  shape[axis] = -1
  return np.moveaxis(stored, 0, axis).reshape(shape)


def _mixture(
  tensors: list[Array], count: int, random: np.random.Generator
) -> tuple[Array, list[Array]]:
  """Coefficients (layers, K), and K templates of every tensor."""
  layers = len(tensors[0])
  flat = np.concatenate([t.reshape(layers, -1) for t in tensors], axis=1)
  u, s, vt = np.linalg.svd(flat, full_matrices=False)
  used = min(count, len(s))
  scale = np.float32(np.sqrt(layers / used))
  mix = random.normal(size=(layers, count)).astype(np.float32)
  mix[:, :used] = u[:, :used] * scale
  templates = np.zeros((count, flat.shape[1]), np.float32)
  templates[:used] = s[:used, None] * vt[:used] / scale
  ends = np.cumsum([t[0].size for t in tensors])[:-1]
  return mix, [
    each.reshape(count, *t.shape[1:])
    for each, t in zip(np.split(templates, ends, axis=1), tensors, strict=True)
  ]


def _matrix(
  rows: Array, term: Level, products: str, random: np.random.Generator
) -> tuple[dict[str, Array], Array]:
  """A diagonal or a product for every row, by suffix; and what it amounts to.

  Args:
    rows: matrices, their last two axes (d_in, d_out).
    term: the level.
    products: see `fit`.
    random: what first factors are drawn from.
  """
  if term.diagonal:
    size = min(rows.shape[-2:])
    index = np.arange(size)
    made = np.zeros_like(rows)
    made[..., index, index] = rows[..., index, index]
    return {DIAGONAL: rows[..., index, index]}, made
  rank = min(term.rank, *rows.shape[-2:])
  if products == 'zero':
    size = (*rows.shape[:-1], rank)
    a = random.normal(size=size).astype(np.float32) * rows.shape[-2] ** -0.5
    b = np.zeros((*rows.shape[:-2], rank, rows.shape[-1]), np.float32)
  else:
    u, s, vt = np.linalg.svd(rows, full_matrices=False)
    a, b = u[..., :rank], s[..., :rank, None] * vt[..., :rank, :]
  return {'a': a, 'b': b}, a @ b


def unrolled(
  bank: Mapping[str, Any], components: Mapping[str, Component], leaves: Layout
) -> Any:
  """Every layer's weights, a leading axis of layers: shared to dense.

  Args:
    bank: its trees by name, unboxed.
    components: by name.
    leaves: see `bank.layout`.
  """
  tables = {n: jnp.array(c.owners).T for n, c in components.items() if c.owners}
  return jax.vmap(lambda rows: links.weights(bank, components, leaves, rows))(
    tables
  )


class Frozen(NamedTuple):
  """Soft sharing made hard.

  Attributes:
    spec: a literal table.
    mix: what each of its rows is made of, (rows, K): the row's weights are
      mix @ templates.
  """

  spec: str
  mix: Array


def freeze(mix: Any) -> Frozen:
  """The hard table that is nearest to coefficients of templates.

  A layer goes with the template whose coefficient is largest, which is the
  nearest one-hot vector; a row is the average of its layers' mixtures, so that
  nothing changes where coefficients are one-hot. Rows are numbered in the order
  of their first layers. Vectors, of which under soft sharing every layer has
  its own, are for the caller to decide on.

  Args:
    mix: coefficients, (layers, K).
  """
  mix = np.asarray(mix)
  best = list(mix.argmax(axis=1))
  order = list(dict.fromkeys(best))
  table = [order.index(template) for template in best]
  return Frozen(','.join(map(str, table)), _average(mix, np.array(table)))
