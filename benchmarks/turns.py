"""Contenders that take turns, so that other work on the machine meets all."""

import contextlib
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

from shared_tfm import heap

Run = Callable[[], Any]
Case = Callable[[], Iterator[tuple[str, Run]]]
Contenders = Mapping[str, Callable[[], Run]]  # what makes each
OURS = 'ours'  # who a ratio is of
PATIENCE = 10.0  # seconds that a process has to end in


def measured(case: Case, rounds: int) -> dict[str, list[float]]:
  """Seconds of every contender in every round; none of them compiles any more.

  A contender that cannot run here is left out, and why is said.
  """
  ready = {}
  for name, run in case():
    try:
      for _ in range(2):
        run()
    except Exception as error:  # torch.compile needs a compiler of C++
      print(f'{name}: {type(error).__name__}: {error}'[:200], file=sys.stderr)
      continue
    ready[name] = run
  taken: dict[str, list[float]] = {name: [] for name in ready}
  for _ in range(rounds):
    for name, run in ready.items():
      begin = time.perf_counter()
      run()
      taken[name].append(time.perf_counter() - begin)
  return taken


def apart(
  case: Callable[[], Contenders], rounds: int
) -> dict[str, list[float]]:
  """The same of contenders that have a process each.

  In one, a step of ours on a CPU took a seventh longer beside PyTorch's than
  alone, by the system's time for its memory (benchmarks/NOTES.md).

  Args:
    case: makes nothing yet, but says what makes each contender; pickled.
    rounds: in which every contender has one turn.

  Raises:
    RuntimeError: the process of one ended in its turn.
  """
  spawn = multiprocessing.get_context('spawn')
  pipes, processes = dict[str, Connection](), []
  try:
    for name in case():
      here, there = spawn.Pipe()
      process = spawn.Process(target=_contender, args=(case, name, there))
      process.start()
      processes.append(process)
      there.close()  # for its own end to be the only one
      try:
        failed = here.recv()
      except EOFError:
        failed = 'its process ended'
      if failed:
        print(f'{name}: {failed}'[:200], file=sys.stderr)
      else:
        pipes[name] = here
    taken: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(rounds):
      for name, pipe in pipes.items():
        try:
          pipe.send(True)
          taken[name].append(pipe.recv())
        except (EOFError, BrokenPipeError) as error:
          raise RuntimeError(f'{name} ended in its turn') from error
    return taken
  finally:
    for pipe in pipes.values():
      pipe.close()  # nobody will ask for a turn any more
    for process in processes:
      process.join(PATIENCE)
      process.kill()


def _contender(
  case: Callable[[], Contenders], name: str, pipe: Connection
) -> None:
  """One of them: says what failed, if anything, and then takes its turns."""
  if name == OURS:
    heap.keep()  # as the command does
  try:
    run = case()[name]()
    for _ in range(2):
      run()
  except Exception as error:  # torch.compile needs a compiler of C++
    pipe.send(f'{type(error).__name__}: {error}')
    return
  pipe.send('')
  with contextlib.suppress(EOFError):
    while pipe.recv():
      begin = time.perf_counter()
      run()
      pipe.send(time.perf_counter() - begin)


def rows(name: str, taken: dict[str, list[float]]) -> Iterator[str]:
  """Lines of the table: the ratio, the medians, and how far they spread."""
  ours = statistics.median(taken[OURS])
  for contender, seconds in taken.items():
    median = statistics.median(seconds)
    ratio = '' if contender == OURS else f'{median / ours:.2f}x'
    yield (
      f'| {name} | {contender} | {ratio} | {1000 * median:,.0f}'
      f' | {1000 * min(seconds):,.0f} to {1000 * max(seconds):,.0f} |'
    )
