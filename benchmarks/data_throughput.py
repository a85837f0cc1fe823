"""Does a training step ever wait for its data?

Of each config: how many rows a second the pipeline makes when nothing else
runs; and, as in a run, where a batch is asked for as soon as the step before it
was sent, how long a step takes, how long asking takes, and for how much of that
no step was being computed: on one device of a CPU for all of it. The last is
what counts; it should be below 2 % of a step.

Command: python -m benchmarks.data_throughput [--steps=N] CONFIG... \
  [--config.FIELD=VALUE ...]
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from shared_tfm import config_file, heap
from shared_tfm.config import Config
from shared_tfm.tasks import prepare
from shared_tfm.train.programs import programs

HEAD = (
  'config',
  'batch',
  'rows/s alone',
  'step',
  'asking',
  'of a step',
  'waiting',
  'of a step',
)
AHEAD = 20  # batches: more than are read before anyone asks


@dataclasses.dataclass(frozen=True)
class Timed:
  """Seconds of each step of a run.

  Attributes:
    shape: of the last batch.
    alone: rows a second of the pipeline, when nothing else runs.
    each: of a step.
    asks: for which a batch was asked for.
    waits: of these, those in which no step was computed.
  """

  shape: tuple[int, ...]
  alone: float
  each: list[float]
  asks: list[float]
  waits: list[float]


def timed(config: Config, steps: int) -> Timed:
  """Runs a config's pipeline alone, and then with its training step.

  A step that has ended when its successor's batch is there counts as waiting
  for as long as asking took, which is the most that it can have waited.
  """
  with tempfile.TemporaryDirectory() as folder:
    dataset = prepare(config, folder)
  batches = dataset.train(0)
  rows = 0
  for i in range(AHEAD + steps):
    if i == AHEAD:
      begin = time.perf_counter()
    rows += len(next(batches)['inputs']) * (i >= AHEAD)
  alone = rows / (time.perf_counter() - begin)

  compiled = programs(config)
  state = compiled.init(jnp.uint32(0))
  batch = jax.device_put(next(batches))

  each, asks, waits = [], [], []
  for i in range(1 + steps):
    begin = time.perf_counter()
    state, metrics = compiled.train(state, batch)
    sent = time.perf_counter()
    read = next(batches)
    asked = time.perf_counter() - sent
    waited = asked if metrics['loss'].is_ready() else 0.0
    batch = jax.device_put(read)
    jax.block_until_ready((state, batch))
    if i:
      each.append(time.perf_counter() - begin)
      asks.append(asked)
      waits.append(waited)
  return Timed(batch['inputs'].shape, alone, each, asks, waits)


def measured(
  path: str, overrides: Sequence[str], steps: int
) -> tuple[str, ...]:
  """One row of the table: times in milliseconds, means over the steps."""
  found = timed(config_file.load(path, overrides), steps)
  # Means: one long wait counts, and batches may differ in shape.
  step, asking, waiting = (
    1000 * statistics.mean(times)
    for times in (found.each, found.asks, found.waits)
  )
  return (
    Path(path).stem,
    'x'.join(map(str, found.shape)),
    f'{found.alone:,.0f}',
    f'{step:.1f}',
    f'{asking:.3f}',
    f'{asking / step:.2%}',
    f'{waiting:.3f}',
    f'{waiting / step:.2%}',
  )


def main() -> None:
  """Prints the table, a row at a time."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('configs', nargs='+', metavar='CONFIG')
  parser.add_argument('--steps', type=int, default=50)
  args, overrides = parser.parse_known_args()
  heap.keep()  # as the command does
  print(f'| {" | ".join(HEAD)} |\n|{"---|" * len(HEAD)}')
  for path in args.configs:
    print(f'| {" | ".join(measured(path, overrides, args.steps))} |')
    sys.stdout.flush()


if __name__ == '__main__':
  main()
