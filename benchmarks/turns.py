"""Contenders that take turns, so that other work on the machine meets all."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Run = Callable[[], Any]
Case = Callable[[], Iterator[tuple[str, Run]]]


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
