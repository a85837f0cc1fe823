"""What a compiled program sends between devices, read from its HLO."""

import dataclasses
import math
import re
from collections.abc import Iterator

PERMUTE, SCATTER = 'collective-permute', 'reduce-scatter'
BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's32': 4, 'u32': 4, 'f32': 4}
BYTES |= {'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 's64': 8, 'u64': 8, 'f64': 8}

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) .*\{$')
_SENDS = re.compile(
  r'= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all'
  r'|collective-permute)(?:-start)?\('
)
_CALLED = re.compile(
  r'(?:to_apply|calls|body|condition|true_computation|false_computation)'
  r'=%?([\w.-]+)|branch_computations=\{([^}]*)\}'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ALL = re.compile(r'num_partitions=(\d+)')
# The four ways in which HLO writes groups: all devices, groups one by one,
# their number and size, and axes of a mesh (one of them perhaps in part).
_LISTED = re.compile(r'replica_groups=\{(?:\{([\d,]+)\}.*?)?\}')
_COUNTED = re.compile(r'replica_groups=\[\d+,(\d+)\]')
_MESH = re.compile(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}')
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_TAKEN = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\]')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of a program.

  Attributes:
    kind: its name in HLO, such as 'all-gather'.
    size: bytes of the whole array, of all devices of a group together where
      each has its part.
    group: how many devices take part.
    runs: how often it is run in one call of the program.
    looped: whether inside a loop.
  """

  kind: str
  size: int
  group: int
  runs: int
  looped: bool

  @property
  def sent(self) -> int:
    """Bytes that each device sends in one call of the program.

    By the ring: (n - 1) / n of the array to gather or scatter it, and both to
    reduce it everywhere.
    """
    once = self.size * (self.group - 1) // self.group
    if self.kind == PERMUTE:
      once = self.size
    return self.runs * once * (2 if self.kind == 'all-reduce' else 1)


def collectives(hlo: str) -> list[Collective]:
  """All collectives of a program among more than one device.

  Args:
    hlo: `compiled.as_text()`. A loop whose number of rounds is not known there
      counts as one round.

  Raises:
    ValueError: a collective is written in a way that is not known.
  """
  computations: dict[str, list[str]] = {}
  entry = inside = ''
  for line in hlo.splitlines():
    if head := _COMPUTATION.match(line):
      inside = head[2]
      computations[inside] = []
      entry = inside if head[1] else entry
    elif inside:
      computations[inside].append(line)
  found = _ALL.search(hlo)
  devices = int(found[1]) if found else 1
  walked = _walk(computations, entry, 1, False, devices)
  return [c for c in walked if c.group > 1]


def _walk(
  computations: dict[str, list[str]],
  name: str,
  runs: int,
  looped: bool,
  devices: int,
) -> Iterator[Collective]:
  for line in computations[name]:
    if found := _SENDS.search(line):
      group = devices if found[2] == PERMUTE else _group(line, devices)
      size = _bytes(found[1]) * (group if found[2] == SCATTER else 1)
      yield Collective(found[2], size, group, runs, looped)
      continue  # what it reduces by sends nothing
    loops = ' while(' in line
    trips = _TRIPS.search(line) if loops else None
    rounds = int(trips[1]) if trips else 1
    for one, several in _CALLED.findall(line):
      for called in [one] if one else re.split(r'[%, ]+', several.strip('% ')):
        yield from _walk(
          computations, called, runs * rounds, looped or loops, devices
        )


def _bytes(shapes: str) -> int:
  return sum(
    BYTES[dtype] * math.prod(int(n) for n in dims.split(',') if n)
    for dtype, dims in _ARRAY.findall(shapes)
  )


def _group(line: str, devices: int) -> int:
  """How many devices are in one group."""
  if found := _LISTED.search(line):
    return found[1].count(',') + 1 if found[1] else devices
  if found := _COUNTED.search(line):
    return int(found[1])
  if found := _MESH.search(line):
    sizes = dict(_AXIS.findall(found[1]))
    taken = _TAKEN.findall(found[2])
    return math.prod(int(part or sizes[axis]) for axis, part in taken)
  raise ValueError(f'unknown replica groups: {line.strip()[:200]}')
