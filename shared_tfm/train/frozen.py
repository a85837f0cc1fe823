"""What a run whose tables changed has come to: a model of fixed tables."""

import dataclasses
from typing import Any

import jax

from shared_tfm import accounting
from shared_tfm.config import SHARING_FIELDS, Adapt, Config, Sharing
from shared_tfm.config.loops import loops
from shared_tfm.config.shapes import components
from shared_tfm.sharing import adaptive
from shared_tfm.sharing.table import Owners
from shared_tfm.train.adapt import tables_of
from shared_tfm.train.state import State


def frozen(config: Config, state: State) -> Config:
  """The config whose specs are the tables as they now are, and stay.

  Args:
    config: of a run whose tables change.
    state: of that run.
  """
  found = components(config.model)
  specs = adaptive.literals(
    {name: component.spec for name, component in found.items()},
    _owners(state),
  )
  fields = {SHARING_FIELDS[name]: spec for name, spec in specs.items()}
  p, c, _, k = loops(config.model)  # which a literal no longer tells
  model = dataclasses.replace(
    config.model,
    tables='fixed',
    sharing=Sharing(**fields),
    depth=dataclasses.replace(config.model.depth, prelude=p, core=c, coda=k),
  )
  return dataclasses.replace(config, model=model, adapt=Adapt())


def freeze(config: Config, state: State) -> tuple[Config, dict[str, Any]]:
  """A model of fixed tables that computes what an adaptive one computes.

  Args:
    config: of a run whose tables change.
    state: of that run.

  Returns:
    The config, and the model's variables: 'params', without the rows that
    nobody reads, and other collections.
  """
  kept = {k: v for k, v in state.variables.items() if k != 'tables'}
  params = adaptive.compact(state.params, _owners(state))
  return frozen(config, state), {'params': params, **kept}


def concluded(config: Config, state: State) -> dict[str, Any]:
  """What a run's result says of its tables; nothing where they are fixed.

  Returns:
    'frozen_sharing': a scheme, such as 'layer=0,0,1,1', that has the tables as
    they were at the end. 'frozen_params': the parameters stored under it.
  """
  if config.model.tables == 'fixed':
    return {}
  fixed = frozen(config, state)
  specs = fixed.model.sharing.specs().items()
  return {
    'frozen_sharing': ' '.join(f'{name}={spec}' for name, spec in specs),
    'frozen_params': accounting.parameters(fixed.model)['stored'],
  }


def _owners(state: State) -> dict[str, tuple[Owners, ...]]:
  return {
    name: tuple(tuple(map(int, column)) for column in rows.T)
    for name, rows in jax.device_get(tables_of(state)).items()
  }
