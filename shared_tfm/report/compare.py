"""Training the same config under several sharing schemes and seeds."""

import dataclasses
import json
import logging
import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from math import nan
from pathlib import Path
from typing import Any

from shared_tfm import accounting, files, tasks
from shared_tfm import config as configs
from shared_tfm.config import Config
from shared_tfm.data import Dataset, tokenizers
from shared_tfm.errors import BadInput, Diverged, need
from shared_tfm.report import history, html, plots, results_file, tables
from shared_tfm.tasks import prepare
from shared_tfm.train import donor, log, programs, runs, step
from shared_tfm.train.loop import train
from shared_tfm.train.watch import progress

logger = logging.getLogger(__name__)

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')


@dataclasses.dataclass(frozen=True)
class Run:
  """One scheme and seed: the config to train, and where."""

  scheme: str
  seed: int
  config: Config
  folder: Path


def compare(
  config: Any,
  schemes: Sequence[str],
  seeds: int,
  workdir: str | Path,
) -> list[results_file.Result]:
  """Trains each scheme with each seed, and reports them side by side.

  A sweep that was cut goes on where it was: runs that are done are not run
  again, and the one under way resumes. In `workdir`: results.csv, summary.md,
  three plots, report.html, and a folder under runs/ for each run. A run that
  diverges is said to, has no loss (nan) in all of these, and ends no other; the
  same command tries it again from its last checkpoint.

  Args:
    config: a ConfigDict, a dict of fields or a Config; its own sharing plays no
      part, and its `train.seed` is the first of the seeds.
    schemes: sharing schemes, such as 'cycle:3' or 'attention=all', and
      presets, such as '@albert:4'.
    seeds: how many seeds each scheme is trained with.
    workdir: the folder of the sweep.

  Returns:
    One result for each scheme and seed.

  Raises:
    BadInput: a scheme that is wrong or given twice, or a folder that holds
      another sweep. Nothing has been written then.
    Interrupted: a signal ended the sweep; the run under way was saved.
  """
  workdir = Path(workdir)
  sweep = _sweep(configs.cross(config), schemes, seeds, workdir)
  for run in sweep:
    step.check(run.config)
    if not runs.check(run.folder, run.config):
      donor.check(run.config)
  dataset = prepare(sweep[0].config, workdir)
  workdir.mkdir(parents=True, exist_ok=True)

  bar = progress(sum(run.config.train.num_steps for run in sweep))
  results = []
  for number, run in enumerate(sweep, 1):
    name = f'{number}/{len(sweep)} {run.scheme} seed {run.seed}'
    bar.set_description(name, refresh=False)
    results.append(_result(run, _finished(run, workdir, dataset, bar)))
    results_file.write(workdir / 'results.csv', results)
  bar.close()
  report(workdir, sweep, results)
  return results


def report(
  workdir: Path, sweep: Sequence[Run], results: Sequence[results_file.Result]
) -> None:
  """Writes the summary, the plots and the HTML page of finished runs."""
  summary = tables.render(tables.summary(results))
  files.replace(workdir / 'summary.md', summary + '\n')
  curves = {(run.scheme, run.seed): _curve(run) for run in sweep}
  described = {
    run.scheme: accounting.describe(run.config)['owners'] for run in sweep
  }
  owners = {
    scheme: {name: tuple(rows) for name, rows in tables_.items()}
    for scheme, tables_ in described.items()
  }
  drawn = plots.draw_all(results, curves, workdir)
  for run in sweep:
    history.draw(run.folder)
  html.write(
    workdir / 'report.html',
    results,
    curves,
    owners,
    drawn,
    dataclasses.asdict(sweep[0].config),
    versions(),
  )


def versions() -> dict[str, str]:
  """The versions that a measurement depends on."""
  return {
    'python': platform.python_version(),
    **{name: metadata.version(name) for name in PACKAGES},
  }


def _sweep(
  config: Config, schemes: Sequence[str], seeds: int, workdir: Path
) -> list[Run]:
  need(bool(schemes), 'there is no scheme to compare')
  need(seeds > 0, f'--seeds must be at least 1, got {seeds}')
  names = [configs.scheme_name(scheme) for scheme in schemes]
  for name in names:
    need(names.count(name) == 1, f'the scheme {name} is given twice')
  sweep = []
  for name in names:
    shared = configs.with_sharing(config, name)
    family = shared.model.family
    need(
      family == config.model.family,
      f'{name} is for model.family {family!r}, got {config.model.family!r}',
    )
    for seed in range(config.train.seed, config.train.seed + seeds):
      seeded = dataclasses.replace(
        shared.train,
        seed=seed,
        init_from=_donor(config.train.init_from, name, seed),
      )
      folder = workdir / 'runs' / _slug(name) / f'seed-{seed}'
      sweep.append(
        Run(name, seed, dataclasses.replace(shared, train=seeded), folder)
      )
  return sweep


def _donor(given: str, scheme: str, seed: int) -> str:
  """Where a run's weights come from: of a sweep, its run of the same scheme.

  That is the run of the same seed, or, where there is none, of the first.
  """
  folder = Path(given) / 'runs' / _slug(scheme)
  if not given or not folder.is_dir():
    return given
  seeds = sorted(
    int(path.name.removeprefix('seed-')) for path in folder.glob('seed-*')
  )
  need(bool(seeds), f'train.init_from: {folder} has no run')
  return str(folder / f'seed-{seed if seed in seeds else seeds[0]}')


def _slug(scheme: str) -> str:
  """A folder's name, another for every scheme."""
  return scheme.translate(str.maketrans(':|/', '-!~') | {ord(' '): '--'})


def _finished(
  run: Run, workdir: Path, dataset: Dataset, bar: Any
) -> dict[str, Any]:
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
  tokenizers.take_over(workdir, run.folder)
  try:
    return train(run.config, run.folder, dataset, bar)
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


def _result(run: Run, measured: dict[str, Any]) -> results_file.Result:
  config = run.config
  if frozen := measured.get('frozen_sharing'):  # tables as they were at the end
    config = configs.with_sharing(
      dataclasses.replace(config, adapt=configs.Adapt()), frozen
    )
  described = accounting.describe(config)
  measured = {name: _number(value) for name, value in measured.items()}
  return results_file.Result(
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
  )


def _curve(run: Run) -> list[plots.Point]:
  return [
    plots.Point(line['step'], line['tokens'], _number(line['loss']))
    for line in log.read(run.folder)
    if line['kind'] == 'validation'
  ]


def _number(value: Any) -> Any:
  """What was not finite is null in JSON."""
  return nan if value is None else value
