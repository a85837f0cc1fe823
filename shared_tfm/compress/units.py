"""Heads and neurons taken out of a network: smaller arrays, fewer products.

The same number is taken from every row, so that a bank stays one array; which
ones, each row has its own say in. Rows that meet in a visit, as the levels of a
sum do or queries and keys with tables of their own, must lose the same ones:
visits are gathered into groups that have no row in common, and a group's scores
are the sum over its visits.

    magnitude  the norm of what leads into a unit times that of what leads out,
               so that one without weights on either side goes first
    gradient   |d loss / d gate| of a gate of 1 on what the unit gives, which is
               the sum of weight * gradient over what leads out (Michel et al.,
               1905.10650, section 4.1; Molchanov et al., 1906.10771)
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shared_tfm.config import Config, Model, sides
from shared_tfm.config.shapes import components
from shared_tfm.errors import need
from shared_tfm.model import untied
from shared_tfm.model.stack import layout
from shared_tfm.sharing import links
from shared_tfm.sharing.bank import Leaf

Keep = Mapping[str, np.ndarray]  # by the axis's logical name, which units
INTO = {'heads': ('value',), 'neurons': ('up', 'gate')}
OUT = {'heads': 'out', 'neurons': 'down'}
_PARTS = {
  'heads': ('attention', 'cross_attention'),
  'neurons': ('feed_forward',),
}


def check(model: Model, kind: str) -> None:
  """Checks that units can be taken out of a network.

  Raises:
    BadInput: a field that ties them to something else.
  """
  experts = 'num_attention' if kind == 'heads' else 'num_ff'
  plain: dict[str, tuple[Any, Any]] = {
    'tables': (model.tables, 'fixed'),
    'core_width': (model.core_width, 0),
    'sharing.across': (model.sharing.across, ''),
    f'experts.{experts}': (getattr(model.experts, experts), 0),
  }
  if kind == 'heads':
    plain |= {
      'embed_project': (model.embed_project, 'linear'),
      'depth.attention': (model.depth.attention, 'loop'),
      'sharing.kv_source': (model.sharing.kv_source, ''),
      'sharing.map_source': (model.sharing.map_source, ''),
    }
  for name, (value, wanted) in plain.items():
    need(
      value == wanted,
      f'--prune={kind} needs model.{name} {wanted!r}, got {value!r}',
    )
  for stack in sides.stacks(model).values():
    for part in _parts(stack, kind):
      for path, leaf in layout(stack).items():
        spec = components(stack)[leaf.name].spec
        diagonal = any(level.diagonal for level in spec.levels)
        need(
          path[0] != part or not (spec.within or diagonal),
          f'--prune={kind} needs units that share no columns, and no'
          f' diagonals, got {spec} for {leaf.name}',
        )


def _parts(stack: Model, kind: str) -> list[str]:
  return [name for name in _PARTS[kind] if name in stack.sublayers]


def scores_by_size(
  model: Model, params: Any, kind: str
) -> dict[str, np.ndarray]:
  """The scores of all units by magnitude, (visits, units), by stack and part.

  Args:
    model: the network.
    params: its parameters.
    kind: 'heads' or 'neurons'.
  """
  found = {}
  each = jax.device_get(untied.of_visits(model, params, {}))
  for name, stack in sides.stacks(model).items():
    leaves = layout(stack)
    for part in _parts(stack, kind):
      total: np.ndarray | float = 1.0
      for inner in (*INTO[kind], OUT[kind]):
        square: np.ndarray | float = 0.0
        for suffix in ('kernel', 'bias'):
          path = (part, inner, suffix)
          if path in leaves and leaves[path].units:
            of_units = _by_unit(each[name][path], leaves[path])
            square = square + (of_units**2).sum(axis=-1)
        if isinstance(square, np.ndarray):
          heads = _units(stack, kind)
          norm = np.sqrt(square)  # of values, one for several heads
          total = total * norm.repeat(heads // norm.shape[1], axis=1)
      found[f'{name}.{part}'] = np.asarray(total)
  return found


def scores_by_gradient(
  config: Config, params: Any, slopes: Iterable[Any], kind: str
) -> dict[str, np.ndarray]:
  """The same by first-order importance, the mean over batches.

  Args:
    config: of the network.
    params: its parameters.
    slopes: of each batch what `visits.visit_gradients` returns.
    kind: so too.
  """
  found: dict[str, np.ndarray] = {}
  model = config.model
  each = jax.device_get(untied.of_visits(model, params, {}))
  for grads in slopes:
    for name, stack in sides.stacks(model).items():
      for part in _parts(stack, kind):
        path = (part, OUT[kind], 'kernel')
        slope = np.asarray(flatten_dict(grads[name]['rows'])[path])
        felt = _by_unit(each[name][path] * slope, layout(stack)[path])
        where = f'{name}.{part}'
        found[where] = found.get(where, 0) + np.abs(felt.sum(axis=-1))
  return found


def _by_unit(values: Any, leaf: Leaf) -> np.ndarray:
  """A tensor of every visit as (visits, units, all else)."""
  values = np.asarray(values, np.float32)
  moved = np.moveaxis(values, 1 + leaf.axis, 1)
  units = moved.reshape(len(moved), leaf.units, -1, *moved.shape[2:])
  return units.reshape(*units.shape[:2], -1)


def _units(stack: Model, kind: str) -> int:
  return stack.num_heads if kind == 'heads' else stack.d_ff


def taken_out(
  model: Model,
  params: Any,
  scores: Mapping[str, np.ndarray],
  kind: str,
  amount: float,
) -> tuple[Model, Any]:
  """The network without the units of the lowest scores.

  Args:
    model: the network; see `check`.
    params: its parameters.
    scores: of every unit of every visit, see `scores_by_size`.
    kind: 'heads' or 'neurons'.
    amount: how many from every layer; below 1 which share.

  Raises:
    BadInput: so many cannot be taken out.
  """
  found, fields = dict(params), dict[str, Any]()
  for name, stack in sides.stacks(model).items():
    bank = {g: flatten_dict(tree) for g, tree in params[name].items()}
    total = _units(stack, kind)
    count = round(amount * total) if amount < 1 else int(amount)
    need(
      0 < count < total,
      f'--prune={kind} takes from 1 to {total - 1} of {total} {kind}, got'
      f' {count}',
    )
    for part in _parts(stack, kind):
      visits = _groups(stack, part)
      each = scores[f'{name}.{part}']
      keep = {}
      for group in set(visits):
        own = np.array(visits) == group
        keep[group] = _kept(stack, kind, each[own].sum(axis=0), count)
      _take(stack, bank, part, visits, keep)
    found[name] = {g: unflatten_dict(flat) for g, flat in bank.items()}
    fields |= _fields(model, name, stack, kind, count)
  return dataclasses.replace(model, **fields), found


def _fields(
  model: Model, name: str, stack: Model, kind: str, count: int
) -> dict[str, int]:
  """What changes in the model."""
  if kind == 'neurons':
    width = stack.d_ff - count
    if model.family != 'encoder_decoder':
      return {'d_ff': width}
    side = 'd_ff_decoder' if name == 'stack' else 'd_ff_encoder'
    return {'d_ff': width, side: width}
  left, each = stack.num_heads - count, stack.num_heads // stack.num_kv_heads
  kv_heads = left // each if count % each == 0 else stack.num_kv_heads
  return {'num_heads': left, 'num_kv_heads': kv_heads}


def _kept(stack: Model, kind: str, scores_U: np.ndarray, count: int) -> Keep:
  """The units that stay, in order.

  Of heads that share keys and values, whole groups where `count` is a number of
  such, so that less is kept for each token; else as many of each group.
  """
  if kind == 'neurons':
    return {'mlp': _best(scores_U, len(scores_U) - count)}
  heads, groups = stack.num_heads, stack.num_kv_heads
  each = heads // groups
  scores_GE = scores_U.reshape(groups, each)
  if count % each == 0:
    left = _best(scores_GE.sum(axis=1), groups - count // each)
    places = left[:, None] * each + np.arange(each)
    return {'heads': places.reshape(-1), 'kv_heads': left}
  need(
    count % groups == 0,
    f'--prune=heads takes whole groups of {each} heads, or as many of each of'
    f' {groups} groups, got {count}',
  )
  left_GE = [_best(row, each - count // groups) for row in scores_GE]
  places = np.arange(groups)[:, None] * each + np.array(left_GE)
  return {'heads': places.reshape(-1), 'kv_heads': np.arange(groups)}


def _best(scores: np.ndarray, count: int) -> np.ndarray:
  """The places of the highest scores, in order; of equals the last."""
  return np.sort(np.argsort(scores, kind='stable')[len(scores) - count :])


def _groups(stack: Model, part: str) -> list[int]:
  """The group of every visit: those that read a row in common are in one."""
  label = list(range(stack.num_layers))
  for path, leaf in layout(stack).items():
    component = components(stack)[leaf.name]
    if path[0] != part:
      continue
    for level, owners in enumerate(component.owners):
      soft = component.spec.levels[level].templates
      first: dict[int, int] = {}
      for visit, row in enumerate(owners):
        a, b = label[first.setdefault(0 if soft else row, visit)], label[visit]
        label = [a if other == b else other for other in label]
  return label


def _take(
  stack: Model,
  bank: dict[str, dict[tuple[str, ...], Any]],
  part: str,
  visits: list[int],
  keep: Mapping[int, Keep],
) -> None:
  """Replaces the part's tensors in the bank by what is kept of them."""
  for path, leaf in layout(stack).items():
    component = components(stack)[leaf.name]
    if path[0] != part or not leaf.units:
      continue
    axes = len(leaf.shape)
    for level in component.spec.terms(axes):
      term, owners = component.spec.levels[level], component.owners[level]
      stored = bank[links.group(level)]
      for suffix in term.shapes(leaf.shape):
        place = (*path, suffix) if suffix else path
        axis = _axis(leaf, suffix)
        if axis is None:
          continue
        rows = []
        for row, values in enumerate(np.asarray(stored[place])):
          soft = term.templates and axes > 1
          reader = 0 if soft or row not in owners else owners.index(row)
          left = keep[visits[reader]][leaf.names[leaf.axis] or '']
          rows.append(_picked(values, leaf, axis, left))
        stored[place] = np.stack(rows)
        size = rows[0].shape[axis]
        need(
          not suffix or rows[0].size <= size**2,
          f'--prune leaves {size} of a side of {".".join(place)}, fewer than'
          f' the rank of {component.spec}',
        )


def _axis(leaf: Leaf, suffix: str) -> int | None:
  """The axis of units of what one row stores; None: it has none."""
  if not suffix:
    return leaf.axis
  inputs = leaf.axis == len(leaf.shape) - 2
  return leaf.axis if inputs == (suffix == 'a') else None


def _picked(
  values: np.ndarray, leaf: Leaf, axis: int, left: np.ndarray
) -> np.ndarray:
  size = leaf.shape[leaf.axis] // leaf.units
  places = (left[:, None] * size + np.arange(size)).reshape(-1)
  return values.take(places, axis=axis)
