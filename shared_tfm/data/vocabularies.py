"""Tokenizers that know a list of pieces: characters, and words.

Characters: one id for each character of the training text, by code point. Where
the vocabulary has room for them, bytes follow, those that are no such character
already, and spell whatever else there is. Where it has not, a character that
the training text lacks cannot be told.

Words: id 0 is the end of a line, id 1 is <unk>; the words of the training text
follow, the most frequent first, as many as there is room for. Words are what
has white space around it; others than these are <unk>. A word stands for a
space and itself, and the end of a line for a space and a newline, as WikiText
(1609.07843) is written: of that, whose rare words read <unk>, nothing is lost.
The 33,278 pieces of WikiText-2 are those of its paper, the end of a line among
them.
"""

import collections
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from shared_tfm import files
from shared_tfm.errors import BadInput, need

KINDS = ('characters', 'words')
LINE, UNKNOWN = '\n', '<unk>'  # the first two words
UNICODE = 0x110000  # code points

EncodeAll = Callable[[Iterable[str]], Iterator[np.ndarray]]


def make(
  kind: str, texts: Iterable[str], room: int, path: pathlib.Path
) -> tuple[tuple[bytes, ...], EncodeAll]:
  """The vocabulary that a file has, which is learned if there is none.

  Args:
    kind: one of KINDS.
    texts: to learn from.
    room: how many pieces there may be.
    path: the file.

  Returns:
    The bytes that each id stands for, and what turns texts into ids.

  Raises:
    BadInput: not enough room, or a file that is no such vocabulary.
  """
  if not path.exists():
    learn = _characters if kind == 'characters' else _words
    pieces = learn(texts, room)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, json.dumps({kind: pieces}, ensure_ascii=False))
  pieces = _load(kind, path)
  if kind == 'characters':
    return _spelled(pieces, room)
  return tuple(f' {piece}'.encode() for piece in pieces), _in_words(pieces)


def count_words(text: str) -> int:
  """How many words a text has, the end of each line counted as one.

  This is what perplexity per word is per, whatever the tokenizer.
  """
  return len(text.split()) + text.count('\n')


def _characters(texts: Iterable[str], room: int) -> list[str]:
  seen: set[str] = set()
  for text in texts:
    seen.update(text)
  found = sorted(seen)
  need(
    len(found) <= room,
    f'model.vocab_size must be at least {len(found) + 2} for the'
    f' {len(found)} characters of the training text, got {room + 2}',
  )
  return found


def _words(texts: Iterable[str], room: int) -> list[str]:
  need(
    room >= 2,
    f"model.vocab_size must be at least 4 for the tokenizer 'words', got"
    f' {room + 2}',
  )
  counts: collections.Counter[str] = collections.Counter()
  for text in texts:
    counts.update(word for line in _lines(text) for word in line)
  del counts[LINE], counts[UNKNOWN]
  ranked = sorted(counts, key=lambda word: (-counts[word], word))
  return [LINE, UNKNOWN, *ranked[: room - 2]]


def _load(kind: str, path: pathlib.Path) -> list[str]:
  try:
    pieces = json.loads(path.read_text(encoding='utf-8'))[kind]
    if not isinstance(pieces, list) or not all(map(_is_text, pieces)):
      raise ValueError('it is no list of text')
    if not pieces or len(set(pieces)) < len(pieces):
      raise ValueError('it has pieces twice, or none')
    if kind == 'characters' and {*map(len, pieces)} != {1}:
      raise ValueError('not all are single characters')
    if kind == 'words' and pieces[:2] != [LINE, UNKNOWN]:
      raise ValueError('it does not start with the end of a line and <unk>')
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise BadInput(
      f'{path} is not a list of {kind} ({error!r}); delete it and it will be'
      ' made anew'
    ) from None
  return pieces


def _is_text(piece: object) -> bool:
  return isinstance(piece, str) and piece != ''


def _spelled(
  characters: list[str], room: int
) -> tuple[tuple[bytes, ...], EncodeAll]:
  """Characters, and bytes for others where there is room."""
  pieces = [character.encode() for character in characters]
  others = [bytes([i]) for i in range(256) if bytes([i]) not in {*pieces}]
  if len(pieces) + len(others) <= room:
    pieces += others
  id_of = {piece: i for i, piece in enumerate(pieces)}
  ids_U = np.full(UNICODE, -1, np.int32)
  ids_U[[ord(character) for character in characters]] = np.arange(
    len(characters)
  )

  def spell(character: str) -> list[int]:
    need(
      len(pieces) > len(characters),
      f'the training text has no {character!r}; to spell it in bytes,'
      f' model.vocab_size must be at least {len(pieces) + len(others) + 2}',
    )
    return [id_of[bytes([byte])] for byte in character.encode()]

  def encode_all(texts: Iterable[str]) -> Iterator[np.ndarray]:
    for text in texts:
      ids = ids_U[np.frombuffer(text.encode('utf-32-le'), np.uint32)]
      if (ids < 0).any():
        parts = (
          [known] if known >= 0 else spell(character)
          for known, character in zip(ids.tolist(), text, strict=True)
        )
        ids = np.fromiter(itertools.chain.from_iterable(parts), np.int32)
      yield ids

  return tuple(pieces), encode_all


def _in_words(pieces: list[str]) -> EncodeAll:
  id_of = {piece: i for i, piece in enumerate(pieces)}
  unknown = id_of[UNKNOWN]

  def encode_all(texts: Iterable[str]) -> Iterator[np.ndarray]:
    for text in texts:
      found = (
        id_of.get(word, unknown) for line in _lines(text) for word in line
      )
      yield np.fromiter(found, np.int32)

  return encode_all


def _lines(text: str) -> Iterator[list[str]]:
  """The words of each line, with its end."""
  *whole, last = text.split('\n')
  for line in whole:
    yield [*line.split(), LINE]
  yield last.split()
