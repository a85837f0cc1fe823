"""What a run shows while it goes on, and the signals that end it early."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from shared_tfm.train.step import Metrics


def due(step: int, every: int, last: int) -> bool:
  """Whether it is time: at every so many steps, and at the last; 0: never."""
  return every > 0 and (step % every == 0 or step == last)


def progress(steps: int) -> tqdm.tqdm:
  """A progress bar with time left; where nobody watches, a line in a while."""
  watched = sys.stderr.isatty()
  return tqdm.tqdm(
    total=steps,
    unit='step',
    dynamic_ncols=watched,
    mininterval=0.5 if watched else 20,
  )


class Meter:
  """Means of metrics since they were last read, and the speed of training.

  Attributes:
    tokens: how many have been trained on.
  """

  def __init__(self, tokens: int, unread: Sequence[dict[str, float]]):
    """Starts the clock.

    Args:
      tokens: how many were trained on before.
      unread: what `unread` said when a run was saved that now goes on.
    """
    self.tokens = self.read_at = tokens
    self.earlier = list(unread)
    self.pending: list[Metrics] = []
    self.clock = time.perf_counter()

  def add(self, metrics: Metrics, tokens: int) -> None:
    """Takes one step's metrics, without waiting for them, and its tokens."""
    self.pending.append(metrics)
    self.tokens += tokens

  def read(self) -> dict[str, float]:
    """Waits for what is pending; the mean of each metric, and tokens/s.

    'tokens' is how many there have been in all.
    """
    values = self.unread()
    now = time.perf_counter()
    speed = (self.tokens - self.read_at) / (now - self.clock)
    self.earlier, self.pending, self.clock = [], [], now
    self.read_at = self.tokens
    means = {k: float(np.mean([v[k] for v in values])) for k in values[0]}
    for latest in ('learning_rate', 'skipped'):
      means[latest] = values[-1][latest]
    return {**means, 'tokens': self.tokens, 'tokens_per_second': speed}

  def unread(self) -> list[dict[str, float]]:
    """Waits for what is pending; every step's metrics since the last read."""
    pending = jax.device_get(self.pending)
    return self.earlier + [
      {name: float(value) for name, value in metrics.items()}
      for metrics in pending
    ]

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Keeps what is done inside out of the speed."""
    jax.block_until_ready(self.pending)
    begin = time.perf_counter()
    yield
    self.clock += time.perf_counter() - begin


@contextlib.contextmanager
def interruption() -> Iterator[list[int]]:
  """Collects SIGTERM and Ctrl-C in a list; a second one is not held back."""
  caught: list[int] = []
  if threading.current_thread() is not threading.main_thread():
    yield caught  # only the main thread may ask for signals
    return
  before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

  def catch(number: int, _: Any) -> None:
    caught.append(number)
    for n, handler in before.items():
      signal.signal(n, handler)

  for number in before:
    signal.signal(number, catch)
  try:
    yield caught
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
