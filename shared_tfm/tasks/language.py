"""Text without labels, whose next token is to be told."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from shared_tfm.data import Dataset, tokenizers, vocabularies
from shared_tfm.data.examples import Chunks, Windows
from shared_tfm.data.sources import corpus
from shared_tfm.data.tokenizers import Tokenizer
from shared_tfm.errors import need
from shared_tfm.model import build
from shared_tfm.tasks.task import Batch, Scores, Shapes, Sums
from shared_tfm.tasks.tokens import Tokens


class LanguageModel(Tokens):
  """Tells the next token of a text."""

  reported: tuple[str, ...] = (
    'bits_per_byte',
    'word_perplexity',
    'unigram_bits_per_byte',
  )
  ahead = 1  # how far targets lie ahead of the inputs

  def batches(self) -> Sequence[Shapes]:
    """One kind."""
    return [self._shapes(self.config.data.seq_len)]

  def dataset(self, folder: Path, index: int, count: int) -> Dataset:
    """Chunks of text; a test split is read when it is asked for."""
    data = self.config.data
    train = corpus.documents(data, 'train')
    held_out = corpus.documents(data, 'validation')
    tokenizer = self.tokenizer(train, folder)

    def cut(split: str, texts: Iterable[str]) -> Chunks:
      tokens = tokenizers.joined(texts, tokenizer)
      needed = data.seq_len + self.ahead
      need(
        len(tokens) >= needed,
        f'the {split} split of {data.source} has {len(tokens)} tokens, but'
        f' data.seq_len {data.seq_len} needs at least {needed}',
      )
      return Chunks(tokens, data.seq_len, self.ahead)

    chunks = {
      'train': cut('train', train),
      'validation': cut('validation', held_out),
    }

    def elements(split: str, seed: int) -> grain.MapDataset:
      if split not in chunks:
        chunks[split] = cut(split, corpus.documents(data, split))
      examples = grain.MapDataset.source(chunks[split]).seed(seed)
      return self._prepared(examples, tokenizer)

    return Dataset(
      tokenizer, elements, self.config.train.batch_size, index, count
    )

  def _prepared(
    self, examples: grain.MapDataset, tokenizer: Tokenizer
  ) -> grain.MapDataset:
    return examples

  def score(
    self,
    variables: Any,
    dataset: Dataset,
    split: str,
    folder: Path | None = None,
  ) -> Scores:
    """What all text of a split costs, by windows that `task.stride` moves.

    Every token of the text counts once; the ends of documents do not. Bytes
    and words are those of the text, whatever the tokenizer; words are what has
    white space around it, and the end of a line is one, as perplexities of
    WikiText and of the Penn Treebank are counted.

    Returns:
      'bits_per_byte', 'bits_per_token' and 'word_perplexity', and what they are
      means over: 'bytes', 'tokens' and 'words'; nothing without a stride.
    """
    data, train = self.config.data, self.config.train
    stride = self.config.task.stride
    if not stride:
      return {}
    texts, tokenizer = corpus.documents(data, split), dataset.tokenizer
    tokens = tokenizers.joined(texts, tokenizer)
    windows = Windows(tokens, data.seq_len, stride, tokenizer.eos)
    model = build(self.config)

    @jax.jit
    def observed(variables: Any, batch: Batch) -> Sums:
      sums: Sums = model.apply(variables, batch, method=self.observe)[0]
      return {name: sums[name] for name in ('loss', 'weight')}

    found = [
      observed(variables, jax.device_put(batch))
      for batch in _batches(windows, train.batch_size // train.accumulate)
    ]
    found = jax.device_get(found)
    nats = math.fsum(sums['loss'] for sums in found)
    totals = {
      'bytes': sum(len(text.encode()) for text in texts),
      'tokens': math.fsum(sums['weight'] for sums in found),
      'words': sum(map(vocabularies.count_words, texts)),
    }
    return {
      'bits_per_byte': nats / math.log(2) / totals['bytes'],
      'bits_per_token': nats / math.log(2) / totals['tokens'],
      'word_perplexity': math.exp(min(nats / max(totals['words'], 1), 700)),
      **totals,
    }


def _batches(windows: Windows, size: int) -> Iterator[dict[str, np.ndarray]]:
  """All windows in their order; what is missing at the end has weight 0."""
  for start in range(0, len(windows), size):
    rows = [windows[i] for i in range(start, min(start + size, len(windows)))]
    blank = {name: np.zeros_like(row) for name, row in rows[0].items()}
    rows += [blank] * (size - len(rows))
    yield {name: np.stack([row[name] for row in rows]) for name in blank}
