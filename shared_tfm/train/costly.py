"""Where the time of a profiled step went, by operation.

A profile says of every operation when it ran. Of the loops, calls and choices
that only hold others nothing is counted; and time in which several operations
run at once, on threads or on devices, is shared evenly among them, so that all
of them together never take longer than the clock said. An operation of a CPU
may leave its thread before it ends: what it waits for then, such as a turn on a
core, it is charged with only while no other holds a thread.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from shared_tfm.errors import need
from shared_tfm.train import hlo

PRODUCTS = {'dot', 'convolution'}
HOLDERS = {'while', 'call', 'conditional', 'cond'}
DONE = 'end: '  # so a CPU says that one has ended, maybe on another thread

_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%([\w.-]+) = .*? ([a-z][a-z\d-]*)\(')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r'calls=%?([\w.-]+)')
_TARGET = re.compile(r'custom_call_target="[^"]*(?:gemm|matmul|dot)')
_NUMBER = re.compile(r'(?:\.\d+)+$')
# Of the path that JAX gives an operation: what says nothing about the network.
_INNER = re.compile(
  r'.*[^\w].*|while|body|cond|closed_call|eval_jaxpr|checkpoint'
  r'|rematted_computation|branch_\d+_fun|shard_map|stack|Layer|'
)


@dataclasses.dataclass(frozen=True)
class Row:
  """Operations of one kind, from one place of the network, in one pass.

  Attributes:
    kind: 'dot' for what multiplies matrices, also as a part of a fusion; else
      the compiler's name.
    place: the module, such as 'feed_forward/up'; '' where none is known.
    phase: forward, recomputed, backward, update; '' where it is not known.
    seconds: of all of them.
    share: of the time that was profiled.
    count: how often they ran.
  """

  kind: str
  place: str
  phase: str
  seconds: float
  share: float
  count: int


class Run(NamedTuple):
  """One operation, from when to when, in nanoseconds.

  Attributes:
    name: its instruction's.
    start: of it.
    left: when it let go of its thread.
    end: when its result was there.
  """

  name: str
  start: float
  left: float
  end: float


def table(folder: Path, text: str, wall: float) -> list[Row]:
  """What took time, the most costly first.

  Args:
    folder: that `jax.profiler.trace` has just written to.
    text: the HLO of the program that ran, `compiled.as_text()`.
    wall: for how many seconds it ran.
  """
  written = list(folder.rglob('*.xplane.pb'))
  need(bool(written), f'no profile was written to {folder}')
  newest = max(written, key=lambda path: path.stat().st_mtime)
  data = ProfileData.from_file(str(newest))
  names = known(text)
  spent: dict[tuple[str, str, str], float] = collections.defaultdict(float)
  counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
  found = []
  for run in operations(data):
    stem = _NUMBER.sub('', run.name)
    kind, place, phase = names.get(run.name, (stem, '', ''))
    if kind not in HOLDERS and stem not in HOLDERS:
      found.append(((kind, place, phase), run))
      counts[kind, place, phase] += 1
  for group, seconds in shared(found):
    spent[group] += seconds
  rows = [
    Row(*group, seconds, seconds / wall, counts[group])
    for group, seconds in spent.items()
  ]
  return sorted(rows, key=lambda row: -row.seconds)


def known(text: str) -> dict[str, tuple[str, str, str]]:
  """Kind, place and phase of every instruction of a program, by its name."""
  computations = hlo.Program(text).computations
  opcodes = {
    inside: {found[2] for found in map(_INSTRUCTION.match, lines) if found}
    for inside, lines in computations.items()
  }
  names = {}
  for lines in computations.values():
    for line in lines:
      if not (found := _INSTRUCTION.match(line)):
        continue
      name, opcode = found.groups()
      called = _CALLED.search(line)
      parts = {opcode} | (opcodes.get(called[1], set()) if called else set())
      if parts & PRODUCTS or _TARGET.search(line):
        kind = 'dot'
      else:
        kind = opcode if opcode in HOLDERS else _NUMBER.sub('', name)
      source = _SOURCE.search(line)
      names[name] = (kind, *_placed(source[1] if source else ''))
  return names


def _placed(source: str) -> tuple[str, str]:
  """Place and phase, from the path that JAX gives an operation."""
  if '/' not in source:
    return '', ''
  *path, _ = source.split(';')[0].split('/')
  place = [name for name in path if not _INNER.fullmatch(name)]
  if 'rematted_computation' in path:
    phase = 'recomputed'
  elif any(name.startswith('transpose(') for name in path):
    phase = 'backward'
  else:
    forward = any(name.startswith('jvp(') for name in path)
    phase = 'forward' if forward else 'update'
  return '/'.join(dict.fromkeys(place)), phase


def operations(data: Any) -> list[Run]:
  """What a profile, `ProfileData`, has seen of devices, or else of a CPU."""
  return list(_on_devices(data)) or list(_on_host(data))


def _on_devices(data: Any) -> Iterator[Run]:
  """The operations on a GPU or a TPU."""
  for plane in data.planes:
    if not plane.name.startswith('/device:'):
      continue
    # A TPU has a line of operations; on a GPU they are in its streams.
    lines = list(plane.lines)
    named = [line for line in lines if line.name == 'XLA Ops']
    for line in named or [line for line in lines if 'Stream' in line.name]:
      for event in line.events:
        name = str(dict(event.stats).get('hlo_op', event.name))
        name = name.partition(' = ')[0].lstrip('%')
        end = event.start_ns + event.duration_ns
        yield Run(name, event.start_ns, end, end)


def _on_host(data: Any) -> Iterator[Run]:
  """Those of a CPU, which may outlast what their thread says of them."""
  started, ended = [], {}
  for plane in data.planes:
    for line in plane.lines:
      for event in line.events:
        stats = dict(event.stats)
        if event.name.startswith(DONE):
          ended[stats.get('_c')] = event.start_ns
        elif 'hlo_op' in stats:
          left = event.start_ns + event.duration_ns
          run = Run(str(stats['hlo_op']), event.start_ns, left, left)
          started.append((stats.get('_p'), run))
  for number, run in started:
    yield run._replace(end=max(run.left, ended.get(number, run.left)))


def shared(runs: Iterable[tuple[Any, Run]]) -> Iterator[tuple[Any, float]]:
  """The seconds of each group, piece by piece, whatever ran at once."""
  moments = []
  for number, (group, run) in enumerate(runs):
    spans = (run.start, run.left), (run.left, run.end)
    for waits, (start, end) in enumerate(spans):
      if start < end:
        moments.append((start, 1, waits, number, group))
        moments.append((end, 0, waits, number, group))
  active: tuple[dict[int, Any], dict[int, Any]] = {}, {}  # on threads, waiting
  before = 0.0
  for now, starts, waits, number, group in sorted(moments, key=lambda m: m[:4]):
    running = active[0] or active[1]
    for other in running.values():
      yield other, (now - before) / len(running) / 1e9
    if starts:
      active[waits][number] = group
    else:
      del active[waits][number]
    before = now
