"""Numbers in columns, for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

WIDEST = 16  # visits of a matrix that is printed whole


def cell(value: Any) -> str:
  """A number in four digits behind the point; what is none as it is."""
  if value is None:
    return '-'
  return f'{value:.4f}' if isinstance(value, float) else str(value)


def table(
  rows: Sequence[Mapping[str, Any]], drop: str = '', left: int = 1
) -> str:
  """Rows of the same names, in aligned columns under those names.

  Args:
    rows: at least one.
    drop: a name that is left out; '' for none.
    left: as of `aligned`.
  """
  names = [name for name in rows[0] if name != drop]
  lines = [names, *([cell(row[n]) for n in names] for row in rows)]
  return aligned(lines, left)


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> str:
  """Cells in columns: the first `left` to the left, the others to the right."""
  widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
  shown = []
  for cells in lines:
    words = map(str.ljust, cells[:left], widths)
    numbers = map(str.rjust, cells[left:], widths[left:])
    shown.append('  '.join([*words, *numbers]).rstrip())
  return '\n'.join(shown)


def matrix(values: Sequence[Sequence[float]]) -> str:
  """All pairs of visits; of many visits some, at even distances."""
  step = -(-len(values) // WIDEST)
  some = range(0, len(values), step)
  lines = [['', *map(str, some)]]
  lines += [[str(i), *(f'{values[i][j]:.2f}' for j in some)] for i in some]
  left = f'\nevery {step}th visit; the files have all' if step > 1 else ''
  return aligned(lines) + left


def headed(title: str, body: str, among: Mapping[str, Any]) -> str:
  """A body under its title, unless it is the only one."""
  return body if len(among) == 1 else f'{title}\n{body}'


def token(pieces: Sequence[bytes], number: int) -> str:
  """An id as what can be told from others on a line: 'a', '·the', '\\n'.

  Args:
    pieces: the bytes that each id stands for.
    number: the id; a special, or one that only the model has, is '<258>'.
  """
  known = pieces[number] if number < len(pieces) else b''
  if not known:
    return f'<{number}>'
  shown = known.decode(errors='replace').replace(' ', '·')
  return shown.encode('unicode_escape').decode() if shown.isascii() else shown
