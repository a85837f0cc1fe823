"""Pairs of texts: a source is read, and a target written."""

import abc
import functools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm import files
from shared_tfm.data import Dataset
from shared_tfm.data.bucketed import Bucketed
from shared_tfm.data.pair_examples import Bucket, PairExamples, both_sides
from shared_tfm.data.pipeline import NOBODY
from shared_tfm.data.sources import pairs
from shared_tfm.data.tokenizers import Tokenizer
from shared_tfm.infer.beam import beam_search, until
from shared_tfm.tasks.task import Scores, Shapes
from shared_tfm.tasks.tokens import Tokens

EVEN = 8  # rows of a batch are a multiple of it, if train.batch_size is

logger = logging.getLogger(__name__)


class Pairs(Tokens):
  """Writes a target, which is compared with a reference."""

  predicts = True

  def buckets(self) -> list[Bucket]:
    """The shapes of batches.

    A batch of the longest texts has train.batch_size pairs. The others have
    more of them, as many as give it about the same number of tokens.
    """
    data, train = self.config.data, self.config.train
    even = math.lcm(train.accumulate, math.gcd(train.batch_size, EVEN))
    whole = train.batch_size * (data.source_len + data.seq_len)
    found = []
    for length in data.lengths:
      source, target = min(length, data.source_len), min(length, data.seq_len)
      rows = whole // (source + target) // even * even
      found.append(Bucket(source, target, rows))
    return found

  def batches(self) -> Sequence[Shapes]:
    """One kind for each bucket."""
    kinds = []
    for bucket in self.buckets():
      shapes = self._shapes(bucket.target, bucket.rows)
      mask = jax.ShapeDtypeStruct(shapes['inputs'].shape, jnp.bool_)
      source = (bucket.rows, bucket.source)
      shapes |= {
        'mask': mask,
        'source': jax.ShapeDtypeStruct(source, jnp.int32),
        'source_mask': jax.ShapeDtypeStruct(source, jnp.bool_),
        'row': jax.ShapeDtypeStruct((bucket.rows,), jnp.int32),
      }
      kinds.append(shapes)
    return kinds

  def dataset(self, folder: Path, index: int, count: int) -> Dataset:
    """Pairs by their length; splits other than two are read when asked for."""
    config, buckets = self.config, self.buckets()
    train = pairs.read(config.data, 'train')
    held_out = pairs.read(config.data, 'validation')
    tokenizer = self.tokenizer(both_sides(train), folder)
    read = {'train': train, 'validation': held_out}

    @functools.cache
    def encoded(split: str) -> PairExamples:
      found = read.get(split) or pairs.read(config.data, split)
      return PairExamples(found, tokenizer, buckets)

    if cut := encoded('train').cut:
      logger.warning(
        '%d of %d training pairs are cut: a source to data.source_len %d'
        ' tokens or a target to data.seq_len %d',
        cut,
        len(train),
        config.data.source_len,
        config.data.seq_len,
      )
    return Bucketed(
      tokenizer,
      lambda split, _: grain.MapDataset.source(encoded(split)),
      config.train.batch_size,
      index,
      count,
      kinds=lambda split: encoded(split).kinds,
      rows=tuple(bucket.rows for bucket in buckets),
    )

  def prompt(self, text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Its tokens and an end."""
    return np.append(tokenizer.encode(text), tokenizer.eos)

  def written(self, variables: Any, dataset: Dataset, split: str) -> list[str]:
    """What beam search makes of each source of a split, in its order."""
    task, found = self.config.task, {}
    eos = dataset.tokenizer.eos
    for batch in self.evaluation(dataset, split):
      tokens_BKL, _ = beam_search(
        self.config,
        variables,
        batch['source'],
        batch['source_mask'],
        eos,
        eos,
        task.max_decode or self.config.data.seq_len,
        task.beam_size,
        task.length_penalty,
      )
      best_BL = np.asarray(tokens_BKL[:, 0])
      for row, tokens_L in zip(batch['row'].tolist(), best_BL, strict=True):
        if row != NOBODY:
          found[row] = dataset.tokenizer.decode(until(tokens_L, eos))
    return [found[row] for row in range(len(found))]

  def score(
    self,
    variables: Any,
    dataset: Dataset,
    split: str,
    folder: Path | None = None,
  ) -> Scores:
    """Compares what beam search writes with the references.

    The folder gets predictions-SPLIT.txt, and sources and references in the
    same order, each a line.
    """
    written = self.written(variables, dataset, split)
    held = pairs.read(self.config.data, split)
    sources, references = zip(*(held[i] for i in range(len(held))), strict=True)
    if folder:
      for name, texts in (
        ('predictions', written),
        ('sources', sources),
        ('references', references),
      ):
        lines = (' '.join(text.split()) + '\n' for text in texts)
        files.replace(folder / f'{name}-{split}.txt', ''.join(lines))
    return self.compared(written, references)

  @abc.abstractmethod
  def compared(
    self, written: Sequence[str], references: Sequence[str]
  ) -> Scores:
    """Scores of texts against one reference each."""


class Translation(Pairs):
  """Translates."""

  reported = ('bleu', 'chrf')

  def compared(
    self, written: Sequence[str], references: Sequence[str]
  ) -> Scores:
    """sacreBLEU's BLEU and chrF (2 of 6), 0 to 100, and their signatures."""
    from sacrebleu import metrics

    found: Scores = {}
    for metric in (metrics.BLEU(), metrics.CHRF()):
      scored = metric.corpus_score(written, [references])
      name = metric.__class__.__name__.lower()
      found[name] = scored.score
      found[f'{name}_signature'] = str(metric.get_signature())
    return found


class Summarisation(Pairs):
  """Summarises."""

  reported = ('rouge1', 'rouge2', 'rougeL')

  def compared(
    self, written: Sequence[str], references: Sequence[str]
  ) -> Scores:
    """Mean F1 of ROUGE-1, -2 and -L by rouge-score, words stemmed; 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(self.reported, use_stemmer=True)
    scored = [
      scorer.score(reference, text)
      for text, reference in zip(written, references, strict=True)
    ]
    return {
      name: float(np.mean([each[name].fmeasure for each in scored]))
      for name in self.reported
    }

  def baseline(self, dataset: Dataset) -> dict[str, float]:
    """'lead_rouge1', too: of a source's first words, as many as targets get."""
    train, held = (
      pairs.read(self.config.data, split) for split in ('train', 'validation')
    )
    some = range(min(len(train), 1_000))
    words = [len(train[i][1].split()) for i in some]
    count = round(float(np.mean(words)))
    both = [held[i] for i in range(len(held))]
    leads = [' '.join(source.split()[:count]) for source, _ in both]
    scores = self.compared(leads, [target for _, target in both])
    return {**super().baseline(dataset), 'lead_rouge1': scores['rouge1']}
