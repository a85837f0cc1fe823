"""Questions about texts as what an encoder reads, one passage at a time.

    eos, question, eos, a window of the text, eos, and eos as padding

Types are 0 up to the second eos and 1 from there on. The first position stands
for "there is no answer here" (BERT, 1810.04805, section 4.3). A text that is
too long is read in windows that overlap: its passages. Shape letters: L length,
T tokens of a text.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from shared_tfm.data.sources.squad import Question
from shared_tfm.data.tokenizers import Tokenizer

Example = dict[str, np.ndarray]
ADDED = 3  # eos in front, between and behind
NOWHERE = -1


@dataclasses.dataclass(frozen=True)
class Text:
  """A text in tokens, and which of its characters they are of.

  A character of several bytes may be of several tokens.

  Attributes:
    text: what it was.
    ids_T: its tokens, without specials.
    first_T: the character that each token starts in.
    last_T: the character that each token ends in.
  """

  text: str
  ids_T: np.ndarray
  first_T: np.ndarray
  last_T: np.ndarray

  def tokens(self, start: int, end: int) -> tuple[int, int]:
    """The first and last token of the characters from `start` up to `end`."""
    first = np.searchsorted(self.last_T, start, 'left')
    last = np.searchsorted(self.first_T, end - 1, 'right') - 1
    return int(first), int(last)

  def characters(self, first: int, last: int) -> str:
    """The characters that two tokens and those between them are of."""
    return self.text[self.first_T[first] : self.last_T[last] + 1]


def encoded(texts: Sequence[str], tokenizer: Tokenizer) -> list[Text]:
  """Texts in tokens."""
  made = []
  for text, ids_T in zip(texts, tokenizer.encode_all(texts), strict=True):
    utf8 = np.frombuffer(text.encode(), np.uint8)
    character = np.cumsum((utf8 & 0xC0) != 0x80) - 1  # of every byte
    lengths_T = tokenizer.byte_lengths[ids_T]
    ends_T = np.cumsum(lengths_T)
    first_T, last_T = character[ends_T - lengths_T], character[ends_T - 1]
    made.append(Text(text, ids_T, first_T, last_T))
  return made


@dataclasses.dataclass(frozen=True)
class Passages:
  """Every question with every window of its text, in order.

  Passage i is a dict of

    inputs   (L,) int32   see above
    mask     (L,) bool    False at padding
    types    (L,) int32   where the model has types
    allowed  (L,) bool    where an answer may start and end: the window of the
                          text, and the first position
    targets  (2,) int32   the first and last position of the answer; 0, 0 where
                          it is not, or not all of it, in the window
    weights  () float32   0 where nobody knows where the answer is
    row      () int32     i

  Attributes:
    questions: what is asked.
    asked: each one's tokens, not all of them where it is long.
    texts: each one's text.
    rows: (windows, 2): the question, and the token of its text that the window
      starts with.
    eos: the special that is put between.
    length: L.
    types: whether the model has types.
  """

  questions: Sequence[Question]
  asked: Sequence[np.ndarray]
  texts: Sequence[Text]
  rows: np.ndarray
  eos: int
  length: int
  types: bool

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Example:
    number, start = self.rows[index].tolist()
    before, count = self.place(index)
    asked = self.asked[number]
    tokens = np.full(self.length, self.eos, np.int32)
    tokens[1 : len(asked) + 1] = asked
    tokens[before : before + count] = self.texts[number].ids_T[start:][:count]
    places = np.arange(self.length)
    mask = places <= before + count
    inside = (places >= before) & (places < before + count)
    first, last, known = self.target(index)
    example = {
      'inputs': tokens,
      'mask': mask,
      'allowed': inside | (places == 0),
      'targets': np.array([first, last], np.int32),
      'weights': np.array(known, np.float32),
      'row': np.array(index, np.int32),
    }
    if self.types:
      example['types'] = (mask & (places >= before)).astype(np.int32)
    return example

  def place(self, index: int) -> tuple[int, int]:
    """The position of a window's first token of text, and how many it has."""
    number, start = self.rows[index].tolist()
    before = len(self.asked[number]) + ADDED - 1
    rest = len(self.texts[number].ids_T) - start
    return before, min(rest, self.length - before - 1)

  def target(self, index: int) -> tuple[int, int, bool]:
    """First and last position of the answer, and whether anybody knows."""
    number, start = self.rows[index].tolist()
    question = self.questions[number]
    if question.impossible or question.span is None:
      return 0, 0, question.impossible
    before, count = self.place(index)
    first, last = self.texts[number].tokens(*question.span)
    if first < start or last >= start + count:
      return 0, 0, True
    return first - start + before, last - start + before, True


def passages(
  questions: Sequence[Question],
  tokenizer: Tokenizer,
  length: int,
  question_len: int,
  stride: int,
  types: bool,
) -> Passages:
  """All windows of some questions.

  Every token of a text is in a window, and so is every answer of at most
  length - question_len - ADDED - stride + 1 tokens, as a whole.

  Args:
    questions: what is asked.
    tokenizer: for questions and texts.
    length: L.
    question_len: the tokens that are read of a question.
    stride: tokens from the start of a window to the next; at most what is
      left in the window beside a question.
    types: whether the model has types.
  """
  different = list(dict.fromkeys(q.context for q in questions))
  text_of = dict(zip(different, encoded(different, tokenizer), strict=True))
  texts = [text_of[question.context] for question in questions]
  asked = [
    ids[:question_len]
    for ids in tokenizer.encode_all([q.question for q in questions])
  ]
  rows = [
    (number, start)
    for number, (ids, text) in enumerate(zip(asked, texts, strict=True))
    for start in _starts(len(text.ids_T), length - len(ids) - ADDED, stride)
  ]
  return Passages(
    questions,
    asked,
    texts,
    np.array(rows, np.int32).reshape(-1, 2),
    tokenizer.eos,
    length,
    types,
  )


def _starts(tokens: int, room: int, stride: int) -> range:
  """Where windows start: the first that reaches the end is the last."""
  steps = -(-max(0, tokens - room) // stride)
  return range(0, steps * stride + 1, stride)


def thinned(made: Passages, share: float, seed: int = 0) -> Passages:
  """Windows to train on: of those that miss the answer, only a share.

  Where a text has many windows, nearly all of them miss the answer, and "not
  here" would be all that is learned (1901.08634 keeps 1 in 50).
  Questions without an answer keep all of theirs, and those whose answer nobody
  knows the place of have none.
  """
  drawn = np.random.default_rng(seed).random(len(made)) < share
  kept = []
  for row, (number, _) in enumerate(made.rows.tolist()):
    first, _, known = made.target(row)
    all_of_them = first > 0 or made.questions[number].impossible
    if known and (all_of_them or drawn[row]):
      kept.append(row)
  return dataclasses.replace(made, rows=made.rows[kept])
