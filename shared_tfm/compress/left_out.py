"""Visits taken out of a network: a shorter owner table, fewer rows.

What is left are literal tables; rows that nobody reads any more go. Whatever a
row was shared for, a visit is what is left out, and so what is scored:

    similarity  how little it turns the residual stream, see model/influence.py
    loss        of the network without the visit
"""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shared_tfm import tasks
from shared_tfm.config import SHARING_FIELDS, Config, Model, Sharing
from shared_tfm.config.loops import is_plain
from shared_tfm.config.shapes import components
from shared_tfm.errors import need
from shared_tfm.model import build, untied
from shared_tfm.model.storage import layout
from shared_tfm.sharing import adaptive, levels, table


def check(model: Model) -> None:
  """Checks that visits can be left out of a network.

  Raises:
    BadInput: a field that counts visits in another way.
  """
  plain: dict[str, tuple[Any, Any]] = {
    'tables': (model.tables, 'fixed'),
    'core_width': (model.core_width, 0),
    'sharing.kv_source': (model.sharing.kv_source, ''),
    'sharing.map_source': (model.sharing.map_source, ''),
  }
  for name, (value, wanted) in plain.items():
    need(
      value == wanted,
      f'--prune=visits needs model.{name} {wanted!r}, got {value!r}',
    )
  need(
    model.family != 'encoder_decoder' and is_plain(model),
    '--prune=visits needs one stack of fixed depth, got model.family'
    f' {model.family} and model.depth.rule {model.depth.rule}',
  )
  need(
    model.step_signal != 'sinusoidal',
    '--prune=visits needs layers that are not told their number, got'
    ' model.step_signal sinusoidal',
  )


def losses(
  config: Config, params: Any, variables: Any, batches: Iterable[Any]
) -> np.ndarray:
  """The loss without each of the visits, (visits,).

  One program does for all of them, of a network that stores every visit's
  weights.

  Args:
    config: of the network; see `check`.
    params: its parameters.
    variables: its other collections.
    batches: to look at.
  """
  model = config.model
  n = model.num_layers
  less = dataclasses.replace(config, model=untied.some_visits(model, n - 1))
  net, observe = build(less), tasks.make(less).observe
  spread = untied.spread(model, params, variables)

  @jax.jit
  def run(variables: Any, batch: Any) -> Any:
    return net.apply(variables, batch, method=observe)[0]

  found, given = [], list(batches)
  for i in range(n):
    kept = np.delete(np.arange(n), i)
    rows = jax.tree.map(lambda leaf, kept=kept: leaf[kept], spread['stack'])
    there = {'params': {**spread, 'stack': rows}, **_of(variables, kept)}
    sums = [jax.device_get(run(there, batch)) for batch in given]
    total, weight = (sum(s[name] for s in sums) for name in ('loss', 'weight'))
    found.append(total / weight)
  return np.asarray(found)


def without(
  model: Model, params: Any, variables: Any, visits: Collection[int]
) -> tuple[Model, Any, Any]:
  """The network without some of its visits.

  Args:
    model: the network; see `check`.
    params: its parameters.
    variables: its other collections.
    visits: their numbers, not all.

  Returns:
    The network, its parameters and its other collections.
  """
  kept = [i for i in range(model.num_layers) if i not in visits]
  need(
    0 < len(kept) < model.num_layers,
    f'--prune=visits takes from 1 to {model.num_layers - 1} of'
    f' {model.num_layers} visits, got {len(visits)}',
  )
  found, leaves = components(model), layout(model)
  read = {
    name: [[owners[i] for i in kept] for owners in component.owners]
    for name, component in found.items()
  }
  specs = {
    SHARING_FIELDS[name]: _literal(component.spec, read[name])
    for name, component in found.items()
  }
  bank: dict[str, Any] = {}
  for group, tree in params['stack'].items():
    flat = bank.setdefault(group, {})
    for path, leaf in flatten_dict(tree).items():
      if group == 'mix':
        name = path[0]
        soft = [bool(level.templates) for level in found[name].spec.levels]
        level = soft.index(True)
      else:
        place = path if path in leaves else path[:-1]
        name, level = leaves[place].name, adaptive.level_of(group)
        term = found[name].spec.levels[level]
        if term.templates and len(leaves[place].shape) > 1:
          flat[path] = leaf
          continue
      rows = list(dict.fromkeys(read[name][level]))
      flat[path] = np.asarray(leaf)[rows]
  shorter = dataclasses.replace(
    model,
    num_layers=len(kept),
    residual_visits=model.scaled_visits,
    sharing=Sharing(**specs),
    remat_group=model.remat_group if len(kept) % model.remat_group == 0 else 1,
  )
  stack = {group: unflatten_dict(flat) for group, flat in bank.items()}
  return shorter, {**params, 'stack': stack}, _of(variables, kept)


def _of(variables: Any, kept: Any) -> Any:
  """Other collections of those visits that are kept."""
  kept = np.asarray(kept)
  return {
    name: {
      **tree,
      'stack': jax.tree.map(lambda a: np.asarray(a)[kept], tree['stack']),
    }
    if 'stack' in tree
    else tree
    for name, tree in variables.items()
  }


def _literal(spec: levels.Spec, tables: list[list[int]]) -> str:
  """A spec with these tables, rows from 0, where its own do not say so."""
  terms = []
  for level, owners in zip(spec.levels, tables, strict=True):
    if level.table.name not in ('none', 'all'):
      rows = table.Spec('literal', adaptive.dense(owners))
      level = dataclasses.replace(level, table=rows)
    terms.append(level)
  return str(dataclasses.replace(spec, levels=tuple(terms)))
