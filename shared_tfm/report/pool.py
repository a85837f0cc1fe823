"""The runs of a comparison, one after the other or in several processes.

A process has one run at a time and, where there are GPUs, as many of these to
itself as the mesh takes. It stays with a row, whose programs it has, as long as
one of its seeds is left. Each run is what it would be alone, bit for bit.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tqdm

import shared_tfm
from shared_tfm.config import Config
from shared_tfm.errors import BadInput, Interrupted, need
from shared_tfm.report import trained
from shared_tfm.report.trained import Data, Run
from shared_tfm.train import turns
from shared_tfm.train.runs import RESULT
from shared_tfm.train.watch import interruption

CUDA = 'CUDA_VISIBLE_DEVICES'
GPUS = Path('/proc/driver/nvidia/gpus')
PLUGINS = 'jax_cuda12_plugin', 'jax_cuda13_plugin'
Job = Mapping[str, Any]


def finished(
  runs: Sequence[Run], data: Data, bar: tqdm.tqdm, processes: int
) -> Iterator[tuple[Run, dict[str, Any]]]:
  """Trains runs that are not done; each with its result, as they end.

  Args:
    runs: in the order in which they begin.
    data: that most of them share.
    bar: counts the steps of all.
    processes: how many runs are under way at a time; 1: all in this process.

  Raises:
    BadInput: a run cannot be trained; the others were saved.
    Interrupted: so too, by a signal.
  """
  if processes == 1:
    for number, run in enumerate(runs, 1):
      name = f'{number}/{len(runs)} {run.scheme} seed {run.seed}'
      bar.set_description(name, refresh=False)
      yield run, trained.finished(run, data, bar)
    return
  waiting = []
  for run in runs:
    if (run.folder / RESULT).exists():
      yield run, trained.finished(run, data, bar)
    else:
      waiting.append(run)
  jobs: list[Job] = [
    {
      'scheme': run.scheme,
      'seed': run.seed,
      'config': dataclasses.asdict(run.config),
      'folder': str(run.folder),
      'workdir': str(data.workdir),
      'like': dataclasses.asdict(data.config),
    }
    for run in waiting
  ]
  environs = environments(waiting, processes) if waiting else []
  for place, measured in _answers(jobs, environs, bar):
    yield waiting[place], measured


def seconds(configs: Sequence[Config], processes: int) -> list[float]:
  """The seconds of a step of each config, with nothing else under way.

  Of several processes, none of which this is, one measures, so that this one
  takes no device.
  """
  if processes == 1:
    return turns.seconds(configs)
  job = {'time': [*map(dataclasses.asdict, configs)]}
  bar = tqdm.tqdm(disable=True)
  runs = [Run('', 0, config, Path()) for config in configs]
  ((_, taken),) = _answers([job], environments(runs, 1), bar)
  return taken


def environments(runs: Sequence[Run], processes: int) -> list[dict[str, str]]:
  """The environment of each process: which GPUs it sees, where there are some.

  Raises:
    BadInput: there are fewer GPUs than the processes take.
  """
  root = str(Path(shared_tfm.__file__).parents[1])
  path = os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))
  own = {**os.environ, 'PYTHONPATH': path}
  sizes = [
    m.data * m.fsdp * m.tensor * m.sequence
    for m in (run.config.mesh for run in runs)
  ]
  need(
    processes == 1 or min(sizes) > 0,
    '--processes needs a mesh.data that says how many, got 0: all devices',
  )
  found, size = gpus(), max(sizes)
  need(
    not found or processes * size <= len(found),
    f'--processes={processes} with {size} GPUs each need {processes * size},'
    f' and here are {len(found)}',
  )
  if not found:
    return [own] * processes
  return [
    {**own, CUDA: ','.join(found[place * size : (place + 1) * size])}
    for place in range(processes)
  ]


def gpus() -> list[str]:
  """The GPUs that JAX would take here, without taking them."""
  if not any(map(importlib.util.find_spec, PLUGINS)):
    return []
  if os.environ.get('JAX_PLATFORMS', 'cuda').split(',')[0] not in (
    'cuda',
    'gpu',
    '',
  ):
    return []
  if CUDA in os.environ:
    return [name for name in os.environ[CUDA].split(',') if name.strip()]
  count = len([*GPUS.iterdir()]) if GPUS.is_dir() else 0
  return [str(number) for number in range(count)]


def _answers(
  jobs: Sequence[Job], environs: Sequence[Mapping[str, str]], bar: tqdm.tqdm
) -> Iterator[tuple[int, Any]]:
  """The answer to each job, with its place, in the order in which they end."""
  waiting = Waiting([job.get('scheme', '') for job in jobs])
  told: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
  environs = environs[: len(jobs)]
  workers = [_start(environ) for environ in environs]
  threads = [
    threading.Thread(target=_lead, args=(worker, jobs, waiting, told))
    for worker in workers
  ]
  left, running, wrong, ended = len(jobs), len(workers), '', False

  def end() -> None:
    """Begins no further job; those under way are saved.

    Only once: a process that is told twice does not save first.
    """
    nonlocal ended
    waiting.clear()
    for worker in () if ended else workers:
      worker.terminate()
    ended = True

  with interruption() as stop:
    for thread in threads:
      thread.start()
    try:
      while running:
        if stop:
          end()
        try:
          place, answer = told.get(timeout=0.2)
        except queue.Empty:
          continue
        if answer is None:
          running -= 1
        elif 'steps' in answer:
          bar.update(answer['steps'])
        elif 'wrong' in answer:
          wrong = wrong or answer['wrong']
          end()
        else:
          left -= 1
          yield place, answer['done']
    finally:  # also where whoever asks has enough
      if running:
        end()
      for thread in threads:
        thread.join()
  if wrong and not stop:
    raise BadInput(wrong)
  if left or stop:
    raise Interrupted(
      stop[0] if stop else signal.SIGTERM,
      f'with {left} runs to do; saved, and the same command continues',
    )


class Waiting:
  """What has not begun, one after the other, for several that take of it."""

  def __init__(self, schemes: Sequence[str]):
    """Takes the row of each."""
    self._left = dict(enumerate(schemes))
    self._held: dict[int, str] = {}  # the row that each taker has
    self._lock = threading.Lock()

  def take(self, taker: int) -> int | None:
    """The place of the next, which is of the taker's row if one is left;

    or else of a row that no other has, or else the first. None: all have begun.
    """
    with self._lock:
      own = self._held.pop(taker, None)
      others = {*self._held.values()}

      def rank(place: int) -> tuple[bool, bool]:
        return self._left[place] != own, self._left[place] in others

      place = min(self._left, key=rank, default=None)  # the first of the least
      if place is not None:
        self._held[taker] = self._left.pop(place)
      return place

  def clear(self) -> None:
    """Nothing is left."""
    with self._lock:
      self._left.clear()


def _start(environ: Mapping[str, str]) -> subprocess.Popen[str]:
  return subprocess.Popen(
    [sys.executable, '-m', 'shared_tfm.report.worker'],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env=environ,
    start_new_session=True,  # Ctrl-C is for the one that leads
  )


def _lead(
  worker: subprocess.Popen[str],
  jobs: Sequence[Job],
  waiting: Waiting,
  told: 'queue.SimpleQueue[tuple[int, Any]]',
) -> None:
  """Gives one process a job after the other, and passes on what it says."""
  assert worker.stdin and worker.stdout
  place, ended = 0, False
  try:
    while not ended and (begun := waiting.take(worker.pid)) is not None:
      place = begun
      worker.stdin.write(json.dumps(jobs[place]) + '\n')
      worker.stdin.flush()
      answer: dict[str, Any] = {}
      while 'done' not in answer and not ended:
        line = worker.stdout.readline()
        ended = not line
        if line:
          answer = json.loads(line)
          told.put((place, answer))
    if not ended:
      worker.stdin.write('\n')
      worker.stdin.flush()
  except BrokenPipeError:
    ended = True
  finally:
    with contextlib.suppress(BrokenPipeError):
      worker.stdin.close()
    status = worker.wait()
    worker.stdout.close()
    if ended and status not in (2, 128 + signal.SIGTERM, -signal.SIGTERM):
      what = f'the process of {jobs[place].get("scheme", "timing")}'
      told.put((place, {'wrong': f'{what} ended with status {status}'}))
    told.put((place, None))
