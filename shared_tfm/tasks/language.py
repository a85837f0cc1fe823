"""Text without labels: its next token, or hidden ones, are to be told."""

from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np

from shared_tfm.data import Dataset, sources, tokenizers
from shared_tfm.data.examples import Chunks, Masking
from shared_tfm.data.tokenizers import Tokenizer
from shared_tfm.errors import need
from shared_tfm.tasks.task import Shapes, Tokens


class LanguageModel(Tokens):
  """Tells the next token of a text."""

  ahead = 1  # how far targets lie ahead of the inputs

  def batches(self) -> Sequence[Shapes]:
    """One kind."""
    return [self._shapes(self.config.data.seq_len)]

  def dataset(self, folder: Path, index: int, count: int) -> Dataset:
    """Chunks of text."""
    data = self.config.data
    texts = {split: sources.documents(data, split) for split in sources.SPLITS}
    tokenizer = tokenizers.make(
      data.tokenizer, texts['train'], self.config.model.vocab_size, folder
    )
    chunks = {}
    for split, least in zip(sources.SPLITS, (count, 1), strict=True):
      tokens = _joined(texts[split], tokenizer)
      chunks[split] = Chunks(tokens, data.seq_len, self.ahead)
      needed = least * data.seq_len + self.ahead
      need(
        len(tokens) >= needed,
        f'the {split} split of {data.source} has {len(tokens)} tokens, but'
        f' data.seq_len {data.seq_len} needs at least {needed}',
      )

    def elements(split: str, seed: int) -> grain.MapDataset:
      examples = grain.MapDataset.source(chunks[split]).seed(seed)
      return self._prepared(examples, tokenizer)

    return Dataset(
      tokenizer, elements, self.config.train.batch_size, index, count
    )

  def _prepared(
    self, examples: grain.MapDataset, tokenizer: Tokenizer
  ) -> grain.MapDataset:
    return examples


class MaskedLM(LanguageModel):
  """Tells hidden tokens of a text (BERT, 1810.04805)."""

  ahead = 0

  def dataset(self, folder: Path, index: int, count: int) -> Dataset:
    """Chunks of text, some tokens hidden."""
    need(
      self.config.data.mask_rate > 0,
      'data.mask_rate must be above 0 for masked_lm',
    )
    return super().dataset(folder, index, count)

  def _prepared(
    self, examples: grain.MapDataset, tokenizer: Tokenizer
  ) -> grain.MapDataset:
    return examples.random_map(Masking(self.config.data.mask_rate, tokenizer))


def _joined(texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
  """All documents, each with its eos, as one row that nobody can change."""
  eos = np.array([tokenizer.eos], np.int32)
  encoded = tokenizer.encode_all(texts)
  tokens = np.concatenate([part for ids in encoded for part in (ids, eos)])
  tokens.setflags(write=False)
  return tokens
