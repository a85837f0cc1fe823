"""Pairs of texts as examples, each as long as its bucket.

Shape letters: S length of a source, L length of a target. See examples.py for
what an example is; here it also has

    mask  (L,) bool   False at padding
    row   () int32    which pair of its split it is
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from shared_tfm.data import spool
from shared_tfm.data.examples import Example
from shared_tfm.data.sources.pairs import Pair
from shared_tfm.data.tokenizers import Tokenizer

GROUP = 4096  # pairs that are read and encoded at a time


class Bucket(NamedTuple):
  """A shape of batches: lengths of texts, and how many pairs."""

  source: int  # S
  target: int  # L
  rows: int


class PairExamples:
  """Encoded pairs: example i is a pure function of i.

  A source ends with eos, a target begins and ends with it. What is longer than
  the last bucket is cut, and has no end.

  Attributes:
    kinds: (pairs,) the bucket that each pair is in: the first that holds it.
    cut: how many pairs were too long.
  """

  def __init__(
    self,
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    buckets: Sequence[Bucket],
  ):
    """Encodes all pairs; their ids need not fit into memory.

    Args:
      pairs: the texts.
      tokenizer: of both.
      buckets: none smaller than the one before.
    """
    self.buckets, self.eos = buckets, tokenizer.eos
    self.sources = _Texts(buckets[-1].source, self.eos)
    self.targets = _Texts(buckets[-1].target, self.eos)
    for start in range(0, len(pairs), GROUP):
      group = [pairs[i] for i in range(len(pairs))[start : start + GROUP]]
      sources, targets = zip(*group, strict=True)
      self.sources.add(tokenizer.encode_all(sources))
      self.targets.add(tokenizer.encode_all(targets))
    self.kinds = np.maximum(
      np.searchsorted([b.source for b in buckets], self.sources.kept),
      np.searchsorted([b.target for b in buckets], self.targets.kept),
    )
    self.cut = int(np.sum(self.sources.long | self.targets.long))

  def __len__(self) -> int:
    return len(self.kinds)

  def __getitem__(self, index: int) -> Example:
    bucket = self.buckets[self.kinds[index]]
    read, written = self.sources[index], self.targets[index]
    source = np.full(bucket.source, self.eos, np.int32)
    source[: len(read)] = read
    tokens = np.full(bucket.target + 1, self.eos, np.int32)
    tokens[1 : len(written) + 1] = written
    mask = np.arange(bucket.target) < len(written)
    return {
      'inputs': tokens[:-1],
      'mask': mask,
      'targets': tokens[1:],
      'weights': mask.astype(np.float32),
      'source': source,
      'source_mask': np.arange(bucket.source) < len(read),
      'row': np.array(index, np.int32),
    }


class _Texts:
  """Texts with their ends, one behind the other."""

  def __init__(self, most: int, eos: int):
    self.most, self.eos = most, eos
    self._ids, self._lengths = spool.Spool(), spool.Spool()

  def add(self, texts: Iterable[np.ndarray]) -> None:
    ended = [np.append(ids, self.eos) for ids in texts]
    self._lengths.add(np.array([len(ids) for ids in ended]))
    self._ids.add(np.concatenate([ids[: self.most] for ids in ended]))

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """With the eos, before they are cut."""
    return self._lengths.row()

  @functools.cached_property
  def long(self) -> np.ndarray:
    return self.lengths > self.most

  @functools.cached_property
  def kept(self) -> np.ndarray:
    return np.minimum(self.lengths, self.most)

  @functools.cached_property
  def ends(self) -> np.ndarray:
    return np.cumsum(self.kept, dtype=np.int64)

  @functools.cached_property
  def whole(self) -> np.ndarray:
    return self._ids.row()

  def __getitem__(self, index: int) -> np.ndarray:
    end = self.ends[index]
    return self.whole[end - self.kept[index] : end]


def both_sides(pairs: Sequence[Pair]) -> Iterable[str]:
  """All texts of both sides, one after the other."""
  for i in range(len(pairs)):
    yield from pairs[i]
