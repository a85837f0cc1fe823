"""The pipeline: from a config to batches, on Grain.

Shape letters: B batch of this process, L length.

Everything is random access, from the chunks to the batches. So the state of a
training iterator is the number of the next batch, and nothing else.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from shared_tfm.config import Config
from shared_tfm.data import generators, sources, tokenizers
from shared_tfm.data.examples import Answers, Chunks, Masking
from shared_tfm.data.tokenizers import Tokenizer
from shared_tfm.errors import need

Batch = dict[str, np.ndarray]
Elements = Callable[[str, int], grain.MapDataset]

READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)  # in batches
VALIDATION_SEED = 0
TASK_EXAMPLES = {'train': 2**30, 'validation': 1024}  # of a generator


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The batches of one run, and the tokenizer behind them.

  A batch is a dict of inputs (B, L) int32, targets (B, L) int32 and weights
  (B, L) float32, where weights are 1 at targets that count and else 0.

  Attributes:
    tokenizer: text to ids and back.
    elements: (split, seed) to the examples of that split, before any shuffle.
    batch_size: sequences in a batch, over all processes.
    process_index: which process this is, and so which share of a batch it gets.
    process_count: how many processes there are.
  """

  tokenizer: Tokenizer
  elements: Elements
  batch_size: int
  process_index: int
  process_count: int

  def train(self, seed: int) -> grain.DatasetIterator:
    """Training batches without end, shuffled anew in every epoch.

    Args:
      seed: of the shuffle, the masks and a generator's examples; 32 bits.

    Returns:
      An iterator whose state is one integer; `grain.checkpoint` saves it.

    Raises:
      BadInput: a seed of more bits.
    """
    need(seed < 2**32, f'train.seed must be below 2**32, got {seed}')
    elements = self.elements('train', seed)
    batches = (
      elements[self.process_index :: self.process_count]
      .shuffle()
      .repeat()
      .batch(self._rows, drop_remainder=True)
    )
    return iter(batches.to_iter_dataset(READ))

  def validation(self, batches: int) -> Iterator[Batch]:
    """Validation batches, the same ones every time.

    Args:
      batches: how many, where there are as many; 0 for the whole split.

    Yields:
      Batches. What is missing in the last one is rows of weight 0.
    """
    elements = self._validation
    shuffled = elements.shuffle()
    blank = {k: np.zeros_like(v) for k, v in elements[0].items()}
    whole = math.ceil(len(elements) / self.batch_size)
    for batch in range(min(batches or whole, whole)):
      start = batch * self.batch_size + self.process_index * self._rows
      rows = [
        shuffled[row] if row < len(elements) else blank
        for row in range(start, start + self._rows)
      ]
      yield {key: np.stack([row[key] for row in rows]) for key in blank}

  @functools.cached_property
  def unigram_bits_per_byte(self) -> float:
    """Bits per byte of the best unigram model of the validation targets.

    It is fitted to the very targets it is scored on, so that no model which
    ignores context does better.
    """
    examples = [self._validation[i] for i in range(len(self._validation))]
    targets = np.concatenate([e['targets'][e['weights'] > 0] for e in examples])
    counts = np.bincount(targets, minlength=self.tokenizer.vocab_size)
    seen = counts[counts > 0]
    bits = -(seen * np.log2(seen / seen.sum())).sum()
    return float(bits / (counts @ self.tokenizer.byte_lengths))

  @property
  def _rows(self) -> int:
    return self.batch_size // self.process_count

  @functools.cached_property
  def _validation(self) -> grain.MapDataset:
    return self.elements('validation', VALIDATION_SEED)


def prepare(
  config: Config,
  folder: str | pathlib.Path,
  process_index: int = 0,
  process_count: int = 1,
) -> Dataset:
  """Reads the text, makes or loads the tokenizer, and sets up the batches.

  Args:
    config: as `config.cross` returns it.
    folder: the run's; a trained tokenizer is kept in it.
    process_index: which of the processes asks, from 0.
    process_count: how many share every batch.

  Raises:
    BadInput: a source that cannot be read or is too short, a tokenizer that
      does not fit the model, or a batch that cannot be shared.
  """
  size = config.train.batch_size
  need(
    size % process_count == 0,
    f'train.batch_size must be divisible by the {process_count} processes,'
    f' got {size}',
  )
  made = config.data.source in generators.TASKS
  tokenizer, elements = (_task if made else _language)(
    config, pathlib.Path(folder), process_count
  )
  return Dataset(tokenizer, elements, size, process_index, process_count)


def _task(
  config: Config, folder: pathlib.Path, processes: int
) -> tuple[Tokenizer, Elements]:
  """Examples that a generator makes."""
  data = config.data
  need(
    config.model.family in ('decoder', 'encoder_decoder'),
    f"the task {data.source} needs model.family 'decoder' or"
    f" 'encoder_decoder', got {config.model.family!r}",
  )
  need(
    data.tokenizer == 'bytes',
    f"the task {data.source} needs data.tokenizer 'bytes', got"
    f' {data.tokenizer!r}',
  )
  tokenizer = tokenizers.make('bytes', [], config.model.vocab_size, folder)
  tried = min(data.difficulty, data.seq_len)  # every example is longer
  apart = config.model.family == 'encoder_decoder'
  prompt, answer = map(len, generators.example(data.source, tried, 0, 0, 0))
  needed = max(prompt, answer + 1) if apart else prompt + answer
  need(
    needed <= data.seq_len,
    f'data.seq_len {data.seq_len} is too short for {data.source} at'
    f' data.difficulty {data.difficulty}: it takes at least {needed}',
  )

  def elements(split: str, seed: int) -> grain.MapDataset:
    answers = Answers(
      name=data.source,
      difficulty=data.difficulty,
      tokenizer=tokenizer,
      length=data.seq_len,
      seed=seed,
      split=sources.SPLITS.index(split),
      size=TASK_EXAMPLES[split],
      apart=apart,
    )
    return grain.MapDataset.source(answers).seed(seed)

  return tokenizer, elements


def _language(
  config: Config, folder: pathlib.Path, processes: int
) -> tuple[Tokenizer, Elements]:
  """Chunks of text: next tokens for a decoder, masked ones for an encoder."""
  data, masked = config.data, config.model.family == 'encoder'
  need(
    config.model.family != 'encoder_decoder',
    f"model.family 'encoder_decoder' learns prompts and answers, and"
    f' data.source {data.source} has none; the tasks'
    f' {", ".join(generators.TASKS)} have',
  )
  need(
    data.mask_rate > 0 or not masked,
    "data.mask_rate must be above 0 for model.family 'encoder'",
  )
  texts = {split: sources.documents(data, split) for split in sources.SPLITS}
  tokenizer = tokenizers.make(
    data.tokenizer, texts['train'], config.model.vocab_size, folder
  )
  chunks = {}
  for split, least in zip(sources.SPLITS, (processes, 1), strict=True):
    tokens = _joined(texts[split], tokenizer)
    chunks[split] = Chunks(tokens, data.seq_len, ahead=0 if masked else 1)
    needed = least * data.seq_len + chunks[split].ahead
    need(
      len(tokens) >= needed,
      f'the {split} split of {data.source} has {len(tokens)} tokens, but'
      f' data.seq_len {data.seq_len} needs at least {needed}',
    )
  masking = Masking(data.mask_rate, tokenizer)

  def elements(split: str, seed: int) -> grain.MapDataset:
    examples = grain.MapDataset.source(chunks[split]).seed(seed)
    return examples.random_map(masking) if masked else examples

  return tokenizer, elements


def _joined(texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
  """All documents, each with its eos, as one row that nobody can change."""
  eos = np.array([tokenizer.eos], np.int32)
  encoded = tokenizer.encode_all(texts)
  tokens = np.concatenate([part for ids in encoded for part in (ids, eos)])
  tokens.setflags(write=False)
  return tokens
