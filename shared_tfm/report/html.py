"""The report: one HTML file that needs nothing beside it.

Pictures are data URIs and the style is inline, so the file can be mailed or
opened years later. Names and config values come from users: the template
escapes every value, and its content policy forbids scripts and the network.
"""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from shared_tfm import files
from shared_tfm.report import results_file, tables
from shared_tfm.report.columns import Column, Said, Stat, Summary
from shared_tfm.report.interval import difference
from shared_tfm.report.plots import (
  CAPTIONS,
  Curves,
  Owners,
  colours,
  row_colour,
)
from shared_tfm.report.results_file import Result

_TEMPLATES = jinja2.Environment(
  loader=jinja2.FileSystemLoader(Path(__file__).parent),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)


def write(
  path: Path,
  results: Sequence[Result],
  curves: Curves,
  owners: Owners,
  plots: Mapping[str, Path],
  config: Mapping[str, Any],
  versions: Mapping[str, str],
) -> None:
  """Writes the report of a comparison, atomically.

  Args:
    path: the HTML file; its folder must exist.
    results: at least one.
    curves: the evaluations of each run, by scheme and seed.
    owners: by scheme and component, the stored row of each layer.
    plots: PNG files by name, as `draw_all` returns them.
    config: nested fields.
    versions: what the numbers were made with, such as {'jax': '0.10.2'}.
  """
  rows = tables.summary(results)
  columns, names = tables.columns(rows), results_file.header(results)
  page = _TEMPLATES.get_template('report.html.j2').render(
    columns=columns,
    rows=rows,
    best={c.field: best(rows, c) for c in columns},
    note=tables.note(rows),
    colours=colours(results_file.schemes(results)),
    pictures=[
      (CAPTIONS.get(name, name), _data_uri(png)) for name, png in plots.items()
    ],
    owners=owners,
    row_colour=row_colour,
    fields=names,
    results=[results_file.cells(names, result) for result in results],
    runs=list(curves),
    curves=_by_step(curves),
    config=list(_flat(config)),
    versions=versions,
  )
  files.replace(path, page)


def best(rows: Sequence[Summary], column: Column | Said) -> set[str]:
  """The schemes that stand out in a column.

  Of what is counted, the best. Of what is measured, the best and all that its
  interval does not tell from it; see interval.py. None stand out where nothing
  has a direction, or where all are alike.
  """
  stats = {
    row.scheme: row.stats[column.field]
    for row in rows
    if column.field in row.stats
  }
  known = {name: s for name, s in stats.items() if not math.isnan(s.mean)}
  if column.better is None or not known:
    return set()
  top = known[column.better(known, key=lambda name: known[name].mean)]
  chosen = {
    name
    for name, stat in known.items()
    if stat.mean == top.mean
    or (column.measured and not _told(stat, top, column))
  }
  return chosen if len(chosen) < len(stats) else set()


def _told(stat: Stat, top: Stat, column: Column | Said) -> bool:
  """Whether an interval says that one is worse than the best."""
  apart = difference(stat.by_seed, top.by_seed)
  return apart.verdict(column.better or min) == 'worse'


def _data_uri(png: Path) -> str:
  return 'data:image/png;base64,' + base64.b64encode(png.read_bytes()).decode()


def _by_step(curves: Curves) -> dict[int, list[float | None]]:
  """The validation loss of every run at each step, None where it has none."""
  runs = [{p.step: p.validation_loss for p in run} for run in curves.values()]
  steps = sorted({step for run in runs for step in run})
  return {step: [run.get(step) for run in runs] for step in steps}


def _flat(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple]:
  """Every field with its dotted name."""
  for key, value in config.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value
