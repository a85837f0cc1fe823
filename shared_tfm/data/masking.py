"""Hiding tokens that are then to be told: masked language modelling."""

import dataclasses
import functools

import numpy as np

from shared_tfm.data.tokenizers import Tokenizer

Example = dict[str, np.ndarray]
TRIES = 50  # places that are tried for an n-gram before it is made shorter


@dataclasses.dataclass(frozen=True)
class Words:
  """Which tokens begin a word.

  A piece begins a word if its first byte is no letter or digit, as that of
  ' the' and of '.' is, or if it follows what ends with another sign than a
  space: 'foo' begins one in '(foo', and does not in ' foo'. So a word is a run
  of tokens, a space in front belongs to it, and every sign is a word by itself.
  Bytes beyond ASCII count as letters.
  """

  tokenizer: Tokenizer

  @functools.cached_property
  def _kinds(self) -> tuple[np.ndarray, np.ndarray]:
    """(V,) whether a piece begins a word, and whether a letter goes on."""
    pieces = self.tokenizer.pieces
    signs = [not piece or not _letter(piece[0]) for piece in pieces]
    goes_on = [
      bool(piece) and (_letter(piece[-1]) or piece.endswith(b' '))
      for piece in pieces
    ]
    return np.array(signs), np.array(goes_on)

  def begins(self, tokens_L: np.ndarray) -> np.ndarray:
    """(L,) whether each token begins a word; the first one does."""
    signs_V, goes_on_V = self._kinds
    begins_L = signs_V[tokens_L]
    begins_L[1:] |= ~goes_on_V[tokens_L[:-1]]
    begins_L[:1] = True
    return begins_L


def _letter(byte: int) -> bool:
  return byte >= 128 or chr(byte).isalnum()


@dataclasses.dataclass(frozen=True)
class Masking:
  """Hides tokens.

  Of the tokens that count, a share `rate`, at least one, is chosen; of these
  80 % read the mask, 10 % any token but a special, 10 % stay (BERT,
  1810.04805, section 3.1).

  With n-grams, runs of n are chosen, with a probability that is proportional to
  1 / n (ALBERT, 1909.11942, equation 4), and as many of them that they hold the
  same share on average. No two overlap, and none has a special inside, which is
  never hidden then.

  Attributes:
    rate: the share.
    ngram: the largest n.
    whole_word: whether n counts words instead of tokens. A word of more tokens
      than are to be hidden in all is left alone.
  """

  rate: float
  tokenizer: Tokenizer
  ngram: int = 1
  whole_word: bool = False

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Masks an example's targets where its weights are not 0."""
    inputs = example['targets'].copy()
    weights = np.zeros_like(example['weights'])
    places = np.flatnonzero(example['weights'])
    if self.ngram > 1 or self.whole_word:
      chosen = self._runs(inputs, places, rng)
    else:
      count = max(1, round(self.rate * len(places)))
      chosen = places[rng.choice(len(places), count, replace=False)]
    fate = rng.random(len(chosen))
    other = rng.integers(0, self.tokenizer.eos, len(chosen))
    other = np.where(fate < 0.9, other, inputs[chosen])
    inputs[chosen] = np.where(fate < 0.8, self.tokenizer.mask, other)
    weights[chosen] = 1
    return {**example, 'inputs': inputs, 'weights': weights}

  def _runs(
    self, tokens: np.ndarray, places: np.ndarray, rng: np.random.Generator
  ) -> np.ndarray:
    """The places of all n-grams that are chosen."""
    places = places[tokens[places] < self.tokenizer.eos]
    if not len(places):
      return places
    room = max(1, round(self.rate * len(places)))
    after_gap = np.ones(len(places), bool)
    after_gap[1:] = places[1:] - places[:-1] > 1
    begins = np.ones(len(places), bool)
    if self.whole_word:
      begins = after_gap | self._words.begins(tokens)[places]
    first = np.flatnonzero(begins)
    edges = np.append(first, len(places))
    sizes = edges[1:] - edges[:-1]
    free = sizes <= room
    if not free.any():  # there is nothing but words that are too long
      first = np.arange(len(places))
      edges, sizes = np.append(first, len(places)), np.ones_like(places)
      free = sizes > 0
    units = room * np.count_nonzero(free) / np.sum(sizes, where=free)
    spans = ngrams(free, ~after_gap[first], units, self.ngram, rng)
    chosen = [places[edges[at] : edges[at + n]] for at, n in spans]
    return np.concatenate([places[:0], *chosen])

  @functools.cached_property
  def _words(self) -> Words:
    return Words(self.tokenizer)


def ngrams(
  free: np.ndarray,
  follows: np.ndarray,
  units: float,
  most: int,
  rng: np.random.Generator,
) -> list[tuple[int, int]]:
  """Chooses runs of units, which do not overlap.

  Args:
    free: (W,) whether each unit may be chosen.
    follows: (W,) whether it stands right behind the one before it.
    units: how many are to be chosen, on average.
    most: the largest n.
    rng: draws them.

  Returns:
    The first unit and the n of each run, in the order they were drawn.
  """
  below_N = np.cumsum(1 / np.arange(1, most + 1))
  mean = most / below_N[-1]
  count = max(1, int(units / mean + rng.random()))
  drawn = np.searchsorted(below_N, rng.random(count) * below_N[-1], 'right') + 1
  # Lists, because they are looked up one by one, and that is dear in arrays.
  can, joins, spans = free.tolist(), follows.tolist(), []
  for n in drawn.tolist():
    for size in range(n, 0, -1):
      at = _place(can, joins, size, rng)
      if at is not None:
        can[at : at + size] = [False] * size
        spans.append((at, size))
        break
  return spans


def _place(
  can: list[bool], joins: list[bool], n: int, rng: np.random.Generator
) -> int | None:
  """Where n units can be chosen; None: nowhere that was tried."""
  for at in rng.integers(0, len(can), TRIES).tolist():
    end = at + n
    if end <= len(can) and all(can[at:end]) and all(joins[at + 1 : end]):
      return at
  return None
