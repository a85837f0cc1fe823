"""The folder of a run: whose it is, and what came of it."""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import socket
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shared_tfm import accounting, files
from shared_tfm import config as configs
from shared_tfm.config import Config
from shared_tfm.data.tokenizers import CONFIG
from shared_tfm.errors import BadInput, need
from shared_tfm.train import log

RESULT, CHECKPOINTS, LOCK = 'result.json', 'checkpoints', '.lock'
logger = logging.getLogger(__name__)

# What may change between a run and its continuation: it alters no weight, or
# only their last bits. So may the mesh, which alters the order of sums, and
# which dropout is drawn.
OBSERVING = {
  'train.eval_every',
  'train.eval_batches',
  'train.score_every',
  'train.log_every',
  'train.checkpoint_every',
  'train.keep',
  'train.max_skipped',
  'train.visit_gradients_every',
  'data.threads',
  'train.memory_gb',
  'model.remat',
  'model.logits_mb',
}


def check(workdir: Path, config: Config) -> bool:
  """Checks that a folder is free, or this config's.

  Returns:
    Whether it is this config's: a run was begun in it.

  Raises:
    BadInput: it is another config's, with what differs; or it is no folder.
  """
  need(
    not workdir.exists() or workdir.is_dir(), f'workdir {workdir} is no folder'
  )
  if not (workdir / CONFIG).exists():
    return False
  check_same(workdir, read_config(workdir), config)
  return True


def check_same(workdir: Path, there: Config, given: Config) -> None:
  """Checks that what a folder has is this config's.

  Raises:
    BadInput: it is another config's, with what differs.
  """
  ours, theirs = _flat(given), _flat(there)
  differ = [
    f'{name} ({theirs[name]!r} there, {ours[name]!r} given)'
    for name in ours
    if ours[name] != theirs[name]
    and name not in OBSERVING
    and not name.startswith('mesh.')
  ]
  need(
    not differ,
    f'workdir {workdir} belongs to another config; it differs in'
    f' {"; ".join(differ[:4])}{"; …" * (len(differ) > 4)}',
  )


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
  """Makes the folder, and has it to itself inside.

  The lock is the kernel's, on an open file: it ends with its process, however
  that ends.

  Raises:
    BadInput: it is in use.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / LOCK).open('ab+', buffering=0) as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      lock.seek(0)
      raise BadInput(
        f'workdir {workdir} is in use by {lock.read().decode() or "another"};'
        ' what trains has its folder to itself'
      ) from None
    except OSError as error:  # not every network file system has locks
      logger.warning(
        '%s cannot be locked (%s): see to it that nothing else uses it',
        workdir,
        error.strerror,
      )
    lock.truncate(0)
    lock.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
    yield


@contextlib.contextmanager
def claimed(workdir: Path, config: Config) -> Iterator[None]:
  """`alone` in the folder of a run, with whose it is written down.

  Raises:
    BadInput: it is in use, or has become another config's.
  """
  with alone(workdir):
    # Again: before the lock it may have become another's.
    check(workdir, config)
    files.sweep(workdir, CONFIG, RESULT, log.METRICS)
    ours, path = _json(dataclasses.asdict(config)), workdir / CONFIG
    if not path.exists() or path.read_text() != ours:
      files.replace(path, ours)
    yield


def read_config(workdir: Path) -> Config:
  """The config of a run's folder.

  Raises:
    BadInput: there is none, or it cannot be read.
  """
  path = workdir / CONFIG
  need(path.exists(), f'{workdir} is no run: it has no {CONFIG}')
  try:
    return configs.cross(json.loads(path.read_text()))
  except (ValueError, AttributeError, RecursionError) as error:
    raise BadInput(f'{path} is not a config: {error}') from None


def begun(workdir: Path) -> Config:
  """The config of a run that is to be gone on with.

  Raises:
    BadInput: as `read_config`.
  """
  need(
    (workdir / CONFIG).exists(),
    f'{workdir} has no run yet, so this is required: --config (see shared_tfm'
    ' train --help)',
  )
  return read_config(workdir)


def conclude(
  workdir: Path, config: Config, measured: Mapping[str, Any]
) -> dict[str, Any]:
  """Writes result.json: what was measured, and what follows from the log.

  The training loss is the mean over the last tenth of the run, the speed the
  median over all of it.
  """
  t = config.train
  lines = [line for line in log.read(workdir) if line['kind'] == 'train']
  late = [x['loss'] for x in lines if x['step'] > 0.9 * t.num_steps]
  losses = [loss for loss in late if loss is not None]
  result = {
    'steps': t.num_steps,
    'tokens': lines[-1]['tokens'],
    'train_loss': statistics.fmean(losses) if losses else None,
    'tokens_per_second': statistics.median(
      x['tokens_per_second'] for x in lines
    ),
    **log.finite(measured),
    **counts(config),
  }
  files.replace(workdir / RESULT, _json(result))
  return result


def counts(config: Config) -> dict[str, float]:
  """The counts of parameters that go with every evaluation."""
  described = accounting.describe(config)
  return {
    'stored_params': described['params']['stored'],
    'applied_params': described['params']['applied'],
    'sharing_ratio': described['sharing_ratio'],
  }


def _json(content: Any) -> str:
  return json.dumps(content, indent=2) + '\n'


def _flat(config: Config) -> dict[str, Any]:
  flat: dict[str, Any] = {}

  def visit(prefix: str, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
      if isinstance(value, Mapping):
        visit(f'{prefix}{name}.', value)
      else:
        flat[prefix + name] = value

  visit('', dataclasses.asdict(config))
  return flat
