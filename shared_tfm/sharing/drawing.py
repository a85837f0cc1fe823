"""Owner tables as text for a terminal."""

from collections.abc import Mapping

from shared_tfm.sharing.levels import Level, parse
from shared_tfm.sharing.table import ROOT, Owners


def draw(
  specs: Mapping[str, str],
  num_layers: int,
  tables: Mapping[str, tuple[Owners, ...]] | None = None,
) -> str:
  """Draws owner tables for a terminal: a line a level, joined by '+'.

  >>> print(draw({'attention': 'all', 'norm': 'cycle:2'}, 4))
  layer      0  1  2  3
  attention  0  0  0  0  all      1 row, each read 4 times
  norm       0  1  0  1  cycle:2  2 rows, each read 2 times

  Args:
    specs: a spec for each name to be drawn.
    num_layers: the number of visits.
    tables: of names whose tables are not those of their specs, since not all
      layers read them (-1, drawn as a dot): one for each level.
  """
  width = len(str(num_layers - 1))
  rows = []
  for name, text in specs.items():
    spec = parse(text)
    if spec.same_as:
      rows.append((name, ['='] * num_layers, str(spec), 'no weights'))
    for i, level in enumerate(spec.levels):
      owners = level.table.owners(num_layers)
      if tables and name in tables:
        owners = tables[name][i]
      cells = ['.' if row < 0 else str(row) for row in owners]
      if level.templates:
        cells = ['~'] * num_layers
      within = f'|{spec.within}' if spec.within else ''
      rows.append(
        (
          name if not i else f'{"+":>{len(name)}}',
          cells,
          f'{level}{within}',
          _reads(level, owners),
        )
      )
  left = max([len(ROOT), *(len(row[0]) for row in rows)])
  right = max(len(row[2]) for row in rows)

  def line(cells: list[str]) -> str:
    return '  '.join(f'{cell:>{width}}' for cell in cells)

  return '\n'.join(
    [
      f'{ROOT:<{left}}  {line([str(i) for i in range(num_layers)])}',
      *(
        f'{name:<{left}}  {line(cells)}  {text:<{right}}  {often}'
        for name, cells, text, often in rows
      ),
    ]
  )


def _reads(level: Level, owners: Owners) -> str:
  if level.templates:
    return f'{level.templates} templates, mixed by every layer'
  rows = max(owners) + 1
  reads = sorted({owners.count(row) for row in range(rows)})
  often = '-'.join(str(n) for n in {reads[0]: 0, reads[-1]: 0})
  return (
    f'{rows} row{"s" * (rows > 1)}, each read {often}'
    f' time{"s" * (often != "1")}'
  )
