"""Labelled texts as a network reads them, and how one text or two are laid out.

Shape letters: L length.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from shared_tfm.data.sources.items import Item
from shared_tfm.data.tokenizers import Tokenizer


class Encoded(NamedTuple):
  """The tokens of each text of an item, and its label."""

  parts: list[np.ndarray]
  label: float | int | None


def encoded(
  items: Sequence[Item], tokenizer: Tokenizer, streams: bool
) -> Sequence[Encoded]:
  """Items in tokens: one by one where they stream, else all at once."""
  if streams:
    return _Encoding(items, tokenizer)
  each = tokenizer.encode_all([text for item in items for text in item.texts])
  return [
    Encoded(list(itertools.islice(each, len(item.texts))), item.label)
    for item in items
  ]


@dataclasses.dataclass(frozen=True)
class _Encoding(Sequence[Encoded]):
  items: Sequence[Item]
  tokenizer: Tokenizer

  def __len__(self) -> int:
    return len(self.items)

  def __getitem__(self, index: Any) -> Any:
    item = self.items[index]
    return Encoded(list(self.tokenizer.encode_all(item.texts)), item.label)


@dataclasses.dataclass(frozen=True)
class Examples:
  """Items as a network reads them.

  One text is read as [eos] text [eos], two as [eos] one [eos] other [eos]; of
  what is too long the longer text loses its last token, again and again
  (1810.04805, released code). Behind that stands padding. Types are 0 up to
  the second eos, and 1 for the other text.

  Attributes:
    items: in tokens.
    length: L.
    eos: the separator.
    typed: whether there are types.
    number: whether labels are numbers.
  """

  items: Sequence[Encoded]
  length: int
  eos: int
  typed: bool
  number: bool

  def __len__(self) -> int:
    return len(self.items)

  @property
  def cut(self) -> int:
    """How many items are too long; all of them are read for that."""
    return sum(
      sum(map(len, item.parts)) > self.length - len(item.parts) - 1
      for item in self.items
    )

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    item = self.items[int(index)]
    inputs, types, mask = laid_out(item.parts, self.length, self.eos)
    label = 0 if item.label is None else item.label
    kind = np.float32 if self.number else np.int32
    typed = {'types': types} if self.typed else {}
    return {
      'inputs': inputs,
      'mask': mask,
      **typed,
      'targets': np.array(label, kind),
      'weights': np.array(item.label is not None, np.float32),
      'row': np.array(index, np.int32),
    }


def laid_out(
  parts: Sequence[np.ndarray], length: int, eos: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """One text or two between separators: (L,) tokens, types, and a mask.

  Args:
    parts: the tokens of each text.
    length: L, more than the separators take.
    eos: the separator, and what stands at padding.
  """
  kept = truncated([len(part) for part in parts], length - len(parts) - 1)
  inputs = np.full(length, eos, np.int32)
  types = np.zeros(length, np.int32)
  end = 1
  for number, (part, size) in enumerate(zip(parts, kept, strict=True)):
    inputs[end : end + size] = part[:size]
    types[end : end + size + 1] = number
    end += size + 1
  return inputs, types, np.arange(length) < end


def truncated(lengths: Sequence[int], room: int) -> list[int]:
  """What is kept of one text or two, the longer being shortened first.

  Of two that are equally long, the second is.
  """
  if len(lengths) == 1:
    return [min(lengths[0], room)]
  first, second = lengths
  kept = min(first, max(room - second, room - room // 2))
  return [kept, min(second, room - kept)]
