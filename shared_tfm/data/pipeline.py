"""The pipeline: from examples to batches, on Grain.

Everything is random access, from the examples to the batches. So the state of a
training iterator is the number of the next batch, and nothing else.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from shared_tfm.data.tokenizers import Tokenizer
from shared_tfm.errors import need

Batch = dict[str, np.ndarray]
Elements = Callable[[str, int], grain.MapDataset]

AHEAD = 8  # batches that are kept ready; one for each thread if that is more
VALIDATION_SEED = 0
NOBODY = -1  # the row of what fills up a last batch


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The batches of one run, and the tokenizer behind them.

  A batch is a dict of arrays with a leading axis B; 'weights' are 0 where
  nothing counts. See tasks/task.py for the names.

  Attributes:
    tokenizer: text to ids and back.
    elements: (split, seed) to the examples of that split, before any shuffle.
    batch_size: sequences in a batch, over all processes.
    process_index: which process this is, and so which share of a training batch
      it gets.
    process_count: how many processes there are.
    threads: how many make training batches, each a batch of its own.
  """

  tokenizer: Tokenizer
  elements: Elements
  batch_size: int
  process_index: int
  process_count: int
  threads: int = dataclasses.field(default=2, kw_only=True)

  @property
  def reading(self) -> grain.ReadOptions:
    """How training batches are made beside the steps."""
    return grain.ReadOptions(
      num_threads=self.threads, prefetch_buffer_size=max(AHEAD, self.threads)
    )

  def train(self, seed: int) -> grain.DatasetIterator:
    """This process's share of batches without end, shuffled in every epoch.

    Args:
      seed: of the shuffle, the masks and a generator's examples; 32 bits.

    Returns:
      An iterator whose state is one integer; `grain.checkpoint` saves it.

    Raises:
      BadInput: a seed of more bits.
    """
    need(seed < 2**32, f'train.seed must be below 2**32, got {seed}')
    elements = self.elements('train', seed)
    # Shared out after the shuffle: however many processes there are, the batch
    # of a step has the same examples. (The slice of all is one hop more from
    # the seed, and so part of what every order measured so far depends on.)
    batches = (
      elements[:]
      .shuffle()
      .repeat()[self.process_index :: self.process_count]
      .batch(self.batch_size // self.process_count, drop_remainder=True)
    )
    return iter(batches.to_iter_dataset(self.reading))

  def validation(self, batches: int) -> Iterator[Batch]:
    """Batches of the validation split; see `evaluation`."""
    return self.evaluation('validation', batches)

  def evaluation(self, split: str, batches: int) -> Iterator[Batch]:
    """Batches of a split, the same ones every time, whole in every process.

    Args:
      split: its name.
      batches: how many, where there are as many; 0 for the whole split.

    Yields:
      Batches. What is missing in the last one is rows of weight 0, which are
      nobody's.
    """
    elements = self.elements(split, VALIDATION_SEED)
    shuffled = elements.shuffle()
    blank = {k: np.zeros_like(v) for k, v in elements[0].items()}
    if 'row' in blank:
      blank['row'] = np.full_like(blank['row'], NOBODY)
    whole = math.ceil(len(elements) / self.batch_size)
    for batch in range(min(batches or whole, whole)):
      start = batch * self.batch_size
      rows = [
        shuffled[row] if row < len(elements) else blank
        for row in range(start, start + self.batch_size)
      ]
      yield {key: np.stack([row[key] for row in rows]) for key in blank}

  def examples(self, split: str) -> Sequence[Batch]:
    """Every example of a split, in its own order."""
    elements = self.elements(split, VALIDATION_SEED)
    return [elements[i] for i in range(len(elements))]
