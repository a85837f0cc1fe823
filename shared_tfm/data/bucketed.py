"""Batches of examples of one shape each, where examples have a few shapes.

Texts of a like length come together, so that little of a batch is padding.
Batch i is a pure function of the seed and i, as elsewhere in the pipeline.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from shared_tfm.data.pipeline import (
  NOBODY,
  VALIDATION_SEED,
  Batch,
  Dataset,
)
from shared_tfm.errors import need

ENDLESS = 2**31  # batches


@dataclasses.dataclass(frozen=True)
class Bucketed(Dataset):
  """Batches of one kind each; the kinds differ in shape.

  Attributes:
    kinds: (split) to the kind of every example, (examples,), from 0.
    rows: how many examples a batch of each kind has, over all processes;
      `batch_size` plays no part.
  """

  kinds: Callable[[str], np.ndarray]
  rows: tuple[int, ...]

  def __post_init__(self) -> None:
    """Checks that the processes can share every batch."""
    for rows in self.rows:
      need(
        rows % self.process_count == 0,
        f'batches of {rows} sequences cannot be shared by'
        f' {self.process_count} processes',
      )

  def train(self, seed: int) -> grain.DatasetIterator:
    """Training batches without end; see `Dataset.train`.

    In every epoch the examples of each kind are shuffled and cut into batches,
    and the batches are shuffled. Every example comes once; what a kind's last
    batch lacks are examples that come twice.
    """
    need(seed < 2**32, f'train.seed must be below 2**32, got {seed}')
    batches = _Batches(self, self.elements('train', seed), seed)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(self.reading))

  def evaluation(self, split: str, batches: int) -> Iterator[Batch]:
    """Batches of a split, the same every time; see `Dataset.evaluation`."""
    elements = self.elements(split, VALIDATION_SEED)
    plan = self.planned(split, VALIDATION_SEED, repeat=False)
    for chosen in plan[: batches or None]:
      yield self.batch(elements, chosen)

  def planned(
    self, split: str, seed: int | tuple[int, ...], repeat: bool
  ) -> list[np.ndarray]:
    """An epoch's batches, as the examples that each has.

    Args:
      split: of the data.
      seed: of the order.
      repeat: what a kind's last batch lacks is filled up with further examples
        of the kind; else with nobody, -1.
    """
    random, kinds = np.random.default_rng(seed), self.kinds(split)
    plan: list[np.ndarray] = []
    for kind, rows in enumerate(self.rows):
      members = random.permutation(np.flatnonzero(kinds == kind))
      shape = (math.ceil(len(members) / rows), rows)
      if not repeat:
        lacking = math.prod(shape) - len(members)
        members = np.append(members, np.full(lacking, NOBODY))
      plan.extend(np.resize(members, shape))
    return [plan[i] for i in random.permutation(len(plan))]

  def batch(self, elements: Sequence[Batch], chosen: np.ndarray) -> Batch:
    """A batch of the chosen examples."""
    rows = [elements[i] for i in chosen if i != NOBODY]
    blank = {k: np.zeros_like(v) for k, v in rows[0].items()}
    if 'row' in blank:
      blank['row'] = np.full_like(blank['row'], NOBODY)
    rows += [blank] * (len(chosen) - len(rows))
    return {key: np.stack([row[key] for row in rows]) for key in blank}


class _Batches:
  """Training batches by number: a source of random access."""

  def __init__(self, dataset: Bucketed, elements: Sequence[Batch], seed: int):
    self.dataset, self.elements, self.seed = dataset, elements, seed
    self.epoch = functools.lru_cache(maxsize=2)(self._epoch)
    self.size = len(self.epoch(0))

  def _epoch(self, number: int) -> list[np.ndarray]:
    return self.dataset.planned('train', (self.seed, number), repeat=True)

  def __len__(self) -> int:
    return ENDLESS

  def __getitem__(self, index: int) -> Batch:
    epoch, place = divmod(int(index), self.size)
    chosen, data = self.epoch(epoch)[place], self.dataset
    mine = chosen[data.process_index :: data.process_count]
    return data.batch(self.elements, mine)
