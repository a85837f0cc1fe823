"""Tasks whose targets are tokens: their loss and their scores."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.data import Dataset
from shared_tfm.data.pipeline import Batch as HostBatch
from shared_tfm.model import Transformer
from shared_tfm.tasks.task import (
  Batch,
  Prediction,
  Shapes,
  Sums,
  Task,
  arguments,
)


class Tokens(Task):
  """A task whose targets are tokens."""

  reported: tuple[str, ...] = ('bits_per_byte', 'unigram_bits_per_byte')

  def losses(
    self, model: Transformer, hidden_BLD: jax.Array, batch: Batch
  ) -> tuple[jax.Array, Sums]:
    """Cross-entropy, with smoothed labels where the config says so."""
    losses_BL, _ = model.token_losses(
      hidden_BLD,
      batch['targets'],
      self.config.task.label_smoothing,
      batch.get('mask'),
    )
    return losses_BL * batch['weights'], {}

  def observe(self, model: Transformer, batch: Batch) -> tuple[Sums, Sums]:
    """Sums 'loss' in nats, 'weight', 'correct' and, if it adapts, 'loops'."""
    losses_BL, hits_BL, loops = model.exit_losses(
      batch['targets'], **arguments(batch)
    )
    sums = {
      'loss': jnp.sum(losses_BL * batch['weights']),
      'weight': jnp.sum(batch['weights']),
      'correct': jnp.sum(hits_BL * batch['weights']),
    }
    if loops is not None:
      sums['loops'] = loops * sums['weight']
    return sums, {}

  def metrics(
    self,
    totals: Mapping[str, float],
    predictions: Sequence[Prediction],
    dataset: Dataset,
    split: str,
  ) -> dict[str, float]:
    """Loss in nats per token, perplexity, accuracy, and bits per byte."""
    loss = totals['loss'] / totals['weight']
    found = {
      'loss': loss,
      'perplexity': math.exp(min(loss, 700)),
      'accuracy': totals['correct'] / totals['weight'],
    }
    if totals.get('bytes'):
      found['bits_per_byte'] = totals['loss'] / math.log(2) / totals['bytes']
    if 'loops' in totals:
      found['loops'] = totals['loops'] / totals['weight']
    return found

  def count(self, batch: HostBatch, dataset: Dataset) -> dict[str, float]:
    """'bytes' of text that the targets stand for."""
    lengths_V = dataset.tokenizer.byte_lengths
    return {
      'bytes': float(np.sum(lengths_V[batch['targets']] * batch['weights']))
    }

  def baseline(self, dataset: Dataset) -> dict[str, float]:
    """What a model reaches that ignores context."""
    return {'unigram_bits_per_byte': unigram_bits_per_byte(dataset)}

  def _shapes(self, length: int, rows: int = 0) -> Shapes:
    """Of inputs, targets and weights, (B, L)."""
    rows = rows or self.config.train.batch_size
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    weights = jax.ShapeDtypeStruct((rows, length), jnp.float32)
    return {'inputs': ids, 'targets': ids, 'weights': weights}


def unigram_bits_per_byte(dataset: Dataset) -> float:
  """Bits per byte of the best unigram model of the validation targets.

  It is fitted to the very targets it is scored on, so that no model which
  ignores context does better.
  """
  size = dataset.tokenizer.vocab_size
  counts = np.zeros(size, np.int64)
  for example in dataset.examples('validation'):
    targets = example['targets'][example['weights'] > 0]
    counts += np.bincount(targets, minlength=size)
  seen = counts[counts > 0]
  bits = -(seen * np.log2(seen / seen.sum())).sum()
  return float(bits / (counts @ dataset.tokenizer.byte_lengths))
