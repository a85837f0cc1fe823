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
import math
import re
from collections.abc import Mapping

from shared_tfm.errors import BadInput, need, unknown
from shared_tfm.sharing import table
from shared_tfm.sharing.table import ROOT, Owners

DIAGONAL = 'diagonal'
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
      shape: of the tensor; two axes are a matrix, (d_in, d_out).

    Returns:
      Shapes by suffix: '' is the tensor itself; 'a' (d_in, r) and 'b' (r,
      d_out) are factors, with r = min(rank, d_in, d_out); 'diagonal'.
    """
    if len(shape) < 2 or not (self.rank or self.diagonal):
      return {'': shape}
    if self.diagonal:
      return {DIAGONAL: (min(shape),)}
    rank = min(self.rank, *shape)
    return {'a': (shape[0], rank), 'b': (rank, shape[1])}


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
    if axes > 1:
      return list(range(len(self.levels)))
    return [i for i, level in enumerate(self.levels) if level.full] or [0]

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
  levels = tuple(_level(term, text) for term in terms.split('+'))
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


@dataclasses.dataclass(frozen=True)
class Component:
  """A named component, or part of one, with what it is stored as.

  Attributes:
    spec: how its weights are made.
    owners: for every level, the row each layer reads; -1 where a layer does not
      read this component at all.
  """

  spec: Spec
  owners: tuple[Owners, ...]

  def rows(self, level: int) -> int:
    """How many rows a level stores of a tensor that it holds in full."""
    return max(self.owners[level]) + 1

  def readers(self, num_layers: int) -> int:
    """How many of the layers read this component."""
    if not self.owners:
      return num_layers
    return sum(row >= 0 for row in self.owners[0])

  def stored(self, shape: Shape, units: int = 0, axis: int = 0) -> int:
    """How many parameters are stored for one tensor of every layer.

    Args:
      shape: of the tensor in one layer.
      units: how many heads or neurons `axis` is made of; 0: it has no units.
      axis: of the units.
    """
    shape = self.shrunk(shape, units, axis)
    total = 0
    for i in self.spec.terms(len(shape)):
      level = self.spec.levels[i]
      mixed = level.templates and len(shape) > 1
      copies = level.templates if mixed else self.rows(i)
      total += copies * sum(map(math.prod, level.shapes(shape).values()))
    return total

  def shrunk(self, shape: Shape, units: int, axis: int) -> Shape:
    """The shape that is stored of a tensor whose units share columns."""
    if not (self.spec.within and units):
      return shape
    kept = max(self.spec.within.owners(units)) + 1
    size = shape[axis] // units * kept
    return (*shape[:axis], size, *shape[axis + 1 :])

  @property
  def templates(self) -> int:
    """How many templates each layer has a coefficient for; 0: not soft."""
    return sum(level.templates for level in self.spec.levels)


def components(
  specs: Mapping[str, str],
  num_layers: int,
  readers: Mapping[str, tuple[bool, ...]] | None = None,
) -> dict[str, Component]:
  """The components of a model by name.

  Args:
    specs: a spec for ROOT and for each component or part that has its own.
    num_layers: the number of visits.
    readers: for parts that not every layer has, which layers do. Such a part
      is a component of its own, under the spec of its nearest ancestor; its
      rows are those that are read.

  Raises:
    BadInput: a spec does not fit the number of layers.
  """
  readers = readers or {}
  found = {}
  for name in dict.fromkeys((*specs, *readers)):
    spec = parse(specs[table.resolve(specs, name)])
    owners = spec.owners(num_layers)
    if name in readers:
      owners = tuple(_restricted(rows, readers[name]) for rows in owners)
    found[name] = Component(spec, owners)
  return found


def _restricted(owners: Owners, reads: tuple[bool, ...]) -> Owners:
  """A table of the layers that read, its rows dense from 0; -1 elsewhere."""
  seen = sorted({row for row, read in zip(owners, reads, strict=True) if read})
  return tuple(
    seen.index(row) if read else -1
    for row, read in zip(owners, reads, strict=True)
  )


def assignments(text: str) -> dict[str, str]:
  """Reads a scheme given for several components: 'attention=all norm=none'.

  A bare spec stands for the whole layer. Names are dotted paths, and a part may
  read another's weights: 'attention.key==attention.value'.

  Raises:
    BadInput: a name given twice, or a spec that is not one.
  """
  given: dict[str, str] = {}
  for word in text.split():
    name, _, spec = word.partition('=') if '=' in word else (ROOT, '', word)
    need(name not in given, f'{name} is given twice in the scheme {text!r}')
    given[name] = str(parse(spec))
  need(bool(given), 'an empty sharing scheme; write a spec such as cycle:3')
  return given


def draw(specs: Mapping[str, str], num_layers: int) -> str:
  """Draws owner tables for a terminal: a line a level, joined by '+'.

  >>> print(draw({'attention': 'all', 'norm': 'cycle:2'}, 4))
  layer      0  1  2  3
  attention  0  0  0  0  all      1 row, each read 4 times
  norm       0  1  0  1  cycle:2  2 rows, each read 2 times

  Args:
    specs: a spec for each name to be drawn.
    num_layers: the number of visits.
  """
  width = len(str(num_layers - 1))
  rows = []
  for name, text in specs.items():
    spec = parse(text)
    if spec.same_as:
      rows.append((name, ['='] * num_layers, str(spec), 'no weights'))
    for i, level in enumerate(spec.levels):
      owners = level.table.owners(num_layers)
      cells = ['~'] * num_layers if level.templates else list(map(str, owners))
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


def check(
  specs: Mapping[str, str], num_layers: int, parts: Mapping[str, Shape]
) -> None:
  """Checks that specs fit a model.

  Args:
    specs: by name.
    num_layers: the number of visits.
    parts: the shape of every matrix of a layer, by dotted part.

  Raises:
    BadInput: the name, the rule and what was given.
  """
  for name, text in specs.items():
    try:
      spec = parse(text)
      spec.owners(num_layers)
      if spec.same_as:
        _check_same(name, spec.same_as, specs, parts)
      need(
        not spec.within
        or name.split('.')[0]
        in ('attention', 'feed_forward', 'cross_attention'),
        f'a table after | is for attention and feed_forward, got {text!r}',
      )
    except BadInput as error:
      field = name.replace('.', '_')
      raise BadInput(f'model.sharing.{field}: {error}') from None


def _check_same(
  name: str, other: str, specs: Mapping[str, str], parts: Mapping[str, Shape]
) -> None:
  need(name in parts, f'={other} is for a part such as attention.key')
  if other not in parts:
    raise unknown('part', other, parts)
  need(
    not specs.get(other, '').startswith('='),
    f'{other} has no weights of its own either',
  )
  need(
    parts[name] == parts[other],
    f'={other} needs {name} {parts[name]} to have the shape of {other}'
    f' {parts[other]}',
  )
