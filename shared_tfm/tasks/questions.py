"""Extractive question answering: the answer is a span of a text."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm import files
from shared_tfm.data import Dataset
from shared_tfm.data.passages import ADDED, Passages, passages, thinned
from shared_tfm.data.pipeline import Batch as HostBatch
from shared_tfm.data.sources import squad
from shared_tfm.errors import need
from shared_tfm.layers.cross_entropy import cross_entropy
from shared_tfm.model import Transformer
from shared_tfm.tasks import spans, squad_score
from shared_tfm.tasks.task import (
  Batch,
  Prediction,
  Scores,
  Shapes,
  Sums,
  Task,
  arguments,
)

FORBIDDEN = -1e9  # the logit of a position where no answer may start or end


@dataclasses.dataclass(frozen=True)
class Asked(Dataset):
  """A dataset that knows what was asked.

  Attributes:
    passages: of each split; of training those that are trained on.
  """

  passages: Mapping[str, Passages]
  thinned: bool

  def evaluation(self, split: str, batches: int) -> Iterator[HostBatch]:
    """Batches of a split; not of one of which windows were left out."""
    need(
      split != 'train' or not self.thinned,
      'the train split has not all of its windows, and cannot be scored, unless'
      ' data.negatives is 1',
    )
    return super().evaluation(split, batches)

  @functools.cached_property
  def abstain(self) -> bool:
    """Whether any question has no answer, as in SQuAD 2.0 (1806.03822)."""
    return any(
      question.impossible
      for each in self.passages.values()
      for question in each.questions
    )


class QuestionAnswering(Task):
  """Tells where in a text the answer to a question starts and ends.

  A batch has further 'allowed', (B, L): where that may be. Targets are (B, 2).
  """

  reported = ('exact_match', 'f1')
  predicts = True

  def batches(self) -> Sequence[Shapes]:
    """One kind."""
    rows, length = self.config.train.batch_size, self.config.data.seq_len

    def shape(dtype: jnp.dtype, *size: int) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct((rows, *size), dtype)

    shapes = {
      'inputs': shape(jnp.int32, length),
      'mask': shape(jnp.bool_, length),
      'allowed': shape(jnp.bool_, length),
      'targets': shape(jnp.int32, 2),
      'weights': shape(jnp.float32),
      'row': shape(jnp.int32),
    }
    if self._types:
      shapes['types'] = shapes['inputs']
    return [shapes]

  @property
  def _types(self) -> bool:
    return self.config.model.type_vocab_size > 0

  def dataset(self, folder: Path, index: int, count: int) -> Dataset:
    """Questions with windows of their texts; see data/passages.py."""
    data, model = self.config.data, self.config.model
    least = data.seq_len - data.question_len - ADDED  # tokens of a text
    stride = data.stride or least // 2
    need(
      0 < stride <= least,
      f'data.stride must be from 1 to data.seq_len {data.seq_len} -'
      f' question_len {data.question_len} - {ADDED} = {least}, got {stride}',
    )
    need(
      data.tokenizer != 'words',
      'question_answering needs a data.tokenizer that loses nothing, got'
      " 'words'",
    )
    need(
      model.type_vocab_size in (0, 2),
      'question_answering has 2 segment types, or none: model.type_vocab_size'
      f' must be 2 or 0, got {model.type_vocab_size}',
    )
    need(
      not self.config.task.label_smoothing,
      'question_answering has no task.label_smoothing, got'
      f' {self.config.task.label_smoothing}',
    )
    questions = squad.questions(data)
    texts = dict.fromkeys(
      text for q in questions['train'] for text in (q.context, q.question)
    )
    tokenizer = self.tokenizer(texts, folder)
    of_split = {
      split: passages(
        asked, tokenizer, data.seq_len, data.question_len, stride, self._types
      )
      for split, asked in questions.items()
    }
    of_split['train'] = thinned(of_split['train'], data.negatives)
    need(
      len(of_split['train']) > 0,
      f'{data.source} {data.path} has no windows to train on',
    )

    def elements(split: str, seed: int) -> grain.MapDataset:
      need(
        split in of_split,
        f'{data.source} {data.path} has no {split} split, but'
        f' {", ".join(of_split)}',
      )
      return grain.MapDataset.source(of_split[split]).seed(seed)

    size = self.config.train.batch_size
    return Asked(
      tokenizer, elements, size, index, count, of_split, data.negatives < 1
    )

  def losses(
    self, model: Transformer, hidden_BLD: jax.Array, batch: Batch
  ) -> tuple[jax.Array, Sums]:
    """The mean of the cross-entropies of the start and of the end."""
    logits_BL2 = _allowed(model.spans(hidden_BLD), batch)
    losses_B2 = cross_entropy(logits_BL2.swapaxes(1, 2), batch['targets'])
    return jnp.mean(losses_B2, axis=1) * batch['weights'], {}

  def observe(self, model: Transformer, batch: Batch) -> tuple[Sums, Sums]:
    """Sums 'loss' and 'correct', of windows; and the logits of positions."""
    hidden_BLD = model.hidden(**arguments(batch))
    logits_BL2 = _allowed(model.spans(hidden_BLD), batch)
    losses_B, _ = self.losses(model, hidden_BLD, batch)
    hits_B = jnp.all(jnp.argmax(logits_BL2, axis=1) == batch['targets'], axis=1)
    sums = {
      'loss': jnp.sum(losses_B),
      'weight': jnp.sum(batch['weights']),
      'correct': jnp.sum(hits_B * batch['weights']),
    }
    return sums, {'start': logits_BL2[..., 0], 'end': logits_BL2[..., 1]}

  def metrics(
    self,
    totals: Mapping[str, float],
    predictions: Sequence[Prediction],
    dataset: Dataset,
    split: str,
  ) -> dict[str, float]:
    """Loss and accuracy of windows, EM and F1 of questions, in percent.

    A question counts if all of its windows were seen: that is all of them when
    the whole split was, and else those with a short text rather than others.
    """
    assert isinstance(dataset, Asked)
    weight = max(totals['weight'], 1)
    found = self._found(predictions, dataset, split)
    given = {
      each.id: each.answer(dataset.abstain, self.config.task.null_threshold)
      for each in found.values()
    }
    questions = dataset.passages[split].questions
    return {
      'loss': totals['loss'] / weight,
      'accuracy': totals['correct'] / weight,
      **squad_score.scores([questions[number] for number in found], given),
    }

  def score(
    self,
    variables: Any,
    dataset: Dataset,
    split: str,
    folder: Path | None = None,
  ) -> Scores:
    """Nothing that `metrics` has not; the folder gets what `spans.files` says.

    SQuAD's evaluation script takes references.json and predictions.json.
    """
    if folder is None:
      return {}
    assert isinstance(dataset, Asked)
    predictions = self.said(variables, dataset, split)
    found = self._found(predictions, dataset, split)
    threshold = self.config.task.null_threshold
    questions = dataset.passages[split].questions
    for name, text in spans.files(
      [questions[number] for number in found],
      [*found.values()],
      dataset.abstain,
      threshold,
    ).items():
      files.replace(folder / name, text)
    return {}

  def baseline(self, dataset: Dataset) -> dict[str, float]:
    """'random_f1', of spans anywhere, as long as the answers trained on."""
    assert isinstance(dataset, Asked)
    train, held = (dataset.passages[s] for s in ('train', 'validation'))
    random = np.random.default_rng(0)
    lengths = [
      last - first
      for question, text in zip(train.questions, train.texts, strict=True)
      if question.span
      for first, last in (text.tokens(*question.span),)
    ] or [0]
    given = {}
    for question, text in zip(held.questions, held.texts, strict=True):
      count, length = len(text.ids_T), random.choice(lengths)
      start = int(random.integers(max(1, count)))
      end = min(start + int(length), count - 1)
      given[question.id] = text.characters(start, end) if count else ''
    return {'random_f1': squad_score.scores(held.questions, given)['f1']}

  def _found(
    self, predictions: Sequence[Prediction], dataset: Asked, split: str
  ) -> dict[int, spans.Found]:
    task = self.config.task
    return spans.found(
      dataset.passages[split], predictions, task.max_answer, task.n_best
    )


def _allowed(logits_BL2: jax.Array, batch: Batch) -> jax.Array:
  return jnp.where(batch['allowed'][..., None], logits_BL2, FORBIDDEN)
