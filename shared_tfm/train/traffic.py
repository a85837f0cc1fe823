"""What a compiled program sends between devices, read from its HLO."""

import dataclasses
import math
import re

from shared_tfm.train import hlo

PERMUTE, SCATTER = 'collective-permute', 'reduce-scatter'

_SENDS = re.compile(
  r'= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all'
  r'|collective-permute)(?:-start)?\('
)
# The four ways in which HLO writes groups: all devices, groups one by one,
# their number and size, and axes of a mesh (one of them perhaps in part).
_LISTED = re.compile(r'replica_groups=\{(?:\{([\d,]+)\}.*?)?\}')
_COUNTED = re.compile(r'replica_groups=\[\d+,(\d+)\]')
_MESH = re.compile(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}')
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_TAKEN = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")


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


def collectives(text: str) -> list[Collective]:
  """All collectives of a program among more than one device.

  Args:
    text: `compiled.as_text()`. A loop whose number of rounds is not known there
      counts as one round.

  Raises:
    ValueError: a collective is written in a way that is not known.
  """
  program = hlo.Program(text)
  found = []
  for line in program.lines():
    if sends := _SENDS.search(line.text):
      group = program.devices
      if sends[2] != PERMUTE:
        group = _group(line.text, group)
      size = hlo.size(sends[1]) * (group if sends[2] == SCATTER else 1)
      found.append(Collective(sends[2], size, group, line.runs, line.looped))
  return [c for c in found if c.group > 1]


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
