"""Prompts and answers that a generator makes."""

from collections.abc import Sequence
from pathlib import Path

import grain
import jax
import jax.numpy as jnp

from shared_tfm.config import Config
from shared_tfm.data import Dataset, generators, tokenizers
from shared_tfm.data.examples import Answers
from shared_tfm.data.sources import corpus
from shared_tfm.errors import need, unknown
from shared_tfm.tasks.task import Shapes
from shared_tfm.tasks.tokens import Tokens

EXAMPLES = {'train': 2**30, 'validation': 1024, 'test': 1024}


class Answering(Tokens):
  """Writes the answer to a prompt, which a source may hold."""

  reported = ('accuracy',)

  def __init__(self, config: Config):
    """See `Task`."""
    super().__init__(config)
    self.apart = config.model.family == 'encoder_decoder'

  def batches(self) -> Sequence[Shapes]:
    """One kind."""
    shapes = self._shapes(self.config.data.seq_len)
    if self.apart:
      ids = shapes['inputs']
      mask = jax.ShapeDtypeStruct(ids.shape, jnp.bool_)
      shapes |= {'source': ids, 'source_mask': mask}
    return [shapes]

  def dataset(self, folder: Path, index: int, count: int) -> Dataset:
    """A stream of examples."""
    data, size = self.config.data, self.config.train.batch_size
    need(
      data.tokenizer == 'bytes',
      f"the task {data.source} needs data.tokenizer 'bytes', got"
      f' {data.tokenizer!r}',
    )
    vocab_size = self.config.model.vocab_size
    tokenizer = tokenizers.make('bytes', [], vocab_size, folder)
    tried = min(data.difficulty, data.seq_len)  # every example is longer
    prompt, answer = map(len, generators.example(data.source, tried, 0, 0, 0))
    needed = max(prompt, answer + 1) if self.apart else prompt + answer
    need(
      needed <= data.seq_len,
      f'data.seq_len {data.seq_len} is too short for {data.source} at'
      f' data.difficulty {data.difficulty}: it takes at least {needed}',
    )

    def elements(split: str, seed: int) -> grain.MapDataset:
      if split not in EXAMPLES:
        raise unknown('split', split, EXAMPLES)
      answers = Answers(
        name=data.source,
        difficulty=data.difficulty,
        tokenizer=tokenizer,
        length=data.seq_len,
        seed=seed,
        split=corpus.SPLITS.index(split),
        size=EXAMPLES[split],
        easiest=data.easiest,
        apart=self.apart,
      )
      return grain.MapDataset.source(answers).seed(seed)

    return Dataset(tokenizer, elements, size, index, count)
