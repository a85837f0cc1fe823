"""Training the same config under several sharing schemes and seeds."""

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from shared_tfm import accounting, files
from shared_tfm.config import Config
from shared_tfm.errors import need
from shared_tfm.report import (
  history,
  html,
  plots,
  results_file,
  sweep_file,
  tables,
  trained,
)
from shared_tfm.report import sweep as sweeps
from shared_tfm.report.sweep import Sweep
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
    **settings: others of `Sweep`, which go before those of a file.

  Returns:
    One result for each scheme and seed.

  Raises:
    BadInput: a scheme that is wrong or given twice, or a folder that holds
      another sweep. Nothing has been written then.
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
  return run(asked, Path(workdir))


def run(sweep: Sweep, workdir: Path) -> list[results_file.Result]:
  """Trains and reports what a sweep says; see `compare`."""
  crossed = sweeps.crossed(sweep)
  solved = sweep_file.taken(sweep, workdir)
  planned = trained.runs_of(sweep, crossed, workdir)
  for one in planned:
    step.check(one.config)
    if not runs.check(one.folder, one.config):
      donor.check(one.config)
  data = trained.Data(planned[0].config, workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  sweep_file.write(workdir, sweep, solved)

  bar = progress(sum(one.config.train.num_steps for one in planned))
  results = []
  for number, one in enumerate(planned, 1):
    name = f'{number}/{len(planned)} {one.scheme} seed {one.seed}'
    bar.set_description(name, refresh=False)
    results.append(trained.result(one, trained.finished(one, data, bar)))
    results_file.write(workdir / 'results.csv', results)
  bar.close()
  report(workdir, crossed, planned, results)
  return results


def report(
  workdir: Path,
  crossed: Mapping[str, Config],
  planned: Sequence[Run],
  results: Sequence[results_file.Result],
) -> None:
  """Writes the summary, the plots and the HTML page of finished runs."""
  summary = tables.render(tables.summary(results))
  files.replace(workdir / 'summary.md', summary + '\n')
  curves = {(one.scheme, one.seed): _curve(one) for one in planned}
  owners = {
    label: {
      name: tuple(rows)
      for name, rows in accounting.describe(config)['owners'].items()
    }
    for label, config in crossed.items()
  }
  drawn = plots.draw_all(results, curves, workdir)
  for one in planned:
    history.draw(one.folder)
  html.write(
    workdir / 'report.html',
    results,
    curves,
    owners,
    drawn,
    dataclasses.asdict(planned[0].config),
    versions(),
  )


def versions() -> dict[str, str]:
  """The versions that a measurement depends on."""
  return {
    'python': platform.python_version(),
    **{name: metadata.version(name) for name in PACKAGES},
  }


def _curve(one: Run) -> list[plots.Point]:
  return [
    plots.Point(line['step'], line['tokens'], trained.number(line['loss']))
    for line in log.read(one.folder)
    if line['kind'] == 'validation'
  ]
