"""Draws the pictures of the README and of the page of concepts.

Command: python docs/draw.py
"""

import io
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from shared_tfm import files
from shared_tfm.report.plots import owner_strips, row_colour
from shared_tfm.sharing import owners

SPECS = (
  'none',
  'all',
  'sequence:4',
  'cycle:4',
  'cycle_rev:4',
  'sandwich',
  'middle_cycle:2',
  'middle_sequence:2',
  'recurrent:1/2x3/1',
)
LAYERS = 6


def schemes(path: Path) -> None:
  """Ten schemes over eight layers."""
  tables = {spec: {'layer': owners(spec, 8)} for spec in SPECS}
  tables['attention=all norm=none feed_forward=cycle_rev:4'] = {
    'attention': owners('all', 8),
    'feed_forward': owners('cycle_rev:4', 8),
    'norm': owners('none', 8),
  }
  owner_strips(tables, path)


def visits(path: Path) -> None:
  """What a row has once, and what every visit has for itself."""
  rows, own = owners('cycle:3', LAYERS), owners('none', LAYERS)
  owner_strips(
    {
      'by row': {'weights': rows, 'gradient': rows, 'optimizer': rows},
      'by visit': {'keys, values': own, 'statistics': own, 'dropout': own},
    },
    path,
  )


def levels(path: Path) -> None:
  """The three levels of a sum."""
  levels = {'all': 'all', 'sequence:3@16': 'sequence:3', 'none@4': 'none'}
  tables = {name: owners(spec, LAYERS) for name, spec in levels.items()}
  owner_strips({'their sum': tables}, path)


def bank(path: Path) -> None:
  """Rows at the left, and the layers that read them, one after the other."""
  table = owners('cycle_rev:3', LAYERS)
  figure = Figure(figsize=(6.4, 3.2), dpi=160)
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set(xlim=(0, 12.8), ylim=(6.4, 0))
  axes.axis('off')

  def box(x: float, y: float, width: float, row: int, text: str) -> None:
    colour = row_colour(row)
    axes.add_patch(Rectangle((x, y), width, 0.7, fc=colour, ec='white'))
    axes.text(x + width / 2, y + 0.35, text, ha='center', va='center')

  grey = {'color': '#666666', 'va': 'center'}
  axes.text(0.4, 0.5, 'bank: what is stored', **grey)
  axes.text(8, 0.5, 'stack: what is run', **grey)
  for row in range(max(table) + 1):
    box(0.4, 1.6 + 1.3 * row, 2.6, row, f'row {row}')
  for layer, row in enumerate(table):
    y = 1 + 0.85 * layer
    box(8, y, 3.6, row, f'layer {layer} reads {row}')
    ends = {'xy': (7.9, y + 0.35), 'xytext': (3.1, 1.95 + 1.3 * row)}
    arrow = {'arrowstyle': '->', 'color': row_colour(row), 'lw': 1.5}
    axes.annotate('', arrowprops=arrow, **ends)
  picture = io.BytesIO()
  figure.savefig(picture, format='png')
  files.replace(path, picture.getvalue())


DRAWN = {
  'owner_tables.png': schemes,
  'bank.png': bank,
  'visits.png': visits,
  'levels.png': levels,
}

if __name__ == '__main__':
  for name, draw in DRAWN.items():
    draw(Path(__file__).parent / name)
