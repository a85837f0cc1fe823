"""Tokenizers: text to ids and back, losing nothing.

    id            bytes, bpe, characters, words
    0 ...         the 256 bytes, or the learned pieces
    last but one  end of a document
    last          the mask of masked modelling

(Of one that came with weights, 'pretrained', the end is where its makers put
it, and there is no mask.)

Every id stands for some bytes, the two last for none. So text that looks like
a special token is text, and bits per byte can be counted for any tokenizer.
Words alone lose something, of text that is not prepared for them: how it is
spaced, and rare words. See vocabularies.py.
"""

import dataclasses
import functools
import itertools
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tokenizers as hf

from shared_tfm import files
from shared_tfm.data import spool, vocabularies
from shared_tfm.errors import BadInput, need, unknown

FILE = 'tokenizer.json'
CONFIG = 'config.json'  # what a run that has begun has in its folder
SPECIALS = (b'', b'')  # end of document, mask
SMALLEST = 256 + len(SPECIALS)
# What ends a document, by whose making a byte-level BPE is.
_ENDS = ('<|endoftext|>', '<|end_of_text|>', '</s>')
GROUP = 256  # texts that are encoded at a time
PIECE = 1 << 16  # characters of a long text that are taken at a time
_WORD = re.compile(r' (?=\S)')


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text to ids and back.

  Attributes:
    pieces: the bytes that each id stands for; none for the specials, the last.
    encode_all: texts to one array of ids, int32, for each; without specials.
    end: the id that ends a document, where the specials are not the last two
      and there is no mask; -1: they are.
  """

  pieces: tuple[bytes, ...] = dataclasses.field(repr=False)
  encode_all: Callable[[Iterable[str]], Iterator[np.ndarray]]
  end: int = -1

  @property
  def vocab_size(self) -> int:
    """How many ids there are, with the specials."""
    return len(self.pieces)

  @property
  def eos(self) -> int:
    """The id that ends a document, and fills up what is padded."""
    return len(self.pieces) - 2 if self.end < 0 else self.end

  @property
  def mask(self) -> int:
    """The id that hides a token in masked language modelling.

    Raises:
      BadInput: there is none.
    """
    need(
      self.end < 0,
      'data.tokenizer pretrained has no mask, which masked_lm needs',
    )
    return len(self.pieces) - 1

  @functools.cached_property
  def byte_lengths(self) -> np.ndarray:
    """(V,) int32: the bytes each id stands for; 0 for the specials."""
    return np.array([len(piece) for piece in self.pieces], np.int32)

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text, (tokens,) int32, without specials."""
    return next(self.encode_all([text]))

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of any ids, such as a model may say.

    Specials, and ids that only the model has, stand for nothing; bytes that
    are no UTF-8 come out as the replacement character.
    """
    known = [i for i in map(int, ids) if 0 <= i < len(self.pieces)]
    return b''.join(self.pieces[i] for i in known).decode(errors='replace')


def joined(texts: Iterable[str], tokenizer: Tokenizer) -> np.ndarray:
  """All texts, each with its eos, as one row, (tokens,) int32.

  Neither the texts nor the row need fit into memory, but each text does.
  """
  eos, row = np.array([tokenizer.eos], np.int32), spool.Spool()
  ahead = ((part, last) for text in texts for part, last in _parts(text))
  parts, lasts = itertools.tee(ahead)
  encoded = tokenizer.encode_all(part for part, _ in parts)
  for ids, (_, last) in zip(encoded, lasts, strict=True):
    row.add(ids)
    if last:
      row.add(eos)
  return row.row()


def _parts(text: str) -> Iterator[tuple[str, bool]]:
  """A text piece by piece, and whether each is the last.

  It is cut before a space and what is none. There no tokenizer here has a token
  that goes on: byte-level BPE never joins a space to what is before it, if
  what follows is none.
  """
  start = 0
  while found := _WORD.search(text, start + PIECE):
    yield text[start : found.start()], False
    start = found.start()
  yield text[start:], True


def make(
  name: str, texts: Iterable[str], vocab_size: int, folder: pathlib.Path
) -> Tokenizer:
  """The tokenizer of a run.

  Args:
    name: 'bytes', 'bpe', 'characters' or 'words'; or 'pretrained', which is
      not learned but lies in the folder.
    texts: what is learned from, unless the folder has a tokenizer already.
    vocab_size: the ids that the model has; what is learned makes the most of
      them.
    folder: where what is learned is kept, as tokenizer.json.

  Raises:
    BadInput: a vocabulary that is too small, or a file that is no tokenizer.
  """
  if name == 'bytes':
    return _fits(_bytes(), vocab_size, "the tokenizer 'bytes'")
  path, room = folder / FILE, vocab_size - len(SPECIALS)
  if name in vocabularies.KINDS:
    pieces, encode_all = vocabularies.make(name, texts, room, path)
    return _fits(Tokenizer((*pieces, *SPECIALS), encode_all), vocab_size, path)
  if name == 'pretrained':
    need(
      path.exists(),
      f'data.tokenizer pretrained needs {path}, which comes with the weights',
    )
    return _fits(_load(path, 'it cannot be used here'), vocab_size, path)
  if name != 'bpe':
    known = ['bytes', 'bpe', *vocabularies.KINDS, 'pretrained']
    raise unknown('tokenizer', name, known)
  need(
    vocab_size >= SMALLEST,
    f'model.vocab_size must be at least {SMALLEST} for the tokenizer'
    f" 'bpe', got {vocab_size}",
  )
  if not path.exists():
    _train(texts, room, path)
  return _fits(_load(path), vocab_size, path)


def take_over(donor: pathlib.Path, folder: pathlib.Path) -> None:
  """Copies what one run has learned of its text into the folder of another.

  Where the donor has learned no tokenizer, nothing is done, and where the other
  has begun, it has its own.

  Raises:
    BadInput: the folder has another tokenizer already.
  """
  source, target = donor / FILE, folder / FILE
  if not source.exists() or (target.exists() and (folder / CONFIG).exists()):
    return
  if target.exists():
    need(
      target.read_bytes() == source.read_bytes(),
      f'{target} is another tokenizer than {source}, which the weights are of',
    )
    return
  folder.mkdir(parents=True, exist_ok=True)
  files.replace(target, source.read_bytes())


def _fits(tokenizer: Tokenizer, vocab_size: int, what: object) -> Tokenizer:
  need(
    tokenizer.vocab_size <= vocab_size,
    f'model.vocab_size must be at least {tokenizer.vocab_size} for {what},'
    f' got {vocab_size}',
  )
  return tokenizer


def _bytes() -> Tokenizer:
  def encode_all(texts: Iterable[str]) -> Iterator[np.ndarray]:
    for text in texts:
      yield np.frombuffer(text.encode(), np.uint8).astype(np.int32)

  return Tokenizer((*(bytes([i]) for i in range(256)), *SPECIALS), encode_all)


def _train(texts: Iterable[str], size: int, path: pathlib.Path) -> None:
  """Trains a byte-level BPE of at most `size` pieces and saves it whole."""
  bpe = hf.Tokenizer(hf.models.BPE())
  bpe.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  trainer = hf.trainers.BpeTrainer(
    vocab_size=size,
    min_frequency=2,
    show_progress=False,
    initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
  )
  parts = (part for text in texts for part, _ in _parts(text))
  bpe.train_from_iterator(parts, trainer)
  path.parent.mkdir(parents=True, exist_ok=True)
  files.replace(path, bpe.to_str())


def _load(path: pathlib.Path, foreign: str = '') -> Tokenizer:
  """Reads a byte-level BPE.

  Args:
    path: of the file.
    foreign: what is said of a file that is none, where it is not of our making
      and so has special tokens of its own.
  """
  byte_of, ended = _byte_of(), -1
  try:
    bpe = hf.Tokenizer.from_file(str(path))
    ids = bpe.get_vocab()
    names = sorted(ids, key=ids.__getitem__)
    added = bpe.get_added_tokens_decoder() if foreign else {}
    special = {t.content for t in added.values() if t.special}
    pieces = tuple(
      b'' if name in special else bytes(byte_of[c] for c in name)
      for name in names
    )
    if not pieces or len({*pieces} & {bytes([i]) for i in range(256)}) < 256:
      raise ValueError('it has not all bytes')
    if foreign:
      if max(ids.values()) != len(names) - 1:
        raise ValueError('some ids stand for nothing')
      ended = next((ids[name] for name in _ENDS if name in special), -1)
      if ended < 0:
        raise ValueError(f'it has none of {", ".join(_ENDS)}')
  except Exception as error:  # the library raises nothing narrower
    rest = foreign or 'delete it and it will be trained anew'
    raise BadInput(
      f'{path} is not a byte-level BPE ({error!r}); {rest}'
    ) from None

  def encode_all(texts: Iterable[str]) -> Iterator[np.ndarray]:
    texts = iter(texts)
    while group := list(itertools.islice(texts, GROUP)):
      for found in bpe.encode_batch_fast(group, add_special_tokens=False):
        yield np.array(found.ids, np.int32)

  if foreign:
    return Tokenizer(pieces, encode_all, ended)
  return Tokenizer((*pieces, *SPECIALS), encode_all)


def _byte_of() -> dict[str, int]:
  """The byte behind each character of byte-level BPE (as GPT-2 has it).

  Printable bytes stand for themselves, the others for what follows U+00FF.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  return {chr(byte): byte for byte in printable} | {
    chr(256 + place): byte for place, byte in enumerate(others)
  }
