"""A published table: what a paper prints, beside what we count.

Papers mix rounding and cutting off, so a count agrees with a printed number
where the two are less than one unit of its last digit apart.
"""

import dataclasses
import re
from typing import Any

UNITS = {'': 1, 'K': 10**3, 'M': 10**6, 'B': 10**9, '%': 1}
NUMBER = re.compile(r'(-?)([\d,]*)(?:\.(\d+))?([KMB%]?)')
Value = int | float | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
  """One number of a paper.

  Attributes:
    name: the model, in the paper's words.
    quantity: what is counted of it.
    paper: the number as it is printed, such as '1.07B'; a table of owners is
      written '0 0 1 1'; '' where the paper has none.
    ours: what our accounting says of the config.
    why: where the two disagree, a sentence that says what is known of it.
  """

  name: str
  quantity: str
  paper: str
  ours: Value
  why: str = ''

  @property
  def difference(self) -> int | float | None:
    """Ours minus the printed number; None where there are not two numbers."""
    if not self.paper or isinstance(self.ours, tuple):
      return None
    value, _ = printed(self.paper)
    return self.ours - value

  @property
  def agrees(self) -> bool | None:
    """Whether ours is the paper's, as far as that is printed; None: nowhere."""
    if not self.paper:
      return None
    if isinstance(self.ours, tuple):
      return tuple(map(int, self.paper.split())) == self.ours
    value, unit = printed(self.paper)
    return abs(self.ours - value) < unit


@dataclasses.dataclass(frozen=True)
class Table:
  """A paper's table, or the part of it that needs no training.

  Attributes:
    title: of the table, with the paper's.
    source: where it is published.
    rows: in the paper's order.
    notes: what a reader of the counts must know.
  """

  title: str
  source: str
  rows: tuple[Row, ...]
  notes: tuple[str, ...] = ()

  def as_json(self) -> dict[str, Any]:
    """All of it as one object that JSON can hold."""
    return {
      'title': self.title,
      'source': self.source,
      'rows': [
        {
          **dataclasses.asdict(row),
          'difference': row.difference,
          'agrees': row.agrees,
        }
        for row in self.rows
      ],
      'notes': list(self.notes),
    }


def printed(text: str) -> tuple[int | float, int | float]:
  """A printed number, and the unit of its last digit.

  >>> printed('124.6M')
  (124600000, 100000)

  Args:
    text: digits, with commas and a decimal point where there are any, and K, M,
      B or %.
  """
  match = NUMBER.fullmatch(text)
  assert match, text
  sign, whole, decimals, suffix = match.groups()
  decimals = decimals or ''
  digits = int(sign + whole.replace(',', '') + decimals)
  scale = UNITS[suffix]
  places = 10 ** len(decimals)
  if scale % places == 0:
    return digits * (scale // places), scale // places
  return digits * scale / places, scale / places
