"""Owner tables: which stored row of weights each layer reads.

A sharing scheme is a table. `cycle_rev:3` over six layers is

    layer        0 1 2 3 4 5
    owner        0 1 2 2 1 0

and everything else in this project follows from that row of integers: the
parameters that exist, the row each visit picks, the counts, the drawings.

To add a scheme, write one function here. Its decorator gives the written form,
in which each capital letter stands for an integer; the function gets the number
of layers and those integers, and returns the owner of every layer.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

from shared_tfm.errors import BadInput, need, unknown

Owners = tuple[int, ...]
Rule = Callable[..., Owners]

ROOT = 'layer'  # the name that stands for everything in a layer
LITERAL = re.compile(r'\d+(,\d+)*')
SCHEMES: dict[str, tuple[str, Rule]] = {}  # name -> (written form, rule)


def scheme(form: str) -> Callable[[Rule], Rule]:
  """Registers a rule under its written form, such as 'cycle:U'.

  What a name stands for stays: runs and tables are known by it. The same rule
  may be registered again, as by a cell of a notebook that is run again.

  Raises:
    BadInput: the name has other tables already.
  """
  name = form.partition(':')[0]

  def register(rule: Rule) -> Rule:
    there = SCHEMES.setdefault(name, (form, rule))
    need(
      there[1] is rule or _tables(*there) == _tables(form, rule),
      f'the sharing scheme {name} is another rule already, and runs are known'
      ' by its name: give this one a name of its own',
    )
    return rule

  return register


def _tables(form: str, rule: Rule) -> list[Any]:
  """What a rule says of small networks, for telling it from another."""
  numbers = len(re.findall('[A-Z]', form))
  told: list[Any] = []
  for layers, *given in itertools.product(
    range(1, 17), *[range(1, 7)] * numbers
  ):
    try:
      told.append((numbers, tuple(rule(layers, *given))))
    except Exception as error:  # a rule may refuse what it is not for
      told.append((numbers, repr(error)))
  return told


@scheme('none')
def _none(layers: int) -> Owners:
  """Every layer owns its weights."""
  return tuple(range(layers))


@scheme('all')
def _all(layers: int) -> Owners:
  """One row for every layer (ALBERT, 1909.11942; Universal Transformer)."""
  return (0,) * layers


@scheme('sequence:U')
def _sequence(layers: int, rows: int) -> Owners:
  """Neighbours share: A A B B (Takase & Kiyono, 2104.06022; MobileLLM)."""
  return tuple(i // _blocks('sequence', layers, rows) for i in range(layers))


@scheme('cycle:U')
def _cycle(layers: int, rows: int) -> Owners:
  """The block of rows is repeated: A B A B (Takase & Kiyono, 2104.06022)."""
  _blocks('cycle', layers, rows)
  return tuple(i % rows for i in range(layers))


@scheme('cycle_rev:U')
def _cycle_rev(layers: int, rows: int) -> Owners:
  """A cycle whose last repeat runs backwards (Takase & Kiyono, 2104.06022)."""
  block = tuple(range(rows))
  repeats = _blocks('cycle_rev', layers, rows)
  return block * (repeats - 1) + (block[::-1] if repeats > 1 else block)


@scheme('sandwich')
def _sandwich(layers: int) -> Owners:
  """First and last layer own, the middle is one row (Subformer, 2101.00234)."""
  need(layers >= 3, f'sandwich needs num_layers of at least 3, got {layers}')
  return (0,) + (1,) * (layers - 2) + (2,)


@scheme('middle_cycle:U')
def _middle_cycle(layers: int, rows: int) -> Owners:
  """A cycle between an own first and last layer (MoR, 2507.10524, Table 5)."""
  return _middle('middle_cycle', _cycle, layers, rows)


@scheme('middle_sequence:U')
def _middle_sequence(layers: int, rows: int) -> Owners:
  """A sequence between an own first and last layer (MoR, 2507.10524)."""
  return _middle('middle_sequence', _sequence, layers, rows)


@scheme('prefix:P')
def _prefix(layers: int, own: int) -> Owners:
  """P rows, the last for every later layer (YOCO's keys, 2405.05254)."""
  need(
    0 < own <= layers,
    f'prefix:P needs P from 1 to num_layers {layers}, got {own}',
  )
  return tuple(min(i, own - 1) for i in range(layers))


@scheme('recurrent:P/CxR/K')
def _recurrent(layers: int, p: int, c: int, r: int, k: int) -> Owners:
  """P own layers, a core of C looped R times, K own (Huginn, 2502.05171)."""
  name = f'recurrent:{p}/{c}x{r}/{k}'
  need(c > 0 and r > 0, f'{name} needs C and R of at least 1')
  depth = p + c * r + k
  need(
    layers == depth,
    f'{name} needs num_layers = P + C*R + K = {depth}, got {layers}',
  )
  prelude, core = tuple(range(p)), tuple(range(p, p + c))
  return prelude + core * r + tuple(range(p + c, p + c + k))


def _blocks(name: str, layers: int, rows: int) -> int:
  """How many times `rows` goes into `layers`, which must come out even."""
  need(rows > 0, f'{name}:U needs U of at least 1, got {rows}')
  need(
    layers % rows == 0,
    f'{name}:{rows} needs num_layers divisible by {rows}, got {layers}',
  )
  return layers // rows


def _middle(name: str, inner: Rule, layers: int, rows: int) -> Owners:
  need(rows > 0, f'{name}:U needs U of at least 1, got {rows}')
  need(
    layers > 2 and (layers - 2) % rows == 0,
    f'{name}:{rows} needs num_layers - 2 divisible by {rows}, and some'
    f' middle, got num_layers {layers}',
  )
  middle = tuple(1 + row for row in inner(layers - 2, rows))
  return (0, *middle, max(middle) + 1)


@dataclasses.dataclass(frozen=True)
class Spec:
  """A parsed sharing spec: `str(parse(text))` is its canonical text.

  Attributes:
    name: a key of SCHEMES, or 'literal'.
    args: the integers of the written form, or the literal's owners.
  """

  name: str
  args: Owners = ()

  def __str__(self) -> str:
    if self.name == 'literal':
      return ','.join(map(str, self.args))
    values = iter(self.args)
    return re.sub('[A-Z]', lambda _: str(next(values)), SCHEMES[self.name][0])

  def owners(self, num_layers: int) -> Owners:
    """The owner of each of `num_layers` layers: integers, dense from 0.

    Raises:
      BadInput: the spec does not fit this number of layers.
    """
    need(num_layers > 0, f'num_layers must be at least 1, got {num_layers}')
    if self.name != 'literal':
      return SCHEMES[self.name][1](num_layers, *self.args)
    need(
      len(self.args) == num_layers,
      f'the table {self} has {len(self.args)} entries for {num_layers}'
      ' layers; a literal needs one for each',
    )
    return self.args


def parse(text: str) -> Spec:
  """Parses one sharing spec.

  Args:
    text: the name of a scheme with its integers, such as 'all', 'cycle:3' or
      'recurrent:2/4x3/2', or a literal table such as '0,1,2,2,1,0'.

  Raises:
    BadInput: an unknown name, a wrong form, or a literal with an unused row.
  """
  given = ''.join(text.split())
  if LITERAL.fullmatch(given):
    literal = tuple(map(int, given.split(',')))
    for row in range(max(literal)):
      need(
        row in literal,
        f'the rows of a table run from 0 without gaps; {given} has'
        f' {max(literal)} but no {row}',
      )
    return Spec('literal', literal)
  name = given.partition(':')[0]
  if name not in SCHEMES:
    raise unknown('sharing scheme', name, SCHEMES)
  form, _ = SCHEMES[name]
  match = re.fullmatch(re.sub('[A-Z]', r'(\\d+)', form), given)
  if match is None:
    raise BadInput(f'{name} is written {form} with integers, got {text!r}')
  return Spec(name, tuple(map(int, match.groups())))


def owners(spec: str, num_layers: int) -> Owners:
  """The owner table of a spec.

  >>> owners('cycle_rev:3', num_layers=6)
  (0, 1, 2, 2, 1, 0)

  Args:
    spec: see `parse`.
    num_layers: the number of visits.

  Returns:
    One stored row per layer.

  Raises:
    BadInput: the spec is not one, or does not fit the number of layers.
  """
  return parse(spec).owners(num_layers)


def resolve(names: Mapping[str, object], path: str) -> str:
  """The nearest name in `names` that `path` inherits from.

  >>> resolve({'layer': ..., 'attention': ...}, 'attention.key.kernel')
  'attention'

  Args:
    names: dotted names of components and their parts, and ROOT for all.
    path: a dotted path inside a layer.
  """
  while path and path not in names:
    path = path.rpartition('.')[0]
  return path or ROOT
