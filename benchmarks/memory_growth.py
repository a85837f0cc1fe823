"""Does the memory of a training process grow?

A tiny model is trained for 5,000 steps, with logs, evaluations and checkpoints
as often as a run can want them, and the memory that the process holds is read
from the system on the way. The first tenth of the steps fills caches; after it
there should be next to no growth. Orbax keeps about 0.1 MiB of every save.

Command: python -m benchmarks.memory_growth [--steps=N]
"""

import argparse
import io
import random
import sys
import tempfile
from pathlib import Path

import tqdm

from shared_tfm import config, heap
from shared_tfm.train import loop

LOOKS = 10  # rows of the table
ALLOWED = 0.05  # growth after the first tenth, of what there is then


def resident() -> float:
  """MiB of memory that the process holds, as Linux counts it."""
  for line in Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmRSS:'):
      return int(line.split()[1]) / 1024  # it is in KiB
  raise OSError('/proc/self/status has no VmRSS')


class Looks(tqdm.tqdm):
  """A progress bar that looks at the memory now and then."""

  def __init__(self, steps: int):
    """Shows nothing itself."""
    super().__init__(file=io.StringIO())
    self.every, self.seen = max(1, steps // LOOKS), list[tuple[int, float]]()

  def update(self, n: float | None = 1) -> bool | None:
    """Counts a step."""
    shown = super().update(n)
    if self.n and self.n % self.every == 0:
      self.seen.append((int(self.n), resident()))
      print(f'| {self.n:>6} | {self.seen[-1][1]:>8.1f} |', flush=True)
    return shown


def measured(steps: int) -> list[tuple[int, float]]:
  """Trains, and returns how much memory there was after which step."""
  with tempfile.TemporaryDirectory() as name:
    text = Path(name) / 'text.txt'
    letters = random.Random(0).choices('a bank of weights', k=20_000)
    text.write_text(''.join(letters))
    made = config.cross(
      {
        'model': {
          'num_layers': 2,
          'd_model': 16,
          'num_heads': 2,
          'max_len': 16,
          'dropout': 0.1,
        },
        'train': {
          'num_steps': steps,
          'batch_size': 4,
          'log_every': 5,
          'eval_every': 50,
          'eval_batches': 2,
          'checkpoint_every': 50,
        },
        'data': {'source': 'text', 'path': str(text)},
      }
    )
    looks = Looks(steps)
    loop.train(made, Path(name) / 'run', bar=looks)
  return looks.seen


def main() -> int:
  """Prints the table; 1 if the process has grown."""
  flags = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  flags.add_argument('--steps', type=int, default=5000)
  steps = flags.parse_args().steps
  heap.keep()  # as the command does
  print('|   step |      MiB |\n|-------:|---------:|')
  seen = measured(steps)
  first, last = seen[0][1], seen[-1][1]
  share = last / first - 1
  print(
    f'after the first tenth it grew by {share:.1%}; {ALLOWED:.0%} is allowed'
  )
  return int(share > ALLOWED)


if __name__ == '__main__':
  sys.exit(main())
