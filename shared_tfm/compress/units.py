"""Heads and neurons taken out of a network: smaller arrays, fewer products.

The same number is taken from every row, so that a bank stays one array; which
ones, each row has its own say in. Rows that meet in a visit, as the levels of a
sum do or queries and keys with tables of their own, must lose the same ones:
visits are gathered into groups that have no row in common, and a group's scores
are the sum over its visits.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shared_tfm.compress import importance
from shared_tfm.config import Model, sides
from shared_tfm.config.shapes import components
from shared_tfm.errors import need
from shared_tfm.model.storage import layout
from shared_tfm.sharing import links
from shared_tfm.sharing.bank import Leaf

Keep = Mapping[str, np.ndarray]  # by the axis's logical name, which units


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
    for part in importance.parts(stack, kind):
      for path, leaf in layout(stack).items():
        spec = components(stack)[leaf.name].spec
        diagonal = any(level.diagonal for level in spec.levels)
        need(
          path[0] != part or not (spec.within or diagonal),
          f'--prune={kind} needs units that share no columns, and no'
          f' diagonals, got {spec} for {leaf.name}',
        )


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
    scores: of every unit of every visit, see importance.py.
    kind: 'heads' or 'neurons'.
    amount: how many from every layer; below 1 which share.

  Raises:
    BadInput: so many cannot be taken out.
  """
  found, fields = dict(params), dict[str, Any]()
  for name, stack in sides.stacks(model).items():
    bank = {g: flatten_dict(tree) for g, tree in params[name].items()}
    total = importance.count(stack, kind)
    count = round(amount * total) if amount < 1 else int(amount)
    need(
      0 < count < total,
      f'--prune={kind} takes from 1 to {total - 1} of {total} {kind}, got'
      f' {count}',
    )
    for part in importance.parts(stack, kind):
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
