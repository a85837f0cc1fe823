"""Two segments of a document, of which is to be told whether they are swapped.

Sentence-order prediction (ALBERT, 1909.11942, section 3.1).
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from shared_tfm.data import spool
from shared_tfm.data.labelled_examples import laid_out
from shared_tfm.data.masking import Example, Words
from shared_tfm.data.tokenizers import Tokenizer

SEPARATORS = 3
_ARTICLE = re.compile(r'(?m)^(?= = [^=\n]+ = $)')  # WikiText's titles


def articles(texts: Iterable[str]) -> Iterator[str]:
  """Documents, where a title of WikiText, ' = Title = ', begins another."""
  for text in texts:
    yield from (part for part in _ARTICLE.split(text) if part.strip())


@dataclasses.dataclass(frozen=True)
class Stretches:
  """Stretches of documents, each to be cut into two segments.

  No stretch is of two documents. Each begins where a sentence does, and holds
  as many whole sentences as there is room for; a sentence that is too long is
  cut.

  Attributes:
    tokens: of all documents, one behind the other.
    bounds: (stretches, 2) where each begins and ends.
    sentences: where sentences begin, in rising order.
  """

  tokens: np.ndarray
  bounds: np.ndarray
  sentences: np.ndarray

  def __len__(self) -> int:
    return len(self.bounds)

  def __getitem__(self, index: int) -> Example:
    start, end = self.bounds[int(index)]
    first, last = np.searchsorted(self.sentences, [start + 1, end])
    return {
      'tokens': self.tokens[start:end],
      'sentences': self.sentences[first:last] - start,
    }


def stretches(
  texts: Iterable[str], tokenizer: Tokenizer, length: int
) -> Stretches:
  """Cuts documents; neither they nor their tokens need fit into memory.

  Args:
    texts: the documents.
    tokenizer: of their tokens.
    length: L of an example, separators included.
  """
  tokens = spool.Spool()
  bounds, sentences = spool.Spool(np.int64), spool.Spool(np.int64)
  ends_V, spaces_V, lines_V = _kinds(tokenizer)
  offset = 0
  for ids in tokenizer.encode_all(texts):
    before, after = ids[:-1], ids[1:]
    begins = (ends_V[before] & spaces_V[after]) | (
      lines_V[before] & ~lines_V[after]
    )
    places = np.flatnonzero(begins) + 1
    cut = [
      (start, end)
      for start, end in _cut(len(ids), places, length - SEPARATORS)
      if end - start > 1
    ]
    bounds.add(np.array(cut, np.int64).ravel() + offset)
    tokens.add(ids)
    sentences.add(places + offset)
    offset += len(ids)
  return Stretches(tokens.row(), bounds.row().reshape(-1, 2), sentences.row())


def _kinds(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(V,) each: pieces that end a sentence, begin with a space, end a line."""
  pieces = tokenizer.pieces
  return (
    np.array([piece.endswith((b'.', b'!', b'?')) for piece in pieces]),
    np.array([piece[:1].isspace() for piece in pieces]),
    np.array([piece.endswith(b'\n') for piece in pieces]),
  )


def _cut(
  size: int, sentences: np.ndarray, room: int
) -> Iterator[tuple[int, int]]:
  start = 0
  while start < size:
    end = min(start + room, size)
    if end < size:
      last = np.searchsorted(sentences, end, 'right') - 1
      if last >= 0 and sentences[last] > start:
        end = int(sentences[last])
    yield start, end
    start = end


@dataclasses.dataclass(frozen=True)
class Ordering:
  """Cuts a stretch in two, and swaps the two halves or not.

  They are cut where a sentence begins, or else a word, or else anywhere, and
  swapped with probability 1/2. What is read is [eos] first [eos] second [eos],
  of types 0 and 1, and then padding. Separators and padding do not count.

  Attributes:
    length: L.
    typed: whether there are types.
    masking: what then hides tokens.
  """

  tokenizer: Tokenizer
  length: int
  typed: bool
  masking: Callable[[Example, np.random.Generator], Example]

  def __call__(self, stretch: Example, rng: np.random.Generator) -> Example:
    """One of Stretches as an example, 'order' being 1 if it was swapped."""
    tokens, places = stretch['tokens'], stretch['sentences']
    if not len(places):
      places = np.flatnonzero(self._words.begins(tokens))[1:]
    if not len(places):
      places = np.arange(1, len(tokens))
    parts = np.split(tokens, [rng.choice(places)])
    swapped = rng.random() < 0.5
    if swapped:
      parts.reverse()
    eos = self.tokenizer.eos
    targets, types, mask = laid_out(parts, self.length, eos)
    example = {
      'targets': targets,
      'weights': (mask & (targets != eos)).astype(np.float32),
      'mask': mask,
      'order': np.array(swapped, np.int32),
    }
    if self.typed:
      example['types'] = types
    return self.masking(example, rng)

  @functools.cached_property
  def _words(self) -> Words:
    return Words(self.tokenizer)
