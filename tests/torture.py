"""Kills a training run again and again, and counts the runs that are lost.

A run through the command line is killed by SIGKILL at a random moment and
continued by the same command, until it ends. Then its weights and its log must
be, bit for bit, those of a run that nobody disturbed. Runs follow each other
until enough kills were made. SIGTERM comes too, as when a machine is taken
away, and has to find the run saved in time; then every fault of `faults.py`.
Two such runs are under way at a time.

Command: python tests/torture.py --kills=50
"""

import argparse
import collections
import concurrent.futures
import contextlib
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import conftest  # noqa: F401 (what it sets comes before JAX)
import jax
import numpy as np

from shared_tfm.train import log, loop

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 600
EVERY = 40  # a checkpoint
LANES = 2  # of runs at the same time
KINDS = ('in a save', 'while it trains', 'at any time')
GRACE = 10.0  # seconds that a process has to save and end after SIGTERM
WORDS = 'a bank of weights is picked by row and every layer reads its own row'


def fields(folder, **train):
  """A tiny model with everything random that a run can have, as fields."""
  path = folder / 'text.txt'
  if not path.exists():
    words = random.Random(0).choices(WORDS.split(), k=1500)
    path.write_text(' '.join(words))
  return {
    'model': {
      'num_layers': 2,
      'd_model': 16,
      'num_heads': 2,
      'max_len': 16,
      'dropout': 0.2,
      'sharing': {'attention': 'all'},
    },
    'train': {
      'num_steps': STEPS,
      'batch_size': 4,
      'eval_every': 4 * EVERY,
      'eval_batches': 2,
      'checkpoint_every': EVERY,
      'log_every': 4,
      'keep': 1,
      **train,
    },
    'optimizer': {'warmup_steps': 3},
    'data': {'source': 'text', 'path': str(path)},
  }


def arguments(folder, workdir, **train):
  """The command line's words, and the file they need."""
  path = folder / 'config.py'
  made = fields(folder, **train)
  path.write_text(f'def get_config():\n  return {made!r}\n')
  return ['train', f'--config={path}', f'--workdir={workdir}']


def start(folder, workdir, **train):
  """A process that trains; conftest has programs kept for the next one."""
  command = [sys.executable, '-m', 'shared_tfm']
  return subprocess.Popen(
    command + arguments(folder, workdir, **train),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def uninterrupted(folder):
  """The run that all others must equal: its folder, and its steps' seconds."""
  workdir = folder / 'uninterrupted'
  process = start(folder, workdir)
  _, said = process.communicate()
  assert process.returncode == 0, said
  times = [line['time'] for line in log.read(workdir)]
  return workdir, times[-1] - times[0]


def steps(workdir):
  """The checkpoints that are complete, in order."""
  names = [path.name for path in workdir.glob('checkpoints/*')]
  return sorted(int(name) for name in names if name.isdigit())


def saves(workdir):
  """Those under way, or cut when a process ended."""
  found = set()
  for path in workdir.glob('checkpoints/*.orbax-checkpoint-tmp'):
    with contextlib.suppress(FileNotFoundError):  # it has just been completed
      found.add((path.name, path.stat().st_ino))
  return found


def pruning(workdir):
  """Whether a checkpoint is being deleted."""
  return (workdir / 'checkpoints' / '.pruned').exists()


def written(workdir):
  """How much of a log there is."""
  path = workdir / log.METRICS
  return path.stat().st_size if path.exists() else 0


def wait(process, done, seconds=60.0):
  """Waits until something is so, the process ends, or time is up."""
  end = time.monotonic() + seconds
  while process.poll() is None and time.monotonic() < end and not done():
    time.sleep(0.0005)


class Moments:
  """Random moments of a run, and what they turned out to be.

  Attributes:
    startup: seconds from a process's start to its first steps.
  """

  def __init__(self, training, seed):
    """Takes the seconds that all steps last, and the seed."""
    self.training, self.draw = training, random.Random(seed)
    self.startup = 5.0  # until it is measured

  def wait_for(self, process, workdir, kind):
    """Waits for a moment of one of `KINDS` in what has just been started."""
    self.newest, self.saves = max(steps(workdir), default=0), saves(workdir)
    if kind == 'at any time':
      seconds = self.draw.uniform(0, self.startup + self.training)
      return wait(process, lambda: False, seconds)
    size, begin = written(workdir), time.monotonic()
    wait(process, lambda: steps(workdir) and written(workdir) > size)
    self.startup = time.monotonic() - begin
    wait(process, lambda: False, self.draw.uniform(0, self.training / 2))
    if kind == 'in a save':
      wait(process, lambda: saves(workdir))
      seconds = self.draw.choice((0, 0, 0.001, 0.003, 0.01))
      wait(process, lambda: False, seconds)

  def was(self, workdir):
    """What the moment was, by what the process left."""
    saved = max(steps(workdir), default=0)
    if saves(workdir) - self.saves:
      return 'inside a save'
    if pruning(workdir):
      return 'while a checkpoint was pruned'
    if saved == STEPS:
      return 'after the last step'
    return 'between saves' if saved > self.newest else 'before its first save'


def timeless(workdir):
  """The log without what depends on the machine."""
  clocks = {'time', 'tokens_per_second'}
  return [
    {name: value for name, value in line.items() if name not in clocks}
    for line in log.read(workdir)
  ]


def same(workdir, expected, damaged=0):
  """What a run and the uninterrupted one differ in; '' if in nothing.

  Args:
    workdir: the run's folder.
    expected: the other's.
    damaged: how many of the run's checkpoints should be set aside.
  """
  if timeless(workdir) != timeless(expected):
    return 'metrics.jsonl'
  results = [
    json.loads((folder / 'result.json').read_text())
    for folder in (workdir, expected)
  ]
  for result in results:
    result.pop('tokens_per_second')
  if results[0] != results[1]:
    return 'result.json'
  if len(list(workdir.glob('damaged/*'))) != damaged:
    return 'damaged checkpoints'
  states = [loop.load(run, 'latest')[1] for run in (workdir, expected)]
  leaves = [jax.tree_util.tree_leaves_with_path(state) for state in states]
  for (path, left), (_, right) in zip(*leaves, strict=True):
    if np.asarray(left).tobytes() != np.asarray(right).tobytes():
      return jax.tree_util.keystr(path)
  return ''


class Figures:
  """What was done, and what came of it.

  Attributes:
    moments: how many kills fell where.
    saved: seconds that each process took to save and end, after SIGTERM.
    runs: how many were killed and continued until they ended.
    lost: what those that did not end alike differ in, or died of.
  """

  def __init__(self):
    self.moments = collections.Counter()
    self.saved, self.runs, self.lost = [], 0, []

  def add(self, other):
    """Counts what another lane has counted."""
    self.moments += other.moments
    self.saved += other.saved
    self.lost += other.lost
    self.runs += other.runs

  def rows(self):
    """The table's rows: a text and a number."""
    order = sorted(self.moments, key=self.moments.get, reverse=True)
    slowest = f'{max(self.saved, default=0):.1f} s'
    return [
      ('SIGKILLs', sum(self.moments.values())),
      *((f'… {moment}', self.moments[moment]) for moment in order),
      ('SIGTERMs', len(self.saved)),
      ('… the slowest was saved, and ended with 143, in', slowest),
      ('runs that they were made in', self.runs),
      ('runs lost', len(self.lost)),
    ]


def torture(folder, kills, terms, seed=0, shown=lambda text: None):
  """Sends `kills` SIGKILLs and `terms` SIGTERMs, in as many runs as it takes.

  Args:
    folder: an empty one, or none yet, for all of it.
    kills: how many.
    terms: how many.
    seed: of their moments.
    shown: is told of every one.

  Returns:
    The figures.
  """
  folder.mkdir(exist_ok=True)
  expected, training = uninterrupted(folder)
  moments, figures = Moments(training, seed), Figures()
  numbers = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
  sent = 0
  while sent < len(numbers):
    workdir, going = folder / f'run_{figures.runs}', True
    while going:
      process = start(folder, workdir)
      if sent < len(numbers):
        number = numbers[sent]
        kinds = KINDS if number == signal.SIGKILL else KINDS[:2]
        moments.wait_for(process, workdir, kinds[sent % len(kinds)])
        process.send_signal(number)
      begin = time.monotonic()
      _, said = process.communicate()
      took, was = time.monotonic() - begin, 'ended'
      ended_by = -process.returncode if process.returncode < 0 else 0
      going = ended_by == signal.SIGKILL or process.returncode == 143
      # When all is saved nothing holds SIGTERM back; a shell says 143, too.
      over = ended_by == signal.SIGTERM and STEPS in steps(workdir)
      if going or over:
        sent, was, going = sent + 1, moments.was(workdir), True
      if ended_by == signal.SIGKILL:
        figures.moments[was] += 1
      elif (over or process.returncode == 143) and took < GRACE:
        figures.saved.append(took)
      elif process.returncode:
        figures.lost.append(f'{process.returncode} in {took:.1f} s: {said}')
      elif wrong := same(workdir, expected):
        figures.lost.append(f'{workdir}: {wrong}')
      shown(f'{sent}/{len(numbers)} {was}; saved: {steps(workdir)}')
    figures.runs += 1
  return figures


def in_lanes(folder, kills, terms, seed, shown):
  """The same, two at a time: what one does comes in the way of the other."""
  figures = Figures()
  with concurrent.futures.ThreadPoolExecutor(LANES) as pool:
    lanes = [
      pool.submit(
        torture,
        folder / f'lane_{i}',
        (kills + i) // LANES,
        (terms + i) // LANES,
        LANES * seed + i,
        lambda text, i=i: shown(f'lane {i}: {text}'),
      )
      for i in range(LANES)
    ]
    for lane in lanes:
      figures.add(lane.result())
  return figures


def table(rows):
  """Rows of a text and a number, in Markdown."""
  wide = max(len(text) for text, _ in rows)
  lines = [f'| {text:<{wide}} | {number:>6} |' for text, number in rows]
  return '\n'.join([lines[0], f'|:{"-" * wide}-|-------:|', *lines[1:]])


def _show(text):
  print(text, flush=True)


def main():
  """Prints what happens, and a table of it; 1 if a run was lost."""
  import faults  # which imports this file

  flags = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  flags.add_argument('--kills', type=int, default=50)
  flags.add_argument('--terms', type=int, default=6)
  flags.add_argument('--seed', type=int, default=0)
  given = flags.parse_args()
  begin = time.monotonic()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    figures = in_lanes(folder, given.kills, given.terms, given.seed, _show)
    rows = figures.rows()
    made, left_out, wrong = faults.all_of_them(folder / 'faults', _show)
  rows += [('faults injected', made), ('faults that cost a run', len(wrong))]
  rows += [('faults this machine cannot make', left_out)]
  rows += [('seconds', round(time.monotonic() - begin))]
  print(table(rows))
  for line in figures.lost + wrong:
    print(line, file=sys.stderr)
  return 1 if figures.lost or wrong else 0


if __name__ == '__main__':
  sys.exit(main())
