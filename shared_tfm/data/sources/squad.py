"""Questions about texts, in SQuAD format (1606.05250; 2.0: 1806.03822).

A file is JSON, or gzipped JSON:

    data[] . title, paragraphs[] . context, qas[] . id, question, is_impossible,
      answers[] . text, answer_start

where titles may be missing, and is_impossible, which only version 2 has. An
article, with all its questions, is in one split.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shared_tfm.config import Data
from shared_tfm.data.sources import records
from shared_tfm.data.sources.corpus import SPLITS
from shared_tfm.data.sources.texts import File
from shared_tfm.errors import BadInput, need, unknown

logger = logging.getLogger(__name__)

NEAR = 10  # characters that an answer may lie off its answer_start
NAMES = {'train': 'train', 'dev': 'validation', 'valid': 'validation'} | {
  'test': 'test'
}
WORDS = {list: 'list', str: 'text', int: 'number', (str, int): 'text'}


@dataclasses.dataclass(frozen=True)
class Question:
  """A question about a text.

  Attributes:
    id: what predictions know it by.
    question: as it is asked.
    context: the text.
    answers: every answer that is right; none where the text has none.
    span: the characters of the context, from and up to, that are the first
      answer which is found there; None: none is.
    impossible: whether it is right to say that there is no answer.
  """

  id: str
  question: str
  context: str
  answers: tuple[str, ...]
  span: tuple[int, int] | None
  impossible: bool


Articles = dict[str, list[Question]]


def questions(data: Data) -> dict[str, list[Question]]:
  """All questions, by split.

  Without splits of its own a source is cut into `data.parts`, by articles.

  Args:
    data: source, path and parts are read. A folder's files are called train*,
      dev* (or valid*) and test*, with .json or .json.gz behind.

  Returns:
    At least 'train' and 'validation'.

  Raises:
    BadInput: a source that is unknown, cannot be read, or is not in SQuAD
      format; or one that has no articles for every split.
  """
  name, _, dataset = data.source.partition(':')
  if name == 'squad' and not dataset:
    where, found = data.path, _files(data.path)
  elif name == 'tfds' and dataset:
    where, found = data.source, _prepared(dataset, data.path)
  else:
    raise unknown('source of questions', data.source, ['squad', 'tfds:NAME'])
  if 'validation' not in found and 'test' in found and 'train' in found:
    found['validation'] = found.pop('test')
  if len(found) == 1:
    (articles,) = found.values()
    found = _cut(articles, data, where)
  for split in SPLITS[:2]:
    need(split in found, f'{where} has no {split} split')
  _check_ids(found, where)
  return {
    split: [*itertools.chain(*articles.values())]
    for split, articles in found.items()
  }


def _cut(articles: Articles, data: Data, where: str) -> dict[str, Articles]:
  """Parts of the articles, in an order that is a hash of nothing but theirs."""
  names = sorted(articles, key=lambda name: _digest(articles[name]))
  ends = [len(names) * end // 100 for end in itertools.accumulate(data.shares)]
  found = {
    split: {name: articles[name] for name in names[start:end]}
    for split, (start, end) in zip(
      SPLITS, itertools.pairwise([0, *ends]), strict=False
    )
  }
  need(
    all(found.values()),
    f'{where} has {len(names)} articles, too few for data.parts {data.parts};'
    ' articles are not split',
  )
  return found


def _digest(article: Sequence[Question]) -> bytes:
  first = min(question.context for question in article)
  return hashlib.sha256(first.encode()).digest()


def _check_ids(found: Mapping[str, Articles], where: str) -> None:
  seen: set[str] = set()
  for article in itertools.chain(*(a.values() for a in found.values())):
    for question in article:
      need(
        question.id not in seen,
        f'{where} has two questions with the id {question.id}',
      )
      seen.add(question.id)


def _files(given: str) -> dict[str, Articles]:
  """What is in a file, or in the files of a folder, by split."""
  need(bool(given), "data.source 'squad' needs data.path, a file or a folder")
  root = pathlib.Path(given).expanduser()
  need(root.exists(), f'data.path {given}: no such file or folder')
  if not root.is_dir():
    return {'train': _collected(_entries(root), root)}
  paths: dict[str, list[pathlib.Path]] = {}
  for path in sorted(root.iterdir()):
    if path.name.lower().endswith(('.json', '.json.gz')):
      for beginning, split in NAMES.items():
        if path.name.lower().startswith(beginning):
          paths.setdefault(split, []).append(path)
  need(
    'train' in paths,
    f'data.path {given} has no file train*.json or train*.json.gz; to split one'
    ' file, name the file',
  )
  return {
    split: _collected(itertools.chain(*map(_entries, several)), root)
    for split, several in paths.items()
  }


# An entry is what TFDS has as a record: title, context, question, id, answers,
# and is_impossible of version 2.
Entry = dict[str, Any]


def _entries(path: pathlib.Path) -> Iterator[Entry]:
  """The questions of a file, its structure checked."""
  try:
    content = json.loads(File(path).read())
  except (json.JSONDecodeError, RecursionError) as error:
    raise BadInput(f'{path} is not JSON: {error}') from None
  for i, article in enumerate(_field(content, 'data', list, path, '')):
    at = f'data[{i}]'
    paragraphs = _field(article, 'paragraphs', list, path, at)
    for j, paragraph in enumerate(paragraphs):
      at = f'data[{i}].paragraphs[{j}]'
      context = _field(paragraph, 'context', str, path, at)
      for k, asked in enumerate(_field(paragraph, 'qas', list, path, at)):
        at = f'data[{i}].paragraphs[{j}].qas[{k}]'
        question = _field(asked, 'question', str, path, at)
        answers = _field(asked, 'answers', list, path, at)
        yield {
          'title': str(article.get('title') or f'{path.name} {i}'),
          'context': context,
          'question': question,
          'id': str(_field(asked, 'id', (str, int), path, at)),
          'is_impossible': asked.get('is_impossible', not answers),
          'answers': {
            name: [
              _field(answer, name, kind, path, f'{at}.answers[{n}]')
              for n, answer in enumerate(answers)
            ]
            for name, kind in (('text', str), ('answer_start', int))
          },
        }


def _field(entry: Any, key: str, kind: Any, path: pathlib.Path, at: str) -> Any:
  """What an entry has under a key."""
  value = entry.get(key) if isinstance(entry, dict) else None
  need(
    isinstance(value, kind),
    f'{path} is not in SQuAD format: {at or "it"} has no {WORDS[kind]} {key!r}',
  )
  return value


def _prepared(name: str, path: str) -> dict[str, Articles]:
  """What TFDS has prepared, by split."""
  prepared = records.open_tfds(name, path)
  for field in ('context', 'question', 'answers', 'id'):
    prepared.check_field(field, 'field of questions')
  known = [split for split in SPLITS if split in prepared.splits]
  return {
    split: _collected(prepared.split(split), f'tfds:{name} {split}')
    for split in known
  }


def _collected(entries: Iterable[Entry], where: Any) -> Articles:
  """Questions by article.

  Paragraphs that are alike are of one article, whatever their titles.
  """
  articles: Articles = {}
  of_context: dict[str, str] = {}
  moved = lost = count = 0
  for entry in entries:
    context, texts = entry['context'], tuple(entry['answers']['text'])
    _check_text(where, entry['id'], context, entry['question'], *texts)
    starts = map(int, entry['answers']['answer_start'])
    found = [
      (place, place + len(text.strip()), place != at)
      for text, start in zip(texts, starts, strict=True)
      for place, at in (_place(context, text, start),)
      if place >= 0
    ]
    impossible = bool(entry.get('is_impossible', not texts))
    article = of_context.setdefault(context, entry.get('title') or context)
    articles.setdefault(article, []).append(
      Question(
        entry['id'],
        entry['question'],
        context,
        texts,
        found[0][:2] if found else None,
        impossible,
      )
    )
    count += 1
    moved += bool(found) and found[0][2]
    lost += not found and not impossible
  need(count > 0, f'{where} has no questions')
  if moved:
    logger.warning(
      '%s: the answers to %d of %d questions are not at their answer_start,'
      ' but within %d characters of it, and are taken from there',
      *(where, moved, count, NEAR),
    )
  if lost:
    logger.warning(
      '%s: the answers to %d of %d questions are not at their answer_start,'
      ' nor near it; nothing is trained on these questions',
      *(where, lost, count),
    )
  return articles


def _place(context: str, answer: str, start: int) -> tuple[int, int]:
  """Where an answer is, less the blanks around it, and where it should be.

  The first is the nearest place; -1: it is not near where it should be.
  """
  text = answer.strip()
  at = start + len(answer) - len(answer.lstrip())
  near = range(max(0, at - NEAR), max(0, at + NEAR + 1))
  found = [place for place in near if text and context.startswith(text, place)]
  return min(found, key=lambda place: abs(place - at), default=-1), at


def _check_text(where: Any, name: str, *texts: str) -> None:
  try:
    ''.join(texts).encode()
  except UnicodeEncodeError as error:
    raise BadInput(
      f'{where}: the question {name} holds what is no character: {error.reason}'
    ) from None
