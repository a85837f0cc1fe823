"""The runs of a comparison: where each is, and what came of it."""

import dataclasses
import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

from shared_tfm import accounting, tasks
from shared_tfm import config as configs
from shared_tfm.config import Config
from shared_tfm.data import Dataset, tokenizers
from shared_tfm.errors import BadInput, Diverged, need
from shared_tfm.report.results_file import Result
from shared_tfm.report.sweep import Row, Sweep
from shared_tfm.tasks import prepare
from shared_tfm.train import log, programs, runs
from shared_tfm.train.loop import train

logger = logging.getLogger(__name__)

# What may change of a network without a change of its data.
NETWORK = {
  'activation',
  'core_ff',
  'core_width',
  'd_ff',
  'd_ff_decoder',
  'd_ff_encoder',
  'd_model',
  'depth',
  'dropout',
  'dtype',
  'embed_dim',
  'embed_norm',
  'embed_scale',
  'experts',
  'head_dim',
  'norm',
  'norm_eps',
  'norm_position',
  'num_decoder_layers',
  'num_heads',
  'num_kv_heads',
  'num_layers',
  'position',
  'quantise',
  'residual_scale',
  'residual_visits',
  'rope_theta',
  'shared_gradient',
  'sharing',
  'sharing_decoder',
  'step_signal',
  'tables',
  'tie_embeddings',
  'use_bias',
}


@dataclasses.dataclass(frozen=True)
class Run:
  """One row and seed: the config to train, and where."""

  scheme: str  # the row's label
  seed: int
  config: Config
  folder: Path


def runs_of(
  sweep: Sweep, crossed: Mapping[str, Config], workdir: Path
) -> list[Run]:
  """Every run of a sweep, row by row.

  Args:
    sweep: what is asked for.
    crossed: the config that each row is trained with, by label.
    workdir: the folder of the sweep.
  """
  found = []
  for row in sweep.rows:
    config = crossed[row.label]
    for seed in range(config.train.seed, config.train.seed + sweep.seeds):
      init = donor(config.train.init_from, row, seed)
      seeded = dataclasses.replace(config.train, seed=seed, init_from=init)
      folder = workdir / 'runs' / row.folder / f'seed-{seed}'
      found.append(
        Run(row.label, seed, dataclasses.replace(config, train=seeded), folder)
      )
  return found


def donor(given: str, row: Row, seed: int) -> str:
  """Where a run's weights come from: of a sweep, its run of the same row.

  That is the run of the same seed, or, where there is none, of the first.
  """
  folder = Path(given) / 'runs' / row.folder
  if not given or not folder.is_dir():
    return given
  seeds = sorted(
    int(path.name.removeprefix('seed-')) for path in folder.glob('seed-*')
  )
  need(bool(seeds), f'train.init_from: {folder} has no run')
  return str(folder / f'seed-{seed if seed in seeds else seeds[0]}')


def check_scored(planned: Sequence[Run]) -> None:
  """Checks that all runs are scored on as many examples, those done before too.

  Raises:
    BadInput: they are not, and so cannot stand beside each other.
  """
  counts: dict[int, str] = {}
  for one in planned:
    done = all((one.folder / n).exists() for n in (runs.RESULT, runs.CONFIG))
    config = runs.read_config(one.folder) if done else one.config
    count = config.train.eval_batches * config.train.batch_size
    counts.setdefault(count, f'{one.scheme} seed {one.seed}')
  need(
    len(counts) == 1,
    'runs stand beside each other where they are scored on as many examples,'
    ' train.eval_batches x train.batch_size; here are '
    + ', '.join(f'{count} ({name})' for count, name in counts.items()),
  )


class Data:
  """The data of a sweep, read once; a run whose data is other reads its own."""

  def __init__(self, config: Config, workdir: Path):
    """Reads the data of a config; a trained tokenizer is kept in the folder."""
    self.config, self.workdir = config, workdir
    self.dataset, self.kind = prepare(config, workdir), _kind(config)

  def of(self, run: Run) -> Dataset | None:
    """What a run shares with the others; None: it has to read its own."""
    if _kind(run.config) != self.kind:
      return None
    tokenizers.take_over(self.workdir, run.folder)
    return self.dataset


def _kind(config: Config) -> tuple[Any, ...]:
  """What decides about batches."""
  model = dataclasses.asdict(config.model)
  kept = sorted((k, repr(v)) for k, v in model.items() if k not in NETWORK)
  train = config.train
  return config.data, config.task, train.batch_size, train.accumulate, kept


def finished(run: Run, data: Data, bar: Any) -> dict[str, Any]:
  """The result of a run, which is trained unless it is there."""
  path = run.folder / runs.RESULT
  if path.exists():
    bar.update(run.config.train.num_steps)
    try:
      measured = json.loads(path.read_text())
      need(isinstance(measured, dict), 'no object')
      return measured
    except (ValueError, RecursionError) as error:
      raise BadInput(f'{path} is not a result: {error}') from None
  try:
    return train(run.config, run.folder, data.of(run), bar)
  except Diverged as error:
    logger.warning('%s seed %s diverged: %s', run.scheme, run.seed, error)
    bar.update(run.config.train.num_steps - error.step)
    return _lost(run, error.step)


def _lost(run: Run, step: int) -> dict[str, Any]:
  """What there is to say of a run that diverged by this step."""
  lines = [line for line in log.read(run.folder) if line['kind'] == 'train']
  speeds = [line['tokens_per_second'] for line in lines]
  return {
    'train_loss': None,
    'validation_loss': None,
    'steps': step,
    'tokens': lines[-1]['tokens'] if lines else 0,
    'tokens_per_second': statistics.median(speeds) if speeds else None,
    'peak_memory_bytes': programs.programs(run.config).peak_bytes,
  }


def result(run: Run, measured: Mapping[str, Any], adjusted: str) -> Result:
  """A row of results.csv from the result of a run, and what was adjusted."""
  config = run.config
  if frozen := measured.get('frozen_sharing'):  # tables as they were at the end
    fixed = dataclasses.replace(config.model, tables='fixed')
    config = configs.with_sharing(
      dataclasses.replace(config, model=fixed, adapt=configs.Adapt()), frozen
    )
  described = accounting.describe(config)
  measured = {name: number(value) for name, value in measured.items()}
  return Result(
    scheme=run.scheme,
    seed=run.seed,
    stored_params=described['params']['stored'],
    applied_params=described['params']['applied'],
    non_embedding_params=described['params']['non_embedding'],
    sharing_ratio=described['sharing_ratio'],
    flops_per_token=described['flops_per_token']['train'],
    train_loss=measured['train_loss'],
    validation_loss=measured['validation_loss'],
    steps=measured['steps'],
    tokens=measured['tokens'],
    tokens_per_second=measured['tokens_per_second'],
    peak_memory_bytes=measured['peak_memory_bytes'],
    scores={
      name: value
      for name in tasks.make(config).reported
      for value in (measured.get(f'validation_{name}', measured.get(name)),)
      if value is not None
    },
    adjusted=adjusted,
  )


def devices(planned: Sequence[Run]) -> dict[str, str]:
  """What runs that are done were trained on, where they say so."""
  told = [
    json.loads(path.read_text()).get('device')
    for one in planned
    if (path := one.folder / runs.RESULT).exists()
  ]
  kinds = dict.fromkeys(filter(None, told))
  return {'devices': ', '.join(kinds)} if kinds else {}


def number(value: Any) -> Any:
  """What was not finite is null in JSON."""
  return nan if value is None else value
