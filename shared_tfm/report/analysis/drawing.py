"""Pictures of analyses: curves over visits, maps of pairs, depths, ranks."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from shared_tfm.report.plots import LINES, MARKERS, save

WIDTH, HEIGHT = 3.6, 3.0  # inches of a panel
IN_LINE = 24  # tokens of a text in colours
# By eye in order, by colour-blind readers, too: from 0, and around 0.
AMOUNT, SIGNED = 'viridis', 'PuOr'
GREY = '#dddddd'


def over_visits(
  curves: Mapping[str, Mapping[str, Sequence[float]]],
  path: Path,
  at: Sequence[int] = (),
) -> Path:
  """A panel for each measure, in it a line for each side.

  Args:
    curves: by the title of a measure and by side, a number for each visit.
    path: the PNG to write.
    at: which visits these are; empty: all.
  """
  figure, panels = _panels(len(curves), len(curves))
  for axes, (title, lines) in zip(panels, curves.items(), strict=True):
    _plain(axes, title)
    for (side, values), colour, mark in zip(
      lines.items(), LINES, MARKERS, strict=False
    ):
      style: dict[str, Any] = {'color': colour, 'marker': mark, 'label': side}
      axes.plot(at or range(len(values)), values, markersize=4, lw=1.5, **style)
    if len(lines) > 1:
      axes.legend(frameon=False)
    axes.set_xlabel('visit')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  return save(figure, path)


def matrices(
  maps: Mapping[str, tuple[np.ndarray, Sequence[int] | None]],
  label: str,
  limits: tuple[float, float],
  path: Path,
) -> Path:
  """A map of all pairs of visits for each title.

  Args:
    maps: (N, N) by title, with the row that each visit reads: pairs that read
      the same one, twice, are framed. None or empty: none are.
    label: what is mapped.
    limits: the ends of the colours.
    path: the PNG to write.
  """
  figure, panels = _panels(len(maps), 3)
  shown = None
  for axes, (title, (values, owners)) in zip(panels, maps.items(), strict=True):
    colours = SIGNED if limits[0] < 0 else AMOUNT
    shown = axes.imshow(
      values, cmap=colours, vmin=limits[0], vmax=limits[1], origin='upper'
    )
    for i, j in itertools.permutations(range(len(values)), 2):
      if owners and owners[i] == owners[j] >= 0:
        place = (j - 0.5, i - 0.5), 1, 1
        axes.add_patch(Rectangle(*place, fill=False, ec='black', lw=0.6))
    axes.set_title(title, loc='left', fontsize='medium')
    axes.set(xlabel='visit', ylabel='visit')
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_locator(MaxNLocator(integer=True))
  assert shown is not None
  figure.colorbar(shown, ax=list(panels), label=label, shrink=0.8)
  return save(figure, path)


def loops(
  tokens: Sequence[int], example: Sequence[tuple[str, float]], path: Path
) -> Path:
  """How many tokens run how many loops, and a text coloured by loops.

  Args:
    tokens: how many run 0, 1, ... loops.
    example: pairs of a token and its loops; at least one.
    path: the PNG to write.
  """
  lines = math.ceil(len(example) / IN_LINE)
  figure = Figure(
    figsize=(2 * WIDTH, HEIGHT + 0.3 * lines), dpi=160, layout='constrained'
  )
  bars, words = figure.subplots(
    2, height_ratios=[HEIGHT - 0.6, 0.3 * lines + 0.2]
  )
  _plain(bars, '')
  bars.bar(range(len(tokens)), tokens, color=LINES[0])
  bars.set(xlabel='loops of the core', ylabel='tokens')
  bars.xaxis.set_major_locator(MaxNLocator(integer=True))
  words.set(xlim=(0, IN_LINE), ylim=(lines, 0))
  words.axis('off')
  most = len(tokens) - 1
  colours = colormaps[AMOUNT]
  for place, (token, count) in enumerate(example):
    line, column = divmod(place, IN_LINE)
    share = count / most
    cell = (column, line), 1, 1
    words.add_patch(Rectangle(*cell, fc=colours(share), ec='white', lw=0.5))
    words.text(
      column + 0.5,
      line + 0.5,
      token.replace('$', r'\$'),
      ha='center',
      va='center',
      fontsize=7 if len(token) < 4 else 4,
      color='black' if share > 0.5 else 'white',
    )
  return save(figure, path)


def shares(
  panels: Mapping[str, Mapping[str, Sequence[float]]], path: Path
) -> Path:
  """Ranks over the most there could be, a panel a level, a point a row.

  Args:
    panels: by level and part, a share for each row.
    path: the PNG to write.
  """
  figure, drawn = _panels(len(panels), 2)
  for axes, (title, parts) in zip(drawn, panels.items(), strict=True):
    _plain(axes, title)
    for place, values in enumerate(parts.values()):
      points = [place] * len(values), values
      axes.plot(*points, 'o', color=LINES[0], alpha=0.7, markersize=5)
    axes.set_xticks(range(len(parts)), list(parts), rotation=90, fontsize=7)
    axes.set(ylim=(0, 1.02), ylabel='effective rank / most')
  return save(figure, path)


def _panels(count: int, across: int) -> tuple[Figure, Sequence[Axes]]:
  """A figure of panels in lines; those that are too many are left out."""
  across = min(count, across)
  lines = math.ceil(count / across)
  figure = Figure(
    figsize=(WIDTH * across, HEIGHT * lines), dpi=160, layout='constrained'
  )
  every = list(figure.subplots(lines, across, squeeze=False).flat)
  for axes in every[count:]:
    axes.axis('off')
  return figure, every[:count]


def _plain(axes: Axes, title: str) -> None:
  axes.set_title(title, loc='left', fontsize='medium')
  axes.grid(color=GREY, lw=0.8)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)
