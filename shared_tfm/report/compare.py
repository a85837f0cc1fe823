"""Training the same config under several sharing schemes and seeds."""

import contextlib
import dataclasses
import functools
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from shared_tfm import accounting, files
from shared_tfm import config as configs
from shared_tfm.config import Config
from shared_tfm.errors import need
from shared_tfm.report import (
  budget,
  history,
  html,
  plots,
  pool,
  results_file,
  sweep_file,
  tables,
  trained,
  tuning,
)
from shared_tfm.report import sweep as sweeps
from shared_tfm.report.sweep import Sweep
from shared_tfm.report.sweep_file import Solved
from shared_tfm.report.trained import Run
from shared_tfm.train import donor, log, runs, step
from shared_tfm.train.watch import progress

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')


def compare(
  config: Any = None,
  schemes: Sequence[str | Mapping[str, Any]] = (),
  seeds: int | None = None,
  workdir: str | Path = '',
  *,
  sweep: str | Path | None = None,
  processes: int = 1,
  **settings: Any,
) -> list[results_file.Result]:
  """Trains each scheme with each seed, and reports them side by side.

  A sweep that was cut goes on where it was: runs that are done are not run
  again, and the one under way resumes. In `workdir`: sweep.json, results.csv,
  summary.md, three plots, report.html, and a folder under runs/ for each run. A
  run that diverges is said to, has no loss (nan) in all of these, and ends no
  other; the same command tries it again from its last checkpoint.

  Args:
    config: a ConfigDict, a dict of fields or a Config; its own sharing plays no
      part, and its `train.seed` is the first of the seeds. Without it, and
      without `sweep`, the folder's own sweep goes on.
    schemes: sharing schemes, such as 'cycle:3' or 'attention=all', and
      presets, such as '@albert:4'; or rows, as dicts with `sharing`, maybe a
      `label`, and fields of the config that a row alone has.
    seeds: how many seeds each scheme is trained with; 1 unless given.
    workdir: the folder of the sweep.
    sweep: a sweep file, which says all but the folder; see sweep_file.py.
    processes: how many runs are under way at a time; see pool.py.
    **settings: `equal`, `adjust`, `tune` and `tune_steps` of `Sweep`, which go
      before those of a file.

  Returns:
    One result for each scheme and seed.

  Raises:
    BadInput: a scheme that is wrong or given twice, or a folder that holds
      another sweep, or is in use. No run has been begun then.
    Interrupted: a signal ended the sweep; the run under way was saved.
  """
  need(bool(workdir), 'compare needs a workdir')
  need(config is None or sweep is None, 'a sweep file says its own config')
  settings |= {} if seeds is None else {'seeds': seeds}
  if config is not None:
    asked = sweeps.of(config, schemes, **settings)
  else:
    need(not schemes, 'schemes need a config')
    begun = sweep_file.load(sweep) if sweep else sweep_file.begun(Path(workdir))
    asked = sweeps.changed(begun, (), **settings)
  return run(asked, Path(workdir), processes)


def run(
  sweep: Sweep, workdir: Path, processes: int = 1
) -> list[results_file.Result]:
  """Trains and reports what a sweep says; see `compare`."""
  need(processes >= 1, f'--processes must be at least 1, got {processes}')
  asked = sweeps.crossed(sweep)
  for config in asked.values():
    step.check(config)
  known = sweep_file.taken(sweep, workdir)
  timed = functools.partial(pool.seconds, processes=processes)
  solved = budget.solve(sweep, asked, known, timed)
  planned = _planned(sweep, asked, solved, workdir)
  for one in planned:
    if not runs.check(one.folder, one.config):
      donor.check(one.config)
  trained.check_scored(planned)
  data = trained.Data(planned[0].config, workdir)
  with runs.alone(workdir):
    need(
      sweep_file.taken(sweep, workdir) == known,
      f'another process has begun in workdir {workdir} meanwhile; start again',
    )
    return _run(sweep, asked, solved, data, processes)


def _run(
  sweep: Sweep,
  asked: Mapping[str, Config],
  solved: Mapping[str, Solved],
  data: trained.Data,
  processes: int,
) -> list[results_file.Result]:
  """`run`, of what was checked and solved, alone in its folder."""
  workdir = data.workdir
  sweep_file.write(workdir, sweep, solved)
  if sweep.tune:
    solved = _tuned(sweep, asked, solved, data, processes)
    sweep_file.write(workdir, sweep, solved)
  planned = _planned(sweep, asked, solved, workdir)
  found: dict[Run, results_file.Result] = {}
  for one, measured in _trained(planned, data, processes):
    found[one] = trained.result(one, measured, solved[one.scheme].note)
    results = [found[one] for one in planned if one in found]
    results_file.write(workdir / 'results.csv', results)
  report(workdir, planned, results)
  return results


def _planned(
  sweep: Sweep,
  asked: Mapping[str, Config],
  solved: Mapping[str, Solved],
  workdir: Path,
) -> list[Run]:
  """Every run, with what was solved for its row."""
  made = {
    label: configs.with_fields(config, solved[label].fields)
    for label, config in asked.items()
  }
  return trained.runs_of(sweep, made, workdir)


def _tuned(
  sweep: Sweep,
  asked: Mapping[str, Config],
  solved: Mapping[str, Solved],
  data: trained.Data,
  processes: int,
) -> dict[str, Solved]:
  """What was solved, with a learning rate for each row that has none yet."""
  tried = {}
  for row in sweep.rows:
    if not solved[row.label].tuned:
      fields = solved[row.label].fields
      config = configs.with_fields(asked[row.label], fields)
      tried[row.label] = tuning.runs_of(sweep, row, config, data.workdir)
  if not tried:
    return dict(solved)
  every = [one for runs_ in tried.values() for one in runs_]
  losses = {
    one: measured['validation_loss']
    for one, measured in _trained(every, data, processes)
  }
  chosen = {
    label: tuning.chosen(label, solved[label], {r: losses[r] for r in runs_})
    for label, runs_ in tried.items()
  }
  return {**solved, **chosen}


def _trained(
  planned: Sequence[Run], data: trained.Data, processes: int
) -> Iterator[tuple[Run, dict[str, Any]]]:
  """Runs with their results, as they end, under a bar of their steps."""
  steps = sum(one.config.train.num_steps for one in planned)
  with contextlib.closing(progress(steps)) as bar:
    yield from pool.finished(planned, data, bar, processes)


def report(
  workdir: Path,
  planned: Sequence[Run],
  results: Sequence[results_file.Result],
) -> None:
  """Writes the summary, the plots and the HTML page of finished runs."""
  summary = tables.render(tables.summary(results))
  files.replace(workdir / 'summary.md', summary + '\n')
  curves, training = (
    {(one.scheme, one.seed): _curve(one, kind) for one in planned}
    for kind in ('validation', 'train')
  )
  described = {
    one.scheme: accounting.describe(one.config)['owners'] for one in planned
  }
  owners = {
    scheme: {name: tuple(rows) for name, rows in tables_.items()}
    for scheme, tables_ in described.items()
  }
  drawn = plots.draw_all(results, curves, workdir)
  for one in planned:
    history.draw(one.folder)
  html.write(
    workdir / 'report.html',
    results,
    curves,
    training,
    owners,
    drawn,
    dataclasses.asdict(planned[0].config),
    versions() | trained.devices(planned),
  )


def versions() -> dict[str, str]:
  """The versions that a measurement depends on."""
  return {
    'python': platform.python_version(),
    **{name: metadata.version(name) for name in PACKAGES},
  }


def _curve(one: Run, kind: str) -> list[plots.Point]:
  """The losses of one kind that a run has logged."""
  return [
    plots.Point(line['step'], line['tokens'], trained.number(line['loss']))
    for line in log.read(one.folder)
    if line['kind'] == kind
  ]
