"""Everything that is said of our speed, measured here and written down.

Sections run one after the other, and each row is in the files as soon as it is
known: a table (ratios; on a GPU medians as well), the same with every round's
seconds as JSON, and a plot of how a step scales. Of a CPU the table has no
times: they say more of the machine than of the program.

Command: make bench, or
  .venv/bin/python -m benchmarks.suite [--rounds=N] [--out=FOLDER] [SECTION ...]
"""

import argparse
import dataclasses
import importlib.metadata
import inspect
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.rows import NotHere, Plan, Row, Section, head
from benchmarks.sections import (
  batching,
  bits,
  data,
  depth,
  depthwise,
  generate,
  gpu,
  memory,
  peers,
  scaling,
  start,
  unrolled,
)
from shared_tfm import files, heap

SECTIONS: dict[str, Section] = {
  'peers': peers.rows,
  'depth': depth.rows,
  'memory': memory.rows,
  'unrolled': unrolled.rows,
  'input': data.rows,
  'scaling': scaling.rows,
  'start': start.rows,
  'generate': generate.rows,
  'batching': batching.rows,
  'bits': bits.rows,
  'depthwise': depthwise.rows,
  'gpu': gpu.rows,
}
PACKAGES = (
  *('jax', 'jaxlib', 'flax', 'optax'),
  *('torch', 'transformers', 'x-transformers'),
)


@dataclasses.dataclass
class Told:
  """What a section has said so far.

  Attributes:
    about: what its ratios are.
    rows: those that it came to.
    failed: why there are no more, in a line; empty: there are none.
  """

  about: str
  rows: list[Row] = dataclasses.field(default_factory=list)
  failed: str = ''

  def text(self, name: str, absolute: bool) -> str:
    """Its part of the table."""
    lines = [f'## {name}', '', self.about, '']
    if self.rows:
      lines += [head(absolute), *(row.line(absolute) for row in self.rows), '']
    if self.failed:
      lines += [self.failed, '']
    return '\n'.join(lines)


def run(
  sections: Mapping[str, Section], plan: Plan, folder: Path
) -> dict[str, Told]:
  """Runs sections in their order, and writes the files after every row."""
  folder.mkdir(parents=True, exist_ok=True)
  machine, told = _machine(), {}
  absolute = machine['backend'] == 'gpu'
  stem = f'{machine["date"]}-{machine["backend"]}' + '-quick' * plan.quick
  for name, section in sections.items():
    this = told[name] = Told(inspect.getdoc(section) or '')
    try:
      for row in section(plan):
        this.rows.append(row)
        _write(folder / stem, machine, plan, told)
    except NotHere as error:
      this.failed = f'Not run: {error}.'
    except Exception as error:
      traceback.print_exc()
      said = str(error).strip().split('\n')[0][:200]
      this.failed = f'FAILED after {len(this.rows)} rows:'
      this.failed += f' {type(error).__name__}: {said}'
    print(this.text(name, absolute), flush=True)
    _write(folder / stem, machine, plan, told)
  return told


def _write(
  stem: Path, machine: dict[str, Any], plan: Plan, told: Mapping[str, Told]
) -> None:
  """The table, the same as JSON, and the plot where there is one."""

  def write(suffix: str, text: str) -> None:
    files.replace(stem.with_name(stem.name + suffix), text)

  whole = {**machine, **dataclasses.asdict(plan)}
  whole['sections'] = {name: dataclasses.asdict(t) for name, t in told.items()}
  write('.json', json.dumps(whole, indent=1) + '\n')
  absolute = machine['backend'] == 'gpu'
  parts = [t.text(name, absolute) for name, t in told.items()]
  scaled = told.get('scaling')
  if scaled and scaled.rows:
    scaling.draw(scaled.rows, stem.with_name(f'{stem.name}-scaling.png'))
    parts.append(f'![Time against FLOPs]({stem.name}-scaling.png)\n')
  write('.md', '\n'.join([_title(machine, plan), *parts]))


def _title(machine: dict[str, Any], plan: Plan) -> str:
  ran = ', '.join(
    f'{n} {version}' for n, version in machine['versions'].items()
  )
  small = ' TINY SIZES, to test the suite: the figures mean nothing.'
  return (
    f'# Measured on {machine["date"]}, {machine["backend"]}\n\n'
    f'{machine["device"]}, {machine["cores"]} CPU cores; {ran}. Contenders'
    ' take turns; a ratio is of medians over the rounds, and beside it are the'
    f' lowest and the highest of single rounds.{small * plan.quick}\n'
  )


def _machine() -> dict[str, Any]:
  """What all of it ran on."""
  versions = {'python': platform.python_version()}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return {
    'date': time.strftime('%Y-%m-%d'),
    'backend': jax.default_backend(),
    'device': jax.devices()[0].device_kind,
    'cores': len(os.sched_getaffinity(0)),
    'versions': versions,
  }


def main(words: Sequence[str] | None = None) -> int:
  """Runs what is asked for; 1 where some of it failed."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('sections', nargs='*', metavar='SECTION')
  parser.add_argument('--rounds', type=int, default=Plan.rounds)
  parser.add_argument(
    '--out', type=Path, default=Path(__file__).parent / 'results'
  )
  parser.add_argument('--quick', action='store_true', help='tiny, for a test')
  args = parser.parse_args(words)
  unknown = set(args.sections) - set(SECTIONS)
  if unknown:
    parser.error(f'no such section: {sorted(unknown)}; {list(SECTIONS)}')
  if args.rounds < 1:
    parser.error('--rounds must be at least 1')
  # The GPU is not for this process alone: `start` and PyTorch want memory, too.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  heap.keep()  # as the command does
  asked = {
    n: s for n, s in SECTIONS.items() if n in (args.sections or SECTIONS)
  }
  told = run(asked, Plan(args.rounds, args.quick), args.out)
  return int(any(t.failed.startswith('FAILED') for t in told.values()))


if __name__ == '__main__':
  sys.exit(main())
