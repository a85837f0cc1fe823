"""A picture of tables that changed during training: strips over time."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from shared_tfm import files
from shared_tfm.report.plots import row_colour
from shared_tfm.sharing import reuse
from shared_tfm.sharing.table import Owners
from shared_tfm.train import log, runs

PICTURE = 'tables.png'
History = list[tuple[int, dict[str, Owners]]]  # (step, table by component)


def read(workdir: Path) -> History:
  """The tables of a run, each with the step after which it held."""
  return [
    (
      line['step'],
      {
        name: tuple(map(int, text.split(',')))
        for name, text in line['tables'].items()
      },
    )
    for line in log.read(workdir)
    if line['kind'] == 'table'
  ]


def draw(workdir: Path) -> Path | None:
  """Draws the tables of a run in its folder; None where they are fixed.

  A strip for each component, a line for each layer, time to the right. A colour
  is the layer that owns what is read, so that it stays while others change.
  """
  history = read(workdir)
  if not history:
    return None
  steps = runs.read_config(workdir).train.num_steps
  names = list(history[0][1])
  depth = len(history[0][1][names[0]])
  figure = Figure(
    figsize=(7.2, 0.8 + (0.4 + 0.22 * depth) * len(names)),
    dpi=160,
    layout='constrained',
  )
  strips = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
  for axes, name in zip(strips, names, strict=True):
    for left, right, owners in spans(history, name, steps):
      for layer, owner in enumerate(reuse.sources(owners)):
        place = (left, layer - 0.5), right - left, 1
        colour = row_colour(owner)
        axes.add_patch(Rectangle(*place, fc=colour, ec='white', lw=0.5))
    axes.set(xlim=(0, steps), ylim=(depth - 0.5, -0.5), yticks=range(depth))
    axes.set_title(name, loc='left', fontsize='medium')
    axes.set_ylabel('layer')
    axes.spines[['top', 'right']].set_visible(False)
  strips[-1].set_xlabel('optimizer steps')
  picture = io.BytesIO()
  figure.savefig(picture, format='png')
  files.replace(workdir / PICTURE, picture.getvalue())
  return workdir / PICTURE


def spans(
  history: Sequence[tuple[int, Mapping[str, Owners]]], name: str, steps: int
) -> list[tuple[int, int, Any]]:
  """(from, to, table) of one component, until the run's last step."""
  starts = [step for step, _ in history]
  ends = [*starts[1:], steps]
  tables = [tables[name] for _, tables in history]
  return list(zip(starts, ends, tables, strict=True))
