"""A run's folder that begins with given weights.

It is an ordinary run after no step, whose one checkpoint has them: `train`,
`evaluate` and `generate` take it as they take any other.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm import files
from shared_tfm.config import Config
from shared_tfm.errors import need
from shared_tfm.train import log, prune, runs
from shared_tfm.train.checkpoint import Checkpoints
from shared_tfm.train.programs import programs
from shared_tfm.train.state import State

REPORT = 'conversion.json'
# Nothing was read of the data, and tables do not change.
_POSITION: dict[str, Any] = {
  'data': None,
  'tokens': 0,
  'unread': [],
  'adapt': {'finished': True},
}


def state_of(config: Config, params: Any, variables: Any) -> State:
  """A fresh state of a config with given weights, on its devices.

  Args:
    config: of the state.
    params: its parameters.
    variables: other collections, of which it takes those it has itself.
  """
  compiled = programs(config)
  state = compiled.init(jnp.uint32(config.train.seed))
  there = {n: x for n, x in variables.items() if n in state.variables}
  where = compiled.where
  return state.replace(
    params=jax.device_put(params, where.params),
    variables={
      **state.variables,
      **jax.device_put(there, {n: where.variables[n] for n in there}),
    },
  )


def check(folder: Path) -> None:
  """Checks that a folder can be made.

  Raises:
    BadInput: there is something in it.
  """
  need(
    not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
    f'{folder} must be new or empty',
  )


def begin(
  workdir: Path, config: Config, make: Callable[[Path], tuple[State, Any]]
) -> dict[str, Any]:
  """Makes the folder, whole or not at all.

  Args:
    workdir: the folder; see `check`.
    config: of the run.
    make: given the folder that will be it, returns the state to begin with and
      what is to be known of it, as JSON. It may write a tokenizer there.

  Returns:
    What is to be known.

  Raises:
    OSError: something could not be written.
  """
  check(workdir)
  with files.made(workdir) as part:
    state, known = make(part)
    # The best is one of those that are pruned as they are to be.
    pruned = prune.Pruner(config, None).done(state)
    loss = known['losses'].get('converted') if pruned else None
    with runs.claimed(part, config):
      checkpoints = Checkpoints(part / runs.CHECKPOINTS, config.train.keep)
      checkpoints.save(0, state, _POSITION, loss)
      checkpoints.close()
      report(part, known)
  return known


def report(workdir: Path, known: Mapping[str, Any]) -> None:
  """Writes down what is known of a conversion."""
  content = json.dumps(log.finite(known), indent=2) + '\n'
  files.replace(workdir / REPORT, content)
