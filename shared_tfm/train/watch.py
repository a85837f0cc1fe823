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

from shared_tfm.train import hosts
from shared_tfm.train.gradient import Metrics

LATEST = {
  'learning_rate',
  'loss_scale',
  'skipped',
  'sparsity',
}  # no means are logged


def due(step: int, every: int, last: int) -> bool:
  """Whether it is time: at every so many steps, and at the last; 0: never."""
  return every > 0 and (step % every == 0 or step == last)


def progress(steps: int) -> tqdm.tqdm:
  """A progress bar with time left; where nobody watches, a line in a while."""
  watched = sys.stderr.isatty()
  return tqdm.tqdm(
    total=steps,
    unit='step',
    disable=not hosts.is_first(),
    dynamic_ncols=watched,
    mininterval=0.5 if watched else 20,
  )


class Meter:
  """Means of metrics since they were last read, and the speed of training.

  Attributes:
    tokens: how many have been trained on, but for what is pending.
    streak: micro-batches dropped in a row, up to and in the last step read.
    longest: the longest streak of all that were read.
  """

  def __init__(self, tokens: int, unread: Sequence[dict[str, float]]):
    """Starts the clock.

    Args:
      tokens: how many were trained on before.
      unread: what `unread` said when a run was saved that now goes on.
    """
    self.tokens = self.read_at = tokens
    self.waiting = list(unread)
    self.streak = self.longest = 0
    self.pending: list[Metrics] = []
    self.clock = time.perf_counter()

  def add(self, metrics: Metrics) -> None:
    """Takes one step's metrics, as `train_step` has them, without waiting."""
    self.pending.append(metrics)

  def read(self) -> dict[str, float]:
    """Waits for what is pending; the mean of each metric, and tokens/s.

    'tokens' is how many there have been in all.
    """
    values = self.unread()
    now = time.perf_counter()
    speed = (self.tokens - self.read_at) / (now - self.clock)
    self.waiting, self.clock = [], now
    self.read_at = self.tokens
    means = {k: float(np.mean([v[k] for v in values])) for k in values[0]}
    for latest in LATEST & means.keys():
      means[latest] = values[-1][latest]
    return {**means, 'tokens': self.tokens, 'tokens_per_second': speed}

  def unread(self) -> list[dict[str, float]]:
    """Waits for what is pending; every step's metrics since the last read."""
    for metrics in jax.device_get(self.pending):
      self.tokens += int(metrics.pop('tokens'))
      self.streak = int(metrics.pop('streak'))
      self.longest = max(self.longest, self.streak)
      self.waiting.append({k: float(value) for k, value in metrics.items()})
    self.pending = []
    return self.waiting

  def total(self) -> int:
    """Waits for what is pending; how many tokens have been trained on."""
    self.unread()
    return self.tokens

  def diverged(self, most: int) -> bool:
    """Whether, of what was read, so many in a row were dropped; 0: never."""
    return 0 < most <= self.longest

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
  if hosts.several():  # JAX passes SIGTERM on to all, and nothing else
    yield caught
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
