"""Contenders that take turns, so that other work on the machine meets all."""

import contextlib
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

Run = Callable[[], Any]
Case = Callable[[], Iterator[tuple[str, Run]]]
PATIENCE = 10.0  # seconds that a process has to end in
Makers = Callable[[], Mapping[str, Callable[[], Run]]]


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


def apart(case: Makers, rounds: int) -> dict[str, list[float]]:
  """The same of contenders that have a process each, as users run them.

  What shares a process shares its heap: a step's memory is back with the system
  by its next turn, and is asked for anew, page by page. That made steps in
  float32 a tenth to a fifth slower on a CPU, ours most of all.

  Args:
    case: makes nothing yet, but says what makes each contender; pickled.
    rounds: in which every contender has one turn.
  """
  spawn = multiprocessing.get_context('spawn')
  pipes, processes = dict[str, Connection](), []
  try:
    for name in case():
      here, there = spawn.Pipe()
      process = spawn.Process(target=_contender, args=(case, name, there))
      process.start()
      processes.append(process)
      there.close()  # for the other end to be the only one
      if failed := here.recv():
        print(f'{name}: {failed}'[:200], file=sys.stderr)
      else:
        pipes[name] = here
    taken: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(rounds):
      for name, pipe in pipes.items():
        pipe.send(True)
        taken[name].append(pipe.recv())
    return taken
  finally:
    for pipe in pipes.values():
      pipe.close()  # nobody will ask for a turn any more
    for process in processes:
      process.join(PATIENCE)
      process.kill()


def _contender(case: Makers, name: str, pipe: Connection) -> None:
  """One of them: says what failed, if anything, and then takes its turns."""
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
  ours = statistics.median(taken['ours'])
  for contender, seconds in taken.items():
    median = statistics.median(seconds)
    ratio = '' if contender == 'ours' else f'{median / ours:.2f}x'
    yield (
      f'| {name} | {contender} | {ratio} | {1000 * median:,.0f}'
      f' | {1000 * min(seconds):,.0f} to {1000 * max(seconds):,.0f} |'
    )
