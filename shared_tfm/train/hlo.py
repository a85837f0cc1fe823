"""A compiled program's HLO, line by line, as often as each line is run."""

import dataclasses
import math
import re
from collections.abc import Iterator

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's32': 4, 'u32': 4, 'f32': 4}
BYTES |= {'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 's64': 8, 'u64': 8, 'f64': 8}
BYTES |= {'f8e4m3fn': 1, 'f8e5m2': 1}

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) .*\{$')
_CALLED = re.compile(
  r'(?:to_apply|calls|body|condition|true_computation|false_computation)'
  r'=%?([\w.-]+)|branch_computations=\{([^}]*)\}'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ALL = re.compile(r'num_partitions=(\d+)')
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\]')

Array = tuple[str, tuple[int, ...]]  # a dtype and a shape


@dataclasses.dataclass(frozen=True)
class Line:
  """One instruction.

  Attributes:
    text: as it is written.
    inside: the name of the computation it stands in.
    runs: how often it is run in one call of the program.
    looped: whether inside a loop.
  """

  text: str
  inside: str
  runs: int
  looped: bool


class Program:
  """A program's computations, by name."""

  def __init__(self, hlo: str):
    """Splits it; `hlo` is `compiled.as_text()`."""
    self.computations: dict[str, list[str]] = {}
    self._entry = inside = ''
    for line in hlo.splitlines():
      if head := _COMPUTATION.match(line):
        inside = head[2]
        self.computations[inside] = []
        self._entry = inside if head[1] else self._entry
      elif inside:
        self.computations[inside].append(line)
    found = _ALL.search(hlo)
    self.devices = int(found[1]) if found else 1

  def lines(self) -> Iterator[Line]:
    """All that is run, calls and loops followed.

    A loop whose number of rounds is not known counts as one round, and of a
    choice every branch is taken.
    """
    return self._walk(self._entry, 1, False)

  def _walk(self, name: str, runs: int, looped: bool) -> Iterator[Line]:
    for text in self.computations[name]:
      yield Line(text, name, runs, looped)
      loops = ' while(' in text
      trips = _TRIPS.search(text) if loops else None
      rounds = int(trips[1]) if trips else 1
      for one, several in _CALLED.findall(text):
        for called in (
          [one] if one else re.split(r'[%, ]+', several.strip('% '))
        ):
          yield from self._walk(called, runs * rounds, looped or loops)


def arrays(text: str) -> list[Array]:
  """The arrays that a piece of HLO names."""
  return [
    (dtype, tuple(int(n) for n in dims.split(',') if n))
    for dtype, dims in _ARRAY.findall(text)
  ]


def size(text: str) -> int:
  """Bytes of the arrays that a piece of HLO names."""
  return sum(BYTES[dtype] * math.prod(shape) for dtype, shape in arrays(text))
