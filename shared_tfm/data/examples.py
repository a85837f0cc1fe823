"""What a model is shown: inputs, the targets for them, and their weights.

Shape letters: L length. Every example is a dict of

    inputs   (L,) int32     what the model reads
    targets  (L,) int32     what it should say at each position
    weights  (L,) float32   1 where that counts, else 0

and where a model reads the one and writes the other, of

    source       (L,) int32   what its encoder reads
    source_mask  (L,) bool    False at padding

The classes are sources of random access: example i is a pure function of i.
"""

import dataclasses

import numpy as np

from shared_tfm.data import generators
from shared_tfm.data.tokenizers import Tokenizer

Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Chunks:
  """Chunks of one flat row of tokens; chunk i reads tokens[i*L : (i+1)*L].

  Attributes:
    tokens: (tokens,) int32.
    length: L.
    ahead: how far the targets lie ahead of the inputs: 1 to predict the next
      token; 0 for the same tokens, which masking.py then hides.
  """

  tokens: np.ndarray
  length: int
  ahead: int

  def __len__(self) -> int:
    return (len(self.tokens) - self.ahead) // self.length

  def __getitem__(self, index: int) -> Example:
    start = int(index) * self.length
    chunk = self.tokens[start : start + self.length + self.ahead]
    return {
      'inputs': chunk[: self.length],
      'targets': chunk[self.ahead :],
      'weights': np.ones(self.length, np.float32),
    }


@dataclasses.dataclass(frozen=True)
class Windows:
  """Windows that slide over one flat row of tokens; each target counts once.

  Window i reads what is before tokens[i * S : i * S + L], S being the stride.
  All targets of the first window count, of the others the last S, so that
  whatever counts follows at least L - S tokens, unless the row starts there.
  Before the first token stands an eos. An eos itself is read, but is not text,
  and does not count.

  Attributes:
    tokens: (tokens,) int32.
    length: L.
    stride: S, from 1 to L.
    eos: the id that ends a document.
  """

  tokens: np.ndarray
  length: int
  stride: int
  eos: int

  def __len__(self) -> int:
    return 1 + max(0, -((self.length - len(self.tokens)) // self.stride))

  def __getitem__(self, index: int) -> Example:
    start = index * self.stride
    row = np.full(1 + self.length, self.eos, np.int32)
    tokens = self.tokens[max(0, start - 1) : start + self.length]
    first = int(start == 0)
    row[first : first + len(tokens)] = tokens
    targets = row[1:]
    weights = (targets != self.eos).astype(np.float32)
    if index > 0:
      weights[: self.length - self.stride] = 0
    return {'inputs': row[:-1], 'targets': targets, 'weights': weights}


@dataclasses.dataclass(frozen=True)
class Answers:
  """Prompt, answer and eos of a task; the answer and its eos count.

  Attributes:
    name: a key of `generators.TASKS`.
    seed: the stream, with `split`; see `generators.example`.
    size: how many examples the stream is cut to.
    easiest: the least difficulty that is drawn; 0: all are of `difficulty`.
    apart: whether the prompt is a source, and the answer alone is written,
      behind an eos that starts it.
  """

  name: str
  difficulty: int
  tokenizer: Tokenizer
  length: int
  seed: int
  split: int
  size: int
  easiest: int = 0
  apart: bool = False

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> Example:
    texts = generators.example(
      self.name,
      self.difficulty,
      self.seed,
      self.split,
      int(index),
      self.easiest,
    )
    prompt, answer = map(self.tokenizer.encode, texts)
    eos = self.tokenizer.eos
    tokens = np.full(self.length + 1, eos, np.int32)
    if self.apart:
      return self._apart(tokens, prompt, answer)
    end = len(prompt) + len(answer)
    tokens[:end] = np.concatenate([prompt, answer])
    weights = np.zeros(self.length, np.float32)
    weights[len(prompt) - 1 : end] = 1
    return {'inputs': tokens[:-1], 'targets': tokens[1:], 'weights': weights}

  def _apart(
    self, tokens: np.ndarray, prompt: np.ndarray, answer: np.ndarray
  ) -> Example:
    """The example of a model with a source; `tokens` are all eos."""
    places = np.arange(self.length)
    source = tokens[:-1].copy()
    source[: len(prompt)] = prompt
    tokens[1 : len(answer) + 1] = answer
    targets = np.append(tokens[1:], self.tokenizer.eos)[: self.length]
    return {
      'inputs': tokens[:-1],
      'targets': targets,
      'weights': (places <= len(answer)).astype(np.float32),
      'source': source,
      'source_mask': places < len(prompt),
    }
