"""Texts whose class, or a number, is to be told: GLUE, TREC and others."""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm import files
from shared_tfm.config import Config
from shared_tfm.data import Dataset, labelled_examples
from shared_tfm.data.sources import glue, labelled
from shared_tfm.errors import need
from shared_tfm.layers.cross_entropy import cross_entropy
from shared_tfm.model import Transformer
from shared_tfm.tasks.task import (
  Batch,
  Prediction,
  Scores,
  Shapes,
  Sums,
  Task,
  arguments,
)

# What GLUE scores its tasks by (1804.07461, table 1), where that is not
# accuracy alone.
SCORES = {
  'cola': ('matthews', 'accuracy'),
  'mrpc': ('accuracy', 'f1'),
  'qqp': ('accuracy', 'f1'),
}
OF_NUMBERS = ('pearson', 'spearman')

logger = logging.getLogger(__name__)


class Classification(Task):
  """Tells a class by cross-entropy, or one number by its squared error."""

  predicts = True

  def __init__(self, config: Config):
    """See `Task`."""
    super().__init__(config)
    self.number = config.model.num_classes == 1
    scores = SCORES.get(self._set, ('accuracy',))
    self.reported = OF_NUMBERS if self.number else scores

  def batches(self) -> Sequence[Shapes]:
    """One kind; targets, weights and rows are (B,)."""
    rows, length = self.config.train.batch_size, self.config.data.seq_len
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    each = jax.ShapeDtypeStruct((rows,), jnp.int32)
    typed = {'types': ids} if self._typed else {}
    return [
      {
        'inputs': ids,
        'mask': jax.ShapeDtypeStruct(ids.shape, jnp.bool_),
        **typed,
        'targets': each.update(dtype=jnp.float32) if self.number else each,
        'weights': each.update(dtype=jnp.float32),
        'row': each,
      }
    ]

  @property
  def _typed(self) -> bool:
    return self.config.model.type_vocab_size > 0

  def dataset(self, folder: Path, index: int, count: int) -> Dataset:
    """Items with their labels."""
    data, model = self.config.data, self.config.model
    need(
      not (self.number and self.config.task.label_smoothing),
      'a number that is told (model.num_classes 1) has no task.label_smoothing,'
      f' got {self.config.task.label_smoothing}',
    )
    held = labelled.open_set(data, model.num_classes)
    train = held.read('train')
    pairs = len(train[0].texts) > 1
    need(
      not pairs or model.type_vocab_size != 1,
      'model.type_vocab_size must be 0 or at least 2 for pairs of texts, got 1',
    )
    need(
      data.seq_len >= 4 + 2 * pairs,
      f'data.seq_len {data.seq_len} leaves no room for the texts of'
      f' {data.source}',
    )
    need(
      len(train) >= self.config.train.batch_size,
      f'train.batch_size must be at most the {len(train)} items of'
      f' {data.source}, got {self.config.train.batch_size}',
    )
    tokenizer = self.tokenizer(labelled.Documents(train), folder)

    @functools.cache
    def examples(split: str) -> labelled_examples.Examples:
      items = train if split == 'train' else held.read(split)
      return labelled_examples.Examples(
        labelled_examples.encoded(items, tokenizer, held.streams),
        data.seq_len,
        tokenizer.eos,
        self._typed,
        self.number,
      )

    if not held.streams and (cut := examples('train').cut):
      logger.warning(
        '%d of %d items to train on are cut to data.seq_len %d tokens',
        cut,
        len(train),
        data.seq_len,
      )

    def elements(split: str, seed: int) -> grain.MapDataset:
      return grain.MapDataset.source(examples(split)).seed(seed)

    return Dataset(
      tokenizer, elements, self.config.train.batch_size, index, count
    )

  def losses(
    self, model: Transformer, hidden_BLD: jax.Array, batch: Batch
  ) -> tuple[jax.Array, Sums]:
    """Of each item, with smoothed labels where the config says so."""
    scores_BC = model.classes(hidden_BLD, batch['mask'])
    smoothing = self.config.task.label_smoothing
    losses_B = self._losses(scores_BC, batch['targets'], smoothing)
    return losses_B * batch['weights'], {}

  def _losses(
    self, scores_BC: jax.Array, targets_B: jax.Array, smoothing: float = 0.0
  ) -> jax.Array:
    if self.number:
      return jnp.square(scores_BC[:, 0] - targets_B)
    return cross_entropy(scores_BC, targets_B, smoothing)

  def observe(self, model: Transformer, batch: Batch) -> tuple[Sums, Sums]:
    """Sums 'loss' and 'weight'; each row's scores, target and weight."""
    scores_BC = model(**arguments(batch))
    losses_B = self._losses(scores_BC, batch['targets'])
    sums = {
      'loss': jnp.sum(losses_B * batch['weights']),
      'weight': jnp.sum(batch['weights']),
    }
    said = {'scores': scores_BC}
    return sums, said | {name: batch[name] for name in ('targets', 'weights')}

  def metrics(
    self,
    totals: Mapping[str, float],
    predictions: Sequence[Prediction],
    dataset: Dataset,
    split: str,
  ) -> dict[str, float]:
    """The loss, and the scores of `measured`; nothing without labels."""
    known = [each for each in predictions if each['weights'] > 0]
    if not known:
      return {}
    gold = np.array([each['targets'] for each in known])
    told = np.array([self.told(each) for each in known])
    names = (*OF_NUMBERS,) if self.number else ('accuracy', *self.reported)
    return {
      'loss': totals['loss'] / totals['weight'],
      **measured(dict.fromkeys(names), gold, told),
    }

  def told(self, prediction: Prediction) -> float | int:
    """The class, or the number, that a prediction comes to."""
    scores_C = prediction['scores']
    return float(scores_C[0]) if self.number else int(np.argmax(scores_C))

  def score(
    self,
    variables: Any,
    dataset: Dataset,
    split: str,
    folder: Path | None = None,
  ) -> Scores:
    """Nothing that `metrics` has not; the folder gets what GLUE's site takes.

    That is a file such as MRPC.tsv with columns index and prediction, indices
    being those of the set; of other sets it is called predictions.tsv.
    """
    if folder is None:
      return {}
    data = self.config.data
    held = labelled.open_set(data, self.config.model.num_classes)
    items = held.read(split)
    said = sorted(
      self.said(variables, dataset, split), key=lambda each: int(each['row'])
    )
    answers = {}
    for item, each in zip(items, said, strict=True):
      told = self.told(each)
      number = int(each['row']) if item.number is None else item.number
      answers[number] = told if self.number else held.classes[int(told)]
    lines = (f'{number}\t{answers[number]}\n' for number in sorted(answers))
    name = glue.submission(self._set, split)
    files.replace(folder / name, ''.join(['index\tprediction\n', *lines]))
    return {}

  @property
  def _set(self) -> str:
    """The name of the task of GLUE, or of another set."""
    name = self.config.data.source.partition(':')[2].partition(':')[0]
    return name.removeprefix('glue/')

  def baseline(self, dataset: Dataset) -> dict[str, float]:
    """'majority_accuracy', of always telling the most frequent class."""
    if self.number:
      return {}
    labels = [e['targets'] for e in dataset.examples('validation')]
    return {'majority_accuracy': float(np.bincount(labels).max() / len(labels))}


def measured(
  names: Sequence[str] | Mapping[str, None], gold: np.ndarray, told: np.ndarray
) -> dict[str, float]:
  """Scores by name, as scikit-learn and SciPy have them.

  They are fractions, as the libraries have them: published tables multiply
  them by 100. What is undefined, since all that was told is one class or one
  number, counts as 0.

  Args:
    names: of 'accuracy', 'f1' (of class 1), 'matthews', 'pearson', 'spearman'.
    gold: what is right.
    told: what was told.
  """
  from scipy import stats
  from sklearn import metrics

  constant = len(set(told.tolist())) < 2 or len(set(gold.tolist())) < 2
  found = {}
  for name in names:
    if name == 'accuracy':
      value = metrics.accuracy_score(gold, told)
    elif name == 'f1':
      value = metrics.f1_score(gold, told, zero_division=0.0)
    elif constant:
      value = 0.0
    elif name == 'matthews':
      value = metrics.matthews_corrcoef(gold, told)
    elif name == 'pearson':
      value = stats.pearsonr(gold, told).statistic
    else:
      value = stats.spearmanr(gold, told).statistic
    found[name] = float(value)
  return found
