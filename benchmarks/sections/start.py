"""A run's first start and its second, which finds its programs compiled."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Plan, Row, compared
from shared_tfm.train import log

TOP = Path(__file__).parents[2]
COMMAND = (
  *(sys.executable, '-m', 'shared_tfm', 'train'),
  '--config=configs/quickstart.py',
  '--config.data.source=text',
  '--config.data.path=README.md',
  '--config.optimizer.warmup_steps=0',
  '--config.train.num_steps=1',
  '--config.train.log_every=1',
  '--config.train.eval_batches=1',
)
QUICK = '--config.model.d_model=16', '--config.model.num_layers=2'


def rows(plan: Plan) -> Iterator[Row]:
  """Seconds from the command to the first step in the log, second over first.

  `train` in a process of its own, the quickstart's model on a small text; the
  second start has a new folder, and JAX's persistent compilation cache from the
  first. Python's imports are in both.
  """
  taken: dict[str, list[float]] = {'first': [], 'second': []}
  for _ in range(plan.few):
    with tempfile.TemporaryDirectory() as folder:
      for name, seconds in taken.items():
        seconds.append(_started(Path(folder), name, QUICK * plan.quick))
  yield compared('to the first step', taken, 'second', 'first')


def _started(folder: Path, name: str, further: tuple[str, ...]) -> float:
  """Seconds until the first step was logged."""
  workdir = folder / name
  cache = {
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }
  begin = time.time()
  done = subprocess.run(
    [*COMMAND, *further, f'--workdir={workdir}'],
    cwd=TOP,
    env={**os.environ, **cache},
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(done.stderr.strip().split('\n')[-1])
  return next(
    line['time'] - begin
    for line in log.read(workdir)
    if line['kind'] == 'train'
  )
