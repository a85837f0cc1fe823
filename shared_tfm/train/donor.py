"""The weights of one run as the start of another: fine-tuning.

What has the same path and shape in both trees is taken over: embeddings, the
stack, norms, and the heads of a task that goes on. All else starts fresh, and
may change what a network does: a rule of depth with its units, say.
"""

import functools
import logging
import operator
from collections.abc import Set
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm import accounting, tasks
from shared_tfm.config import Config
from shared_tfm.errors import need
from shared_tfm.train import mesh as meshes
from shared_tfm.train import prune, runs
from shared_tfm.train import state as states
from shared_tfm.train.checkpoint import Checkpoints
from shared_tfm.train.programs import Programs

logger = logging.getLogger(__name__)

HEADS = (
  'head',
  'classes',
  'spans',
)  # may have other shapes, and are fresh then
SCORE = ('classes', 'score')  # means nothing where the classes are others

# What changes what weights do, but no shape.
FUNCTION = (
  'family',
  'num_heads',
  'num_kv_heads',
  'head_dim',
  'activation',
  'norm',
  'norm_eps',
  'norm_position',
  'embed_scale',
  'position',
  'positions_at',
  'step_signal',
  'rope_theta',
  'rotary_fraction',
  'residual_scale',
  'sharing.kv_source',
  'sharing.map_source',
)

Names = tuple[str, ...]


def check(config: Config) -> None:
  """Checks that a run can start from what `train.init_from` names, if it does.

  Raises:
    BadInput: that is no run, or its weights do not fit; what differs.
  """
  if config.train.init_from:
    _matched(config, runs.read_config(Path(config.train.init_from)))


def start(
  config: Config, state: states.State
) -> tuple[states.State, dict[str, Any]]:
  """A fresh state with the weights of the run that `train.init_from` names.

  They are those of its best checkpoint, or of its latest where no loss was
  measured.

  Args:
    config: of the run that starts.
    state: its own, fresh.

  Returns:
    The state, and what was taken over, to be logged.

  Raises:
    BadInput: as `check`, or there is no checkpoint that can be used.
  """
  folder = Path(config.train.init_from)
  donor = runs.read_config(folder)
  names = _matched(config, donor)
  checkpoints = Checkpoints(folder / runs.CHECKPOINTS)
  mesh = meshes.make(config)  # on which that run need not have been
  given = checkpoints.load('best', Programs(donor, mesh).shapes)
  checkpoints.close()
  _, params, variables = prune.baked(donor, given)
  there = _flat({'params': params, **variables})
  tree = {'params': state.params, **state.variables}
  ours = _flat(tree)
  leaves = [there[name] if name in names else ours[name] for name in ours]
  tree = jax.tree.unflatten(jax.tree.structure(tree), leaves)
  told = {
    'init_from': str(folder),
    'donor_step': int(given.step),
    'taken': _groups(names),
    'taken_params': sum(ours[n].size for n in names if n[0] == 'params'),
    'fresh': _groups({n for n in ours if n[0] not in prune.OURS} - names),
    'left': _groups(there.keys() - names),
  }
  logger.warning(
    'starts from step %s of %s: taken over %s; fresh %s; left there %s',
    told['donor_step'],
    folder,
    *(
      ', '.join(told[name]) or 'nothing' for name in ('taken', 'fresh', 'left')
    ),
  )
  return state.replace(params=tree.pop('params'), variables=tree), told


def _matched(config: Config, donor: Config) -> set[Names]:
  """The paths of what is taken over."""
  where = f'train.init_from {config.train.init_from}'
  pairs = [
    (f'model.{name}', field(donor.model), field(config.model))
    for name in FUNCTION
    for field in [operator.attrgetter(name)]
  ]
  scaled = donor.model.scaled_visits, config.model.scaled_visits
  pairs.append(('model.residual_visits, or visits,', *scaled))
  pairs.append(('data.tokenizer', donor.data.tokenizer, config.data.tokenizer))
  for field, a, b in pairs:
    need(a == b, f'{where} has {field} {a!r}, and this run {b!r}')
  need(
    donor.model.tables == config.model.tables == 'fixed',
    f'{where}: weights of tables that change (adapt.method) are not passed on',
  )
  need(
    not donor.model.quantise.integers,
    f'{where} holds integers, which are not passed on: convert it to float32',
  )
  tables = [accounting.describe(each)['owners'] for each in (donor, config)]
  for part in [part for part in tables[0] if part in tables[1]]:
    theirs, own = (table[part] for table in tables)
    need(
      len(theirs) != len(own) or theirs == own,  # equal banks may mean others
      f'{where} shares {part} as {_line(theirs)}, and this run as {_line(own)}',
    )
  there, ours = _shapes(donor), _shapes(config)
  goes_on = (
    type(tasks.make(donor)) is type(tasks.make(config))
    and donor.data.source == config.data.source
  )
  names = set()
  for name in ours.keys() & there.keys():
    room = name[1]
    if ours[name] != there[name]:
      need(
        room in HEADS,
        f'{where} has {".".join(name[1:])} of shape {there[name]}, and this run'
        f' {ours[name]}',
      )
    elif name[0] not in prune.OURS and (goes_on or name[1:3] != SCORE):
      names.add(name)
  need(
    any(name[1] in ('stack', 'encoder') for name in names),
    f"{where} has no weight of this run's layers",
  )
  return names


def _shapes(config: Config) -> dict[Names, tuple[int, ...]]:
  state = jax.eval_shape(
    functools.partial(states.initial, config),
    jax.ShapeDtypeStruct((), jnp.uint32),
  )
  tree = {'params': state.params, **state.variables}
  return {name: leaf.shape for name, leaf in _flat(tree).items()}


def _flat(tree: Any) -> dict[Names, Any]:
  """Leaves by path: the collection, then the names."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    tuple(str(getattr(key, 'key', key)) for key in path): leaf
    for path, leaf in leaves
  }


def _groups(names: Set[Names]) -> list[str]:
  """The rooms of the model that paths lie in; of heads, the parts."""
  return sorted({'.'.join(n[1 : 3 if n[1] in HEADS else 2]) for n in names})


def _line(owners: list[int | None]) -> str:
  return ' '.join('-' if row is None else str(row) for row in owners)
