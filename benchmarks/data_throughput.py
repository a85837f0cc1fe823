"""Does a training step ever wait for its data?

Of each config: how long the pipeline takes for a batch when nothing else runs,
how long steps take once they have theirs, and how long they wait for the next
one, in a run, where it is prepared beside them. The last is what
counts; it should be below 2 % of a step.

Command: python -m benchmarks.data_throughput [--steps=N] CONFIG...
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from shared_tfm import config_file
from shared_tfm.tasks import prepare
from shared_tfm.train.programs import programs

HEAD = ('config', 'batch', 'alone', 'step', 'waits', 'of a step')


def measured(path: str, steps: int) -> tuple[str, ...]:
  """One row of the table: times in milliseconds, means over the steps."""
  config = config_file.load(path, [])
  with tempfile.TemporaryDirectory() as folder:
    dataset = prepare(config, folder)
  batches = dataset.train(0)
  for _ in range(20):  # what was read ahead before anyone asked
    next(batches)
  alone = _median(lambda: next(batches), steps)

  compiled = programs(config)
  state = compiled.init(jnp.uint32(0))
  batch = jax.device_put(next(batches))

  def step() -> None:
    nonlocal state
    state, _ = compiled.train(state, batch)
    jax.block_until_ready(state)

  step()

  waits, each = [], []
  for _ in range(steps):
    begin = time.perf_counter()
    batch = next(batches)
    waits.append(time.perf_counter() - begin)
    batch = jax.device_put(batch)
    begin = time.perf_counter()
    step()
    each.append(time.perf_counter() - begin)
  # Means: one long wait counts, and batches may differ in shape.
  waited, fixed = (1000 * statistics.mean(times) for times in (waits, each))
  return (
    Path(path).stem,
    'x'.join(map(str, batch['inputs'].shape)),
    f'{alone:.2f}',
    f'{fixed:.1f}',
    f'{waited:.3f}',
    f'{waited / fixed:.2%}',
  )


def _median(function: Callable[[], object], times: int) -> float:
  """Milliseconds of a call."""
  found = []
  for _ in range(times):
    begin = time.perf_counter()
    function()
    found.append(time.perf_counter() - begin)
  return 1000 * statistics.median(found)


def main() -> None:
  """Prints the table, a row at a time."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('configs', nargs='+', metavar='CONFIG')
  parser.add_argument('--steps', type=int, default=50)
  args = parser.parse_args()
  print(f'| {" | ".join(HEAD)} |\n|{"---|" * len(HEAD)}')
  for path in args.configs:
    print(f'| {" | ".join(measured(path, args.steps))} |')
    sys.stdout.flush()


if __name__ == '__main__':
  main()
