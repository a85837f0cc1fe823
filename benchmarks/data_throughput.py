"""Does a training step ever wait for its data?

Of each config: how many rows a second the pipeline makes when nothing else
runs, how long steps take once they have theirs, and how long they wait for the
next one, in a run, where it is prepared beside them. The last is what counts;
it should be below 2 % of a step.

Command: python -m benchmarks.data_throughput [--steps=N] CONFIG... \
  [--config.FIELD=VALUE ...]
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from shared_tfm import config_file
from shared_tfm.tasks import prepare
from shared_tfm.train.programs import programs

HEAD = ('config', 'batch', 'rows/s alone', 'step', 'waits', 'of a step')
AHEAD = 20  # batches: more than are read before anyone asks


def measured(
  path: str, overrides: Sequence[str], steps: int
) -> tuple[str, ...]:
  """One row of the table: times in milliseconds, means over the steps."""
  config = config_file.load(path, overrides)
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
    f'{alone:,.0f}',
    f'{fixed:.1f}',
    f'{waited:.3f}',
    f'{waited / fixed:.2%}',
  )


def main() -> None:
  """Prints the table, a row at a time."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('configs', nargs='+', metavar='CONFIG')
  parser.add_argument('--steps', type=int, default=50)
  args, overrides = parser.parse_known_args()
  print(f'| {" | ".join(HEAD)} |\n|{"---|" * len(HEAD)}')
  for path in args.configs:
    print(f'| {" | ".join(measured(path, overrides, args.steps))} |')
    sys.stdout.flush()


if __name__ == '__main__':
  main()
