"""Pictures of a comparison: three plots of loss, and owner tables as strips.

A scheme keeps its colour and its marker in every plot; a stored row keeps its
colour in every strip. Colour-blind readers can tell lines apart, which have
three times the contrast of the page or more (after Okabe & Ito), and rows, on
which numbers are black (Paul Tol's 'light').
"""

import dataclasses
import io
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from shared_tfm import files
from shared_tfm.report import results_file, tables
from shared_tfm.report.results_file import Result

LINES = (
  '#00558c',
  '#d55e00',
  '#009e73',
  '#cc6fae',
  '#6e4400',
  '#2b8cf0',
  '#4a4a4a',
)
NIGHT = (  # the same, on a dark page
  '#5396f0',
  '#f07a3c',
  '#2fcf95',
  '#f3d3e6',
  '#f8b92e',
  '#a5cdfd',
  '#8b9095',
)
MARKERS = 'os^Dv<>p'
ROWS = ('#7ad', '#e86', '#ed8', '#fab', '#9df', '#4b9', '#bc3', '#aa0', '#ddd')
MIXED = '#eee'  # where no row is read
EARLY = 0.2  # the part of training whose losses may lie above the axis
CAPTIONS = {
  'loss_vs_steps': 'Validation loss against steps',
  'loss_vs_flops': 'Validation loss against training FLOPs',
  'loss_vs_params': 'Validation loss against stored parameters',
}


@dataclasses.dataclass(frozen=True)
class Point:
  """One loss during training."""

  step: int
  tokens: int  # seen so far
  loss: float  # nats per target; not finite where the run diverged


Curves = Mapping[tuple[str, int], Sequence[Point]]  # by scheme and seed
# By scheme and component; None where a layer reads no row, or a mixture.
Owners = Mapping[str, Mapping[str, Sequence[int | None]]]


def colours(schemes: Iterable[str]) -> dict[str, str]:
  """The colour of each scheme, '#rrggbb', by its place in the order."""
  return dict(zip(schemes, itertools.cycle(LINES), strict=False))


def row_colour(row: int | None) -> str:
  """The colour of a stored row, as CSS, light enough for black text."""
  if row is None:
    return MIXED
  rounds, place = divmod(row, len(ROWS))
  if rounds % 2 == 0:
    return ROWS[place]
  darker = (f'{int(digit, 16) * 13:02x}' for digit in ROWS[place][1:])
  return '#' + ''.join(darker)


def draw_all(
  results: Sequence[Result], curves: Curves, folder: Path
) -> dict[str, Path]:
  """Draws the three plots of a comparison.

  Args:
    results: at least one.
    curves: the evaluations of each run, by scheme and seed; a run without
      them is left out of the plots over training.
    folder: where to write; it must exist.

  Returns:
    The path of each PNG by its name, a key of CAPTIONS.
  """
  flops = {(run.scheme, run.seed): run.flops_per_token for run in results}
  curves = {run: curve for run, curve in curves.items() if run in flops}
  figures = {
    'loss_vs_steps': _over_training(
      results, curves, 'optimizer steps', lambda _, point: point.step
    ),
    'loss_vs_flops': _over_training(
      results,
      curves,
      'training compute (FLOP)',
      lambda run, point: point.tokens * flops[run],
    ),
    'loss_vs_params': _against_params(results),
  }
  return {
    name: save(figure, folder / f'{name}.png')
    for name, figure in figures.items()
  }


def _over_training(
  results: Sequence[Result],
  curves: Curves,
  label: str,
  place: Callable[[tuple[str, int], Point], float],
) -> Figure:
  """Mean over seeds as a line, from the lowest to the highest as a band.

  The loss falls so fast at first that the axis is made for what comes later.

  Args:
    results: of the schemes, in order.
    curves: the evaluations of each run, by scheme and seed.
    label: of the axis.
    place: (scheme, seed) and point -> where it is on the axis.
  """
  figure, axes = _axes(label)
  lines = {}
  late: list[float] = []
  for scheme, style in _styles(results).items():
    runs = {
      run: {point.step: point for point in curve}
      for run, curve in curves.items()
      if run[0] == scheme
    }
    # The steps that every seed reached: elsewhere the mean would change seeds.
    steps = sorted(set.intersection(*map(set, runs.values()))) if runs else []
    if not steps:
      continue
    x = np.mean([[place(run, runs[run][i]) for i in steps] for run in runs], 0)
    y = np.array([[run[i].loss for i in steps] for run in runs.values()])
    band = {'color': style['color'], 'alpha': 0.2, 'lw': 0}
    axes.fill_between(x, y.min(axis=0), y.max(axis=0), **band)
    every = max(1, len(steps) // 10)
    (line,) = axes.plot(x, y.mean(axis=0), markevery=every, **style)
    lines[scheme] = (line, y.mean(axis=0)[-1])
    y_late = y[:, np.array(steps) >= EARLY * steps[-1]]
    late.extend(y_late[np.isfinite(y_late)])
  if late:
    margin = 0.05 * (max(late) - min(late)) or 0.1
    axes.set_ylim(min(late) - margin, max(late) + margin)
  axes.xaxis.set_major_formatter(EngFormatter(sep=''))
  _legend(figure, lines)
  return figure


def _against_params(results: Sequence[Result]) -> Figure:
  """One point a scheme, with the spread over its seeds."""
  figure, axes = _axes('stored parameters (log scale)')
  rows = tables.summary(results)
  places = [row.stats['stored_params'].mean for row in rows]
  styles = _styles(results)
  points = {}
  # Schemes that store equally much stand side by side, a little apart.
  apart = max(max(places) / min(places), 2) ** 0.025
  for i, row in enumerate(rows):
    before, twins = places[:i].count(places[i]), places.count(places[i])
    loss = row.stats['validation_loss']
    point = axes.errorbar(
      places[i] * apart ** (before - (twins - 1) / 2),
      loss.mean,
      yerr=loss.spread,
      capsize=3,
      **styles[row.scheme],
    )
    points[row.scheme] = (point, loss.mean)
  losses = [row.stats['validation_loss'].mean for row in rows]
  edge = front(list(zip(places, losses, strict=True)))
  cheapest, least = np.reshape(edge, (-1, 2)).T
  axes.step(cheapest, least, where='post', color='#999999', ls='--', lw=1.2)
  axes.set_xscale('log')
  axes.set_xlim(min(places) / 1.6, max(places) * 1.6)  # spans a tick or more
  axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  axes.xaxis.set_major_formatter(EngFormatter(sep=''))
  axes.xaxis.set_minor_formatter(NullFormatter())
  _legend(figure, points)
  return figure


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
  """Of (cost, loss) those that no other beats, from the cheapest on.

  Another beats them by less of one and no more of the other. Points that are
  not finite are nobody's; of those that are alike there is one.
  """
  chosen: list[tuple[float, float]] = []
  for point in sorted(point for point in points if np.isfinite(point).all()):
    if not chosen or point[1] < chosen[-1][1]:
      chosen.append(point)
  return chosen


def _styles(results: Sequence[Result]) -> dict[str, dict]:
  marks = itertools.cycle(MARKERS)
  return {
    name: {'color': colour, 'marker': mark, 'markersize': 5, 'lw': 1.5}
    for (name, colour), mark in zip(
      colours(results_file.schemes(results)).items(), marks, strict=False
    )
  }


def _axes(label: str) -> tuple[Figure, Axes]:
  figure = Figure(figsize=(7.2, 4.5), dpi=160, layout='constrained')
  axes = figure.add_subplot()
  axes.set_xlabel(label)
  axes.set_ylabel('validation loss (nats per target)')
  axes.grid(color='#dddddd', lw=0.8)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)
  return figure, axes


def _legend(figure: Figure, drawn: Mapping[str, tuple]) -> None:
  """A legend outside the axes, in the order in which the lines end."""
  order = sorted(drawn, key=lambda name: drawn[name][1], reverse=True)
  figure.legend(
    [drawn[name][0] for name in order],
    [_label(name) for name in order],
    loc='outside right upper',
    frameon=False,
  )


def _label(name: str) -> str:
  """A name over several lines, in which matplotlib reads no formula."""
  return name.replace('$', r'\$').replace(' ', '\n')


def owner_strips(owners: Owners, path: Path) -> Path:
  """Draws owner tables as coloured strips, a strip for each component.

  Args:
    owners: by scheme and component, the stored row of each layer.
    path: the PNG to write; its folder must exist.
  """
  parts = [part for strips in owners.values() for part in strips.items()]
  depth = max(len(table) for _, table in parts)
  words = [word for scheme in owners for word in scheme.split()]
  right = 0.3 * max(len(component) for component, _ in parts) + 0.8
  left = right + 0.34 * max(map(len, words))
  height = len(parts) + 0.6 * len(owners) + 0.6
  figure = Figure(figsize=(0.3 * (left + depth + 0.2), 0.3 * height), dpi=160)
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set(xlim=(-left, depth + 0.2), ylim=(height, 0))
  axes.axis('off')
  middle: dict[str, Any] = {'ha': 'center', 'va': 'center'}
  bold: dict[str, Any] = {'va': 'center', 'weight': 'bold'}
  axes.text(-0.3, 0.5, 'layer', ha='right', va='center', color='#666666')
  for layer in range(depth):
    axes.text(layer + 0.5, 0.5, str(layer), color='#666666', **middle)
  y = 1.0
  for scheme, strips in owners.items():
    axes.text(0.2 - left, y + len(strips) / 2, _label(scheme), **bold)
    for component, table in strips.items():
      axes.text(-0.3, y + 0.5, _label(component), ha='right', va='center')
      for layer, row in enumerate(table):
        axes.add_patch(
          Rectangle((layer, y), 1, 1, fc=row_colour(row), ec='white', lw=1.5)
        )
        cell = '~' if row is None else str(row)
        axes.text(layer + 0.5, y + 0.5, cell, **middle)
      y += 1
    y += 0.6
  return save(figure, path)


def save(figure: Figure, path: Path) -> Path:
  """Writes a picture as PNG, whole or not at all."""
  picture = io.BytesIO()
  figure.savefig(picture, format='png')
  files.replace(path, picture.getvalue())
  return path
