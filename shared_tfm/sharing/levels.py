"""Specs: what a component's weights are made of.

    spec   := levels ["|" table]  or  "=" part     its own, or another part's
    levels := level ("+" level)*                   the weights are their SUM
    level  := table ["@" rank]                     rank: an integer, "diagonal"
    table  := a scheme of table.py  or  "soft:K"

`cycle:9+none@64` is one full-rank row for every ninth layer and, on top, an own
product of rank 64 for each layer (Relaxed Recursive Transformers, 2410.20672).
`soft:4` mixes four templates by coefficients each layer learns (Savarese &
Maire, ICLR 2019). `none|sequence:2` looks inside a layer: of the heads of an
attention projection, or the neurons of a feed-forward one, groups read the same
columns, and two such units are stored. `=attention.query` has no weights.

Ranks, templates and units are for matrices. A vector (a bias, a norm's scale)
is the sum of its full-rank levels; where there is none it has the first level's
table, and under `soft:K` each layer its own.
"""

import dataclasses
import re

from shared_tfm.errors import need
from shared_tfm.sharing import table
from shared_tfm.sharing.table import ROOT, Owners

DIAGONAL = 'diagonal'
MOST = 100  # levels of a sum
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Level:
  """One term of a sum.

  Attributes:
    table: which row each layer reads; for templates, every layer its own mix.
    rank: of the stored product; 0 is full rank.
    diagonal: whether a row is the diagonal of a matrix (2310.02489).
    templates: K of soft:K; 0 elsewhere.
  """

  table: table.Spec
  rank: int = 0
  diagonal: bool = False
  templates: int = 0

  def __str__(self) -> str:
    if self.templates:
      return f'soft:{self.templates}'
    rank = DIAGONAL if self.diagonal else self.rank
    return f'{self.table}@{rank}' if rank else str(self.table)

  @property
  def full(self) -> bool:
    """Whether rows are whole tensors that layers read as they are."""
    return not (self.rank or self.diagonal or self.templates)

  def shapes(self, shape: Shape) -> dict[str, Shape]:
    """What one row, or all templates, of a tensor of this shape stores.

    Args:
      shape: of the tensor; two axes are a matrix, (d_in, d_out), and those
        before them count several, such as those of experts.

    Returns:
      Shapes by suffix: '' is the tensor itself; 'a' (d_in, r) and 'b' (r,
      d_out) are factors, with r = min(rank, d_in, d_out); 'diagonal'. Each of
      several matrices has its own.
    """
    if len(shape) < 2 or not (self.rank or self.diagonal):
      return {'': shape}
    if self.diagonal:
      return {DIAGONAL: (*shape[:-2], min(shape[-2:]))}
    rank = min(self.rank, *shape[-2:])
    return {'a': (*shape[:-1], rank), 'b': (*shape[:-2], rank, shape[-1])}


@dataclasses.dataclass(frozen=True)
class Spec:
  """A parsed spec: `str(parse(text))` is its canonical text.

  Attributes:
    levels: the terms of the sum; empty where `same_as` is set.
    within: a table over the units inside a layer, or None.
    same_as: the part whose weights are read instead of own ones.
  """

  levels: tuple[Level, ...] = ()
  within: table.Spec | None = None
  same_as: str = ''

  def __str__(self) -> str:
    if self.same_as:
      return f'={self.same_as}'
    units = f'|{self.within}' if self.within else ''
    return '+'.join(map(str, self.levels)) + units

  def terms(self, axes: int) -> list[int]:
    """The levels a tensor with that many axes is made of."""
    if axes > 1 or not self.levels:
      return list(range(len(self.levels)))
    return [i for i, level in enumerate(self.levels) if level.full] or [0]

  def of(self, axes: int) -> 'Spec':
    """What it says of a tensor with that many axes; of vectors, tables."""
    if axes > 1 or self.same_as:
      return self
    return Spec(tuple(Level(self.levels[i].table) for i in self.terms(axes)))

  def owners(self, num_layers: int) -> tuple[Owners, ...]:
    """The owner table of every level.

    Raises:
      BadInput: a level does not fit this number of layers.
    """
    return tuple(level.table.owners(num_layers) for level in self.levels)


def parse(text: str) -> Spec:
  """Parses a spec; see the grammar above.

  Raises:
    BadInput: an unknown table, a wrong form, or a rank that is none.
  """
  given = ''.join(text.split())
  if given.startswith('='):
    part = given[1:]
    need(
      bool(re.fullmatch(r'\w+\.\w+', part)),
      f'= is followed by a part such as attention.query, got {text!r}',
    )
    return Spec(same_as=part)
  terms, bar, units = given.partition('|')
  given_levels = terms.split('+')
  need(
    len(given_levels) <= MOST,
    f'a spec has at most {MOST} levels, got {len(given_levels)}',
  )
  levels = tuple(_level(term, text) for term in given_levels)
  need(
    sum(bool(level.templates) for level in levels) <= 1,
    f'one level at most may be soft, got {text!r}',
  )
  need(not bar or bool(units), f'| is followed by a table, got {text!r}')
  return Spec(levels, table.parse(units) if bar else None)


def _level(text: str, whole: str) -> Level:
  need(bool(text), f'an empty level in {whole!r}; write levels as all+none@4')
  name, at, rank = text.partition('@')
  if name.partition(':')[0] == 'soft':
    match = re.fullmatch(r'soft:([1-9]\d*)', name)
    need(
      match is not None,
      f'soft is written soft:K with K templates, at least 1, got {name!r}',
    )
    need(not at, f'templates are of full rank, got {text!r}')
    assert match
    return Level(table.Spec('none'), templates=int(match[1]))
  rows = table.parse(name)
  if rank == DIAGONAL:
    return Level(rows, diagonal=True)
  need(
    not at or bool(re.fullmatch(r'[1-9]\d*', rank)),
    f'a rank is an integer of at least 1, or {DIAGONAL}, got {text!r}',
  )
  return Level(rows, int(rank) if at else 0)


def assignments(text: str) -> dict[str, str]:
  """Reads a scheme given for several components: 'attention=all norm=none'.

  A bare spec stands for the whole layer. Names are dotted paths, and a part may
  read another's weights: 'attention.key==attention.value'. 'across' is given
  components, with commas between them, and no spec.

  Raises:
    BadInput: a name given twice, or a spec that is not one.
  """
  given: dict[str, str] = {}
  for word in text.split():
    name, _, spec = word.partition('=') if '=' in word else (ROOT, '', word)
    need(name not in given, f'{name} is given twice in the scheme {text!r}')
    given[name] = spec if name == 'across' else str(parse(spec))
  need(bool(given), 'an empty sharing scheme; write a spec such as cycle:3')
  return given
