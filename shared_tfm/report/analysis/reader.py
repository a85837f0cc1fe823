"""A trained run as analyses see it: its batches, and what visits do to them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm import tasks
from shared_tfm.config import Config, sides
from shared_tfm.data import Dataset
from shared_tfm.data.pipeline import NOBODY, Batch
from shared_tfm.errors import need
from shared_tfm.model import build
from shared_tfm.model.backbone import Outputs
from shared_tfm.model.stack import WATCHED
from shared_tfm.model.visit import STREAMS
from shared_tfm.train.state import State

ENCODER = 'encoder'


class Seen(flax.struct.PyTreeNode):
  """One batch, and the residual streams of all visits.

  A side is 'encoder', or 'stack' for the decoder or the one stack there is. It
  is a list of stacks, in the order of visits: more than one where the first and
  the last layer are of another width.

  Attributes:
    batch: see tasks/task.py.
    outputs: of the whole network.
    live: of each side, which of its positions are somebody's, (B, L).
    into: of each side, the stream that enters every visit: for each stack
      (N, B, L, D).
    out: the stream that leaves it.
  """

  batch: Any
  outputs: Outputs
  live: dict[str, jax.Array]
  into: dict[str, list[jax.Array]]
  out: dict[str, list[jax.Array]]


class Reader:
  """Reads a split with a trained run, as it is evaluated: without dropout."""

  def __init__(
    self,
    workdir: Path,
    config: Config,
    state: State,
    dataset: Dataset,
    split: str,
    count: int,
  ):
    """Remembers what to read.

    Args:
      workdir: the run's folder.
      config: the run's.
      state: so too.
      dataset: so too.
      split: of the dataset.
      count: how many batches of it; 0 for all.

    Raises:
      BadInput: a negative number, or a split that there is not.
    """
    need(count >= 0, f'--batches must be at least 0 (all), got {count}')
    self.workdir, self.dataset = workdir, dataset
    self.split, self.count = split, count
    # What is measured is the loss itself, as in an evaluation.
    plain = dataclasses.replace(config.task, label_smoothing=0.0)
    self.config, self.trained = dataclasses.replace(config, task=plain), config
    self.model, self.task = build(self.config), tasks.make(self.config)
    self.state = state
    self.variables = {'params': state.params, **state.variables}
    found = next(self.batches(), None)
    need(found is not None, f'the {split} split has no examples')
    assert found is not None
    self.first = found

  def described(self) -> dict[str, Any]:
    """What is looked at."""
    return {
      'workdir': str(self.workdir),
      'step': int(self.state.step),
      'split': self.split,
      'examples': sum(map(self._rows, self.batches())),
    }

  @staticmethod
  def _rows(batch: Batch) -> int:
    return int(np.sum(_somebody(batch)))

  @property
  def labelled(self) -> bool:
    """Whether there is something to be told, and so a loss."""
    return bool(np.any(self.first['weights'] > 0))

  def batches(self) -> Iterator[Batch]:
    """Micro-batches, as training has them."""
    parts = self.config.train.accumulate
    for batch in self.dataset.evaluation(self.split, self.count):
      size = len(batch['inputs']) // parts
      for start in range(0, parts * size, size):
        part = {k: v[start : start + size] for k, v in batch.items()}
        if self._rows(part):
          yield part

  def seen(self) -> Iterator[Seen]:
    """Every micro-batch after a forward pass, one at a time."""
    for batch in self.batches():
      yield self._see(self.variables, jax.device_put(batch))

  def summed(self, function: Callable[[Any, Seen], Any]) -> Any:
    """The sum over all micro-batches of (variables, seen) -> a tree."""
    compiled, total = jax.jit(function), None
    for seen in self.seen():
      found = jax.device_get(compiled(self.variables, seen))
      found = jax.tree.map(lambda a: np.asarray(a, np.float64), found)
      total = found if total is None else jax.tree.map(np.add, total, found)
    return total

  @functools.cached_property
  def _see(self) -> Any:
    names = sides.stacks(self.config.model)

    def see(variables: Any, batch: Any) -> Seen:
      outputs, left = self.model.apply(
        variables,
        **tasks.arguments(batch),
        mutable=[WATCHED],
        method='outputs',
      )
      streams: dict[str, dict[str, list[Any]]] = {s: {} for s in STREAMS}
      for name in names:
        for stream in STREAMS:
          (found_NBLD,) = left[WATCHED][name][stream]
          streams[stream].setdefault(side_of(name), []).append(found_NBLD)
      live = {
        side: _live(batch, side, found[0].shape[2])
        for side, found in streams['out'].items()
      }
      return Seen(batch, outputs, live, **streams)

    return jax.jit(see)


def side_of(stack: str) -> str:
  """The side that a stack belongs to."""
  return ENCODER if stack.startswith(ENCODER) else 'stack'


def _somebody(batch: Any) -> Any:
  """Which rows are examples, and no filling: booleans (B,)."""
  if 'row' in batch:
    return batch['row'] != NOBODY
  weights = batch['weights']
  return (weights.reshape(len(weights), -1) > 0).any(axis=1)


def _live(batch: Any, side: str, length: int) -> jax.Array:
  mask = batch.get('source_mask' if side == ENCODER else 'mask')
  somebody_BL = jnp.broadcast_to(
    _somebody(batch)[:, None], (len(batch['inputs']), length)
  )
  return somebody_BL if mask is None else somebody_BL & mask
