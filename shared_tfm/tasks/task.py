"""What a task is: its data, what it costs to be wrong, and how it is scored.

`train`, `evaluate` and `compare` know tasks by this interface alone. A batch is
a dict of arrays whose leading axis is B; what the model reads of it, and how
much each target counts, have names that are the same for all tasks:

    inputs              tokens (B, L), or images (B, Y, X, C)
    mask, types         False at padding; segment types; both (B, L)
    source, source_mask what an encoder-decoder's encoder reads, (B, S)
    targets, weights    what should come out, and how much that counts
    row                 (B,) which example of its split this is; -1: none
"""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.config import Config
from shared_tfm.data import Dataset, tokenizers
from shared_tfm.data.pipeline import NOBODY
from shared_tfm.data.pipeline import Batch as HostBatch
from shared_tfm.data.tokenizers import Tokenizer
from shared_tfm.model import Transformer, build

Batch = dict[str, jax.Array]
Shapes = dict[str, jax.ShapeDtypeStruct]
Sums = dict[str, jax.Array]
Scores = dict[str, Any]  # numbers, and words that belong to them

# The arguments of `Transformer.outputs`, by their names in a batch.
ARGUMENTS = {
  'inputs': 'tokens_BL',
  'mask': 'mask_BL',
  'types': 'types_BL',
  'source': 'source_BS',
  'source_mask': 'source_mask_BS',
}


def arguments(batch: Mapping[str, Any]) -> dict[str, Any]:
  """What the model reads of a batch, by the names of its arguments."""
  return {
    argument: batch[name]
    for name, argument in ARGUMENTS.items()
    if name in batch
  }


class Prediction(dict[str, np.ndarray]):
  """What a model said of one example: arrays by name, and its 'row'."""


def predicted(
  said: Mapping[str, np.ndarray], row_B: np.ndarray
) -> list[Prediction]:
  """What was said of each row of a batch, but for those that are nobody's."""
  return [
    Prediction(row=row, **{name: values[i] for name, values in said.items()})
    for i, row in enumerate(row_B)
    if row != NOBODY
  ]


class Task(abc.ABC):
  """One task of one config.

  Attributes:
    reported: the scores that a comparison shows; see report/columns.py.
    predicts: whether `score` can write down what was said of each example.
  """

  reported: tuple[str, ...] = ('accuracy',)
  predicts = False

  def __init__(self, config: Config):
    """Remembers the config.

    Args:
      config: as `config.cross` returns it.
    """
    self.config = config

  @abc.abstractmethod
  def dataset(self, folder: Path, index: int, count: int) -> Dataset:
    """The examples; see `tasks.prepare`."""

  @abc.abstractmethod
  def batches(self) -> Sequence[Shapes]:
    """The shapes of every kind of batch; the step is compiled for each."""

  @abc.abstractmethod
  def losses(
    self, model: Transformer, hidden_BLD: jax.Array, batch: Batch
  ) -> tuple[jax.Array, Sums]:
    """What training makes smaller.

    Args:
      model: bound, to score with.
      hidden_BLD: its last residual stream, normalised.
      batch: see above.

    Returns:
      The losses of the targets, in the shape of the weights, which are already
      applied; and further terms by name, means that weigh as much as the mean
      of these.
    """

  @abc.abstractmethod
  def observe(self, model: Transformer, batch: Batch) -> tuple[Sums, Sums]:
    """Runs a bound model on a batch.

    Returns:
      Sums over the batch, 'loss' and 'weight' among them; and what it said of
      each row, with a leading axis B.
    """

  @abc.abstractmethod
  def metrics(
    self,
    totals: Mapping[str, float],
    predictions: Sequence[Prediction],
    dataset: Dataset,
    split: str,
  ) -> dict[str, float]:
    """Scores by name, 'loss' among them.

    Args:
      totals: the sums of `observe` and `count` over all batches.
      predictions: what `observe` said, where examples have rows.
      dataset: where they are from.
      split: of it.
    """

  def tokens(self, batch: Batch) -> jax.Array:
    """How many tokens a batch has, or patches; padding does not count.

    Of an encoder-decoder those of the target, as accounting counts them.
    """
    if 'mask' in batch:
      return jnp.sum(batch['mask'], dtype=jnp.int32)
    if self.config.model.family == 'vision':
      return jnp.int32(len(batch['inputs']) * self.config.model.max_len)
    return jnp.int32(batch['inputs'].size)

  def count(self, batch: HostBatch, dataset: Dataset) -> dict[str, float]:
    """Sums over a batch that need no model."""
    return {}

  def baseline(self, dataset: Dataset) -> dict[str, float]:
    """What a model that has learned nothing worth the name would reach."""
    return {}

  def score(
    self,
    variables: Any,
    dataset: Dataset,
    split: str,
    folder: Path | None = None,
  ) -> Scores:
    """Scores that need more than one pass over each batch, such as decoding.

    They are taken once, when a run ends, and by `evaluate`.

    Args:
      variables: the model's, 'params' among them.
      dataset: where examples are from.
      split: of it.
      folder: where what was said of each example is written to, if anywhere.
    """
    return {}

  def said(
    self, variables: Any, dataset: Dataset, split: str
  ) -> list[Prediction]:
    """What `observe` says of every row of a split, in no order."""
    model = build(self.config)

    @jax.jit
    def observed(variables: Any, batch: Batch) -> Any:
      return model.apply(variables, batch, method=self.observe)[1]

    found = []
    for batch in self.evaluation(dataset, split):
      said = jax.device_get(observed(variables, jax.device_put(batch)))
      found += predicted(said, batch['row'])
    return found

  def evaluation(self, dataset: Dataset, split: str) -> Iterator[HostBatch]:
    """All rows of a split, in micro-batches as training has them."""
    count = self.config.train.accumulate
    for batch in dataset.evaluation(split, 0):
      size = len(batch['row']) // count
      for start in range(0, count * size, size):
        part = {k: v[start : start + size] for k, v in batch.items()}
        if (part['row'] != NOBODY).any():
          yield part

  def tokenizer(self, texts: Iterable[str], folder: Path) -> Tokenizer:
    """The run's tokenizer, which is made of these texts if there is none.

    That of the run whose weights it starts from is taken over.

    Args:
      texts: to learn from.
      folder: the run's, which keeps it.

    Raises:
      BadInput: it does not fit the model, or is another than that run's.
    """
    data, donor = self.config.data, self.config.train.init_from
    if donor:
      tokenizers.take_over(Path(donor), folder)
    return tokenizers.make(
      data.tokenizer, texts, self.config.model.vocab_size, folder
    )

  def prompt(self, text: str, tokenizer: Tokenizer) -> np.ndarray:
    """The ids that a model reads of a text, for it to write another."""
    return tokenizer.encode(text)
