"""The report: one HTML file that needs nothing beside it.

Pictures are data URIs, style and scripts are inline, so the file can be mailed
or opened years later; without scripts it shows the same, standing still. Names
and config values come from users: the template escapes every value, and the
page's policy allows neither the network nor any script or style but its own,
which it names by their hashes.
"""

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from shared_tfm import files
from shared_tfm.report import charts, results_file, tables
from shared_tfm.report.columns import Column, Said, Summary
from shared_tfm.report.interval import difference
from shared_tfm.report.plots import (
  CAPTIONS,
  LINES,
  NIGHT,
  Curves,
  Owners,
  row_colour,
)
from shared_tfm.report.results_file import Result

_PAGE = Path(__file__).parent / 'page'
_TEMPLATES = jinja2.Environment(
  loader=jinja2.FileSystemLoader(_PAGE),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)
# In this order: each uses those before it.
SCRIPTS = 'scales', 'marks', 'chart', 'gestures', 'panels', 'tables', 'report'
CHARTS = {  # those that scripts draw
  'loss': 'Loss over training',
  'front': 'Validation loss against cost',
}


def write(
  path: Path,
  results: Sequence[Result],
  curves: Curves,
  training: Curves,
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
    training: the training losses of each run, so too.
    owners: by scheme and component, the stored row of each layer.
    plots: PNG files by name, as `draw_all` returns them.
    config: nested fields.
    versions: what the numbers were made with, such as {'jax': '0.10.2'}.
  """
  rows = tables.summary(results)
  columns, names = tables.columns(rows), results_file.header(results)
  script = '\n'.join(_text(f'{name}.js') for name in SCRIPTS)
  style = _text('report.css') + _hues()
  page = _TEMPLATES.get_template('report.html.j2').render(
    script=script,
    style=style,
    policy=_policy(script, style),
    data=charts.data(results, curves, training),
    charts=CHARTS,
    columns=columns,
    rows=rows,
    best={c.field: best(rows, c) for c in columns},
    note=tables.note(rows),
    hues={
      scheme: charts.hue(place)
      for place, scheme in enumerate(results_file.schemes(results))
    },
    pictures=[
      (CAPTIONS.get(name, name), _data_uri(png)) for name, png in plots.items()
    ],
    owners=owners,
    row_colour=row_colour,
    fields=names,
    results=[results_file.cells(names, result) for result in results],
    runs=list(curves),
    curves=_by_step(curves),
    folded={'Config': dict(_flat(config)), 'Versions': versions},
  )
  files.replace(path, page)


def best(rows: Sequence[Summary], column: Column | Said) -> set[str]:
  """The schemes that stand out in a column.

  Of what is counted, the best. Of what is measured, the best and all that its
  interval does not tell from it; see interval.py. None stand out where nothing
  has a direction, where all are alike, or where all others diverged.
  """
  known = {
    row.scheme: stat
    for row in rows
    if (stat := row.stats.get(column.field)) and not math.isnan(stat.mean)
  }
  better = column.better
  if better is None or not known:
    return set()
  top = known[better(known, key=lambda name: known[name].mean)]
  chosen = set()
  for name, stat in known.items():
    apart = difference(stat.by_seed, top.by_seed).verdict(better) == 'worse'
    if stat.mean == top.mean or (column.measured and not apart):
      chosen.add(name)
  return chosen if len(chosen) < len(known) else set()


def _text(name: str) -> str:
  return (_PAGE / name).read_text(encoding='utf-8')


def _hues() -> str:
  """The colours of schemes by place, on a light page and on a dark one."""
  return ''.join(
    f'.s{place} {{ --hue: light-dark({light}, {dark}) }}\n'
    for place, (light, dark) in enumerate(zip(LINES, NIGHT, strict=True))
  )


def _policy(script: str, style: str) -> str:
  """What the page may do: show its pictures, and run what it came with."""
  return (
    "default-src 'none'; img-src data:;"
    f' script-src {_hash(script)}; style-src {_hash(style)};'
    " base-uri 'none'; form-action 'none'"
  )


def _hash(text: str) -> str:
  digest = hashlib.sha256(text.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"


def _data_uri(png: Path) -> str:
  return 'data:image/png;base64,' + base64.b64encode(png.read_bytes()).decode()


def _by_step(curves: Curves) -> dict[int, list[float | None]]:
  """The validation loss of every run at each step, None where it has none."""
  runs = [{p.step: p.loss for p in run} for run in curves.values()]
  steps = sorted({step for run in runs for step in run})
  return {step: [run.get(step) for run in runs] for step in steps}


def _flat(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple]:
  """Every field with its dotted name."""
  for key, value in config.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value
