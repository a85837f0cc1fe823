"""Step time against model FLOPs, one size of the model at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import ours
from benchmarks.rows import Plan, Row, compared
from benchmarks.turns import Run, measured
from shared_tfm.config import Config
from shared_tfm.report.plots import LINES, MARKERS
from shared_tfm.train.programs import Programs

BASE = {
  'num_layers': 6,
  'd_model': 256,
  'max_len': 128,
  'remat': 'full',
  'sharing': {'layer': 'all'},
}
Points = dict[str, dict[str, Any]]  # what of BASE is another
SWEEPS: dict[str, tuple[int, Points]] = {  # and the rows of a batch
  'depth': (2, {f'{n} visits': {'num_layers': n} for n in (6, 12, 24, 48)}),
  'width': (2, {f'D = {d}': {'d_model': d} for d in (128, 256, 512, 1024)}),
  'length': (1, {f'L = {n}': {'max_len': n} for n in (128, 512, 2048)}),
  'owners': (
    2,
    {
      spec: {'num_layers': 12, 'sharing': {'layer': spec}}
      for spec in ('all', 'cycle:3', 'cycle:6', 'none')
    },
  ),
}
QUICK = {'num_heads': 2, 'd_model': 32, 'max_len': 16}


def rows(plan: Plan) -> Iterator[Row]:
  """A step's time for each model FLOP, in units of that of the first point.

  One size is changed at a time: depth, width, length, and how many of 12 layers
  own their weights, which changes no FLOP. 1 is proportional to FLOPs; below 1,
  large steps make better use of the machine. FLOPs are those of `describe`, in
  units of the first point's.
  """
  known: dict[Config, Programs] = {}  # what is in two sweeps compiles once
  for sweep, (batch, points) in SWEEPS.items():
    if plan.quick:
      if sweep in ('width', 'length'):
        continue
      names = list(points)[:2]
      points = {name: {**points[name], **QUICK} for name in names}
    made = {}
    for name, other in points.items():
      new = ours.programs({**BASE, **other}, batch)
      made[name] = known.setdefault(new.config, new)
    taken = measured(_steps(made), plan.rounds)
    flops = {name: ours.flops(programs) for name, programs in made.items()}
    first = next(iter(points))
    for name in taken:
      grown = flops[name] / flops[first]
      yield compared(
        f'{sweep}, {name}', taken, name, first, 1 / grown, FLOPs=grown
      )


def draw(found: Sequence[Row], path: Path) -> None:
  """Draws time against FLOPs, both relative to each sweep's first point."""
  figure = Figure(figsize=(7.2, 4.5), dpi=160, layout='constrained')
  axes = figure.add_subplot()
  for i, sweep in enumerate(SWEEPS):
    points = [row for row in found if row.name.startswith(f'{sweep}, ')]
    if not points:
      continue
    x = np.array([row.facts['FLOPs'] for row in points])
    y = np.array([row.ratio for row in points])
    low, high = np.array([row.spread for row in points]).T
    axes.errorbar(
      x,
      x * y,
      yerr=(x * abs(y - low), x * abs(high - y)),
      label=sweep,
      color=LINES[i],
      marker=MARKERS[i],
      capsize=3,
    )
  most = max(row.facts['FLOPs'] for row in found)
  axes.plot([1, most], [1, most], '--', color='#666666', label='proportional')
  axes.set(
    xscale='log',
    yscale='log',
    xlabel='model FLOPs of a step / those of the first point',
    ylabel='time of a step / that of the first point',
  )
  axes.grid(color='#dddddd', lw=0.8)
  axes.legend(frameon=False)
  figure.savefig(path)


def _steps(
  made: Mapping[str, Programs],
) -> Callable[[], Iterator[tuple[str, Run]]]:
  return lambda: ((name, ours.step(each)) for name, each in made.items())
