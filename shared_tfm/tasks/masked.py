"""Text some of whose tokens are hidden, and are to be told."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import grain
import jax
import jax.numpy as jnp

from shared_tfm.config import Config
from shared_tfm.data import Dataset, order
from shared_tfm.data.masking import Masking
from shared_tfm.data.sources import corpus
from shared_tfm.data.tokenizers import Tokenizer
from shared_tfm.errors import need
from shared_tfm.layers.cross_entropy import cross_entropy
from shared_tfm.model import Transformer
from shared_tfm.tasks.language import LanguageModel
from shared_tfm.tasks.task import (
  Batch,
  Prediction,
  Shapes,
  Sums,
  arguments,
)


class MaskedLM(LanguageModel):
  """Tells hidden tokens of a text (BERT, 1810.04805).

  With `task.sentence_order` it reads two segments of one document, and also
  tells whether they were swapped (ALBERT, 1909.11942, section 3.1).
  """

  ahead = 0

  def __init__(self, config: Config):
    """See `Task`."""
    super().__init__(config)
    self.ordered = config.task.sentence_order
    if self.ordered:
      self.reported = (*self.reported, 'order_accuracy')

  def batches(self) -> Sequence[Shapes]:
    """One kind; of segments with a mask, and 'order' (B,), 1 if swapped."""
    (shapes,) = super().batches()
    if self.ordered:
      ids = shapes['inputs']
      shapes['mask'] = jax.ShapeDtypeStruct(ids.shape, jnp.bool_)
      shapes['order'] = jax.ShapeDtypeStruct(ids.shape[:1], jnp.int32)
      if self.config.model.type_vocab_size:
        shapes['types'] = ids
    return [shapes]

  def dataset(self, folder: Path, index: int, count: int) -> Dataset:
    """Chunks of text, or stretches of documents, some tokens hidden."""
    data, model = self.config.data, self.config.model
    need(data.mask_rate > 0, 'data.mask_rate must be above 0 for masked_lm')
    if not self.ordered:
      return super().dataset(folder, index, count)
    need(
      data.seq_len > order.SEPARATORS + 1,
      f'data.seq_len must be at least {order.SEPARATORS + 2} for'
      f' task.sentence_order, got {data.seq_len}',
    )

    def articles(split: str) -> Iterator[str]:
      return order.articles(corpus.documents(data, split))

    tokenizer = self.tokenizer(articles('train'), folder)

    @functools.cache
    def stretches(split: str) -> order.Stretches:
      found = order.stretches(articles(split), tokenizer, data.seq_len)
      needed = self.config.train.batch_size if split == 'train' else 1
      need(
        len(found) >= needed,
        f'the {split} split of {data.source} has {len(found)} stretches of'
        f' data.seq_len {data.seq_len}, and needs at least {needed}',
      )
      return found

    for split in ('train', 'validation'):
      stretches(split)
    ordering = order.Ordering(
      tokenizer,
      data.seq_len,
      model.type_vocab_size > 0,
      self._masking(tokenizer),
    )

    def elements(split: str, seed: int) -> grain.MapDataset:
      found = grain.MapDataset.source(stretches(split)).seed(seed)
      return found.random_map(ordering)

    return Dataset(
      tokenizer, elements, self.config.train.batch_size, index, count
    )

  def _prepared(
    self, examples: grain.MapDataset, tokenizer: Tokenizer
  ) -> grain.MapDataset:
    return examples.random_map(self._masking(tokenizer))

  def _masking(self, tokenizer: Tokenizer) -> Masking:
    data = self.config.data
    return Masking(data.mask_rate, tokenizer, data.mask_ngram, data.whole_word)

  def losses(
    self, model: Transformer, hidden_BLD: jax.Array, batch: Batch
  ) -> tuple[jax.Array, Sums]:
    """Of the hidden tokens; further the 'order' of segments."""
    losses_BL, further = super().losses(model, hidden_BLD, batch)
    if self.ordered:
      sums = _order(model, hidden_BLD, batch)
      weight = jnp.maximum(sums['order_weight'], 1)
      further = {**further, 'order': sums['order_loss'] / weight}
    return losses_BL, further

  def observe(self, model: Transformer, batch: Batch) -> tuple[Sums, Sums]:
    """Further sums 'order_loss', 'order_correct' and 'order_weight'."""
    sums, said = super().observe(model, batch)
    if self.ordered:
      sums |= _order(model, model.hidden(**arguments(batch)), batch)
    return sums, said

  def metrics(
    self,
    totals: Mapping[str, float],
    predictions: Sequence[Prediction],
    dataset: Dataset,
    split: str,
  ) -> dict[str, float]:
    """Further 'order_loss' in nats, and 'order_accuracy'."""
    found = super().metrics(totals, predictions, dataset, split)
    if self.ordered:
      found['order_loss'] = totals['order_loss'] / totals['order_weight']
      found['order_accuracy'] = totals['order_correct'] / totals['order_weight']
    return found


def _order(model: Transformer, hidden_BLD: jax.Array, batch: Batch) -> Sums:
  """Sums over the rows that are somebody's."""
  scores_BC = model.classes(hidden_BLD, batch['mask'])
  weights_B = jnp.any(batch['mask'], axis=1).astype(jnp.float32)
  hits_B = jnp.argmax(scores_BC, axis=-1) == batch['order']
  losses_B = cross_entropy(scores_BC, batch['order'])
  return {
    'order_loss': jnp.sum(losses_B * weights_B),
    'order_correct': jnp.sum(hits_B * weights_B),
    'order_weight': jnp.sum(weights_B),
  }
