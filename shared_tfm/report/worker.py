"""One process of a comparison that has several: `python -m` this, by pool.py.

It reads a job a line, JSON, and writes a line for each answer; in between, how
many steps it has made. Where nobody writes to it any more, it ends as by
SIGTERM: the run under way is saved.
"""

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from shared_tfm import config as configs
from shared_tfm import heap
from shared_tfm.errors import BadInput, Interrupted
from shared_tfm.report import trained
from shared_tfm.train import turns

EVERY = 0.5  # seconds between two lines of steps


class Bar:
  """What a run moves as its progress bar; it is told on, and not shown."""

  def __init__(self, out: TextIO):
    """Takes where lines go."""
    self.out, self.steps, self.told = out, 0, time.monotonic()

  def update(self, steps: int) -> None:
    """Counts steps, and tells of them once in a while."""
    self.steps += steps
    if time.monotonic() - self.told > EVERY:
      self.flush()

  def flush(self) -> None:
    """Tells of all steps that were counted."""
    if self.steps:
      tell(self.out, {'steps': self.steps})
    self.steps, self.told = 0, time.monotonic()

  def set_postfix_str(self, *_: Any, **__: Any) -> None:
    """Shows nothing."""

  def close(self) -> None:
    """Has nothing to close."""


def tell(out: TextIO, answer: dict[str, Any]) -> None:
  """Writes a line."""
  out.write(json.dumps(answer) + '\n')
  out.flush()


def work(lines: 'queue.Queue[str]', out: TextIO) -> None:
  """Answers jobs until one is empty."""
  data: dict[str, trained.Data] = {}
  while line := lines.get():
    job = json.loads(line)
    if 'time' in job:
      tell(out, {'done': turns.seconds([*map(configs.cross, job['time'])])})
      continue
    folder = Path(job['workdir'])
    if not data:
      data['all'] = trained.Data(configs.cross(job['like']), folder)
    config = configs.cross(job['config'])
    run = trained.Run(job['scheme'], job['seed'], config, Path(job['folder']))
    bar = Bar(out)
    measured = trained.finished(run, data['all'], bar)
    bar.flush()
    tell(out, {'done': measured})


def main() -> int:
  """Works, and says in one line why not; returns the exit status."""
  logging.basicConfig(format='%(message)s', level=logging.WARNING)
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  out = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # whatever else is printed is no answer
  heap.keep()
  lines: queue.Queue[str] = queue.Queue()

  def read() -> None:
    # Unbuffered, which holds no lock that the end of this process waits for.
    for line in os.fdopen(0, 'rb', buffering=0, closefd=False):
      lines.put(line.decode().strip())
      if not line.strip():
        return
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=read, daemon=True).start()
  try:
    work(lines, out)
  except BadInput as error:
    tell(out, {'wrong': str(error)})
    return 2
  except Interrupted as error:
    return 128 + error.signal
  except BrokenPipeError:
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
