"""SQuAD's format, and its scores: read whole, or one clear line."""

import gzip
import itertools
import json
import os
import pathlib
import random

import numpy as np
import pytest
import squad_peers
import tensorflow_datasets as tfds

from shared_tfm import config
from shared_tfm.data.sources import squad
from shared_tfm.errors import BadInput
from shared_tfm.tasks import squad_score

needs_data = pytest.mark.skipif(
  'SHARED_TFM_DATA' not in os.environ,
  reason='SHARED_TFM_DATA names no folder of public data sets',
)
CONTEXT = 'Zürich lies on the Limmat. In Zürich one eats Züpfe.'
ASKED = {
  'id': 7,
  'question': 'Where does one eat Züpfe?',
  'answers': [{'text': 'Zürich', 'answer_start': 30}],
}
NOT_THERE = {
  'id': 'b',
  'question': 'Who?',
  'answers': [],
  'is_impossible': True,
  'plausible_answers': [{'text': 'one', 'answer_start': 37}],
}


def article(context, *asked, title=''):
  return {'title': title, 'paragraphs': [{'context': context, 'qas': asked}]}


def about(i, context=None, title=''):
  """An article with one question, its answer in front."""
  asked = {
    'id': f'q{i}',
    'question': f'{i}?',
    'answers': [{'text': f'{i}', 'answer_start': 0}],
  }
  return article(context or f'{i} is a number', asked, title=title)


def write(path, *articles, version='1.1'):
  content = json.dumps({'version': version, 'data': articles}).encode()
  zipped = path.suffix == '.gz'
  path.write_bytes(gzip.compress(content) if zipped else content)
  return path


def read(path, parts='50/50', source='squad'):
  given = config.Data(source=source, path=str(path), parts=parts)
  return squad.questions(given)


def everything(found):
  return [*itertools.chain(*found.values())]


def by_id(found):
  return {question.id: question for question in everything(found)}


# What is read.


@pytest.mark.parametrize('name', ['squad.json', 'squad.json.gz'])
def test_a_file(tmp_path, name):
  path = write(tmp_path / name, article(CONTEXT, ASKED, NOT_THERE), about(1))
  found = by_id(read(path))
  assert sorted(found) == ['7', 'b', 'q1']
  assert found['7'] == squad.Question(
    '7', ASKED['question'], CONTEXT, ('Zürich',), (30, 36), False
  )
  assert found['b'] == squad.Question('b', 'Who?', CONTEXT, (), None, True)


def test_the_first_answer_is_the_target_and_all_are_right(tmp_path):
  answers = [
    {'text': 'nowhere', 'answer_start': 5},
    {'text': 'the Limmat', 'answer_start': 15},
    {'text': 'Zürich', 'answer_start': 0},
  ]
  asked = {'id': 'x', 'question': 'What?', 'answers': answers}
  found = by_id(
    read(write(tmp_path / 's.json', article(CONTEXT, asked), about(1)))
  )
  assert found['x'].answers == ('nowhere', 'the Limmat', 'Zürich')
  assert CONTEXT[slice(*found['x'].span)] == 'the Limmat'


@pytest.mark.parametrize(
  ('text', 'start', 'span'),
  [
    ('Limmat', 19, (19, 25)),
    (' Limmat. ', 18, (19, 26)),  # blanks are no part of an answer
    ('Zürich', 25, (30, 36)),  # of two places the nearer
    ('Zürich', 10, (0, 6)),
    ('Zürich', -3, (0, 6)),
    ('Limmat', 30, None),  # too far
    ('Limmat', 4000, None),
    ('Aare', 19, None),
    ('', 19, None),
  ],
)
def test_answers_that_are_not_where_they_should_be(
  tmp_path, caplog, text, start, span
):
  answers = [{'text': text, 'answer_start': start}]
  asked = {'id': 'x', 'question': 'What?', 'answers': answers}
  path = write(tmp_path / 's.json', article(CONTEXT, asked), about(1))
  found = by_id(read(path))['x']
  assert found.span == span
  assert not found.impossible
  said = [record.getMessage() for record in caplog.records]
  if span is None:
    (line,) = said
    assert f'{path}: the answers to 1 of 2 questions are not at' in line
    assert 'nothing is trained on' in line
  elif CONTEXT.startswith(text, start):
    assert not said
  else:
    (line,) = said
    assert 'the answers to 1 of 2 questions' in line
    assert 'taken from there' in line


def test_a_folder(tmp_path):
  write(tmp_path / 'train-a.json', about(1), about(2))
  write(tmp_path / 'train-b.json.gz', about(3))
  write(tmp_path / 'Dev-v1.1.json', about(4))
  (tmp_path / 'README.md').write_text('not data')
  found = read(tmp_path)
  assert [q.id for q in found['train']] == ['q1', 'q2', 'q3']
  assert [q.id for q in found['validation']] == ['q4']
  assert set(found) == {'train', 'validation'}
  write(tmp_path / 'test.json', about(5))
  assert [q.id for q in read(tmp_path)['test']] == ['q5']


def test_a_folder_with_training_files_alone_is_cut(tmp_path):
  write(tmp_path / 'train.json', *map(about, range(4)))
  found = read(tmp_path)
  assert [len(found[split]) for split in ('train', 'validation')] == [2, 2]


# Splits.


def test_no_article_is_in_two_splits(tmp_path):
  """Nor is a text, though it may be in articles of several titles."""
  draw = random.Random(0)
  articles = [
    about(i, f'{i} {draw.randint(0, 30)}', title=f'{draw.randint(0, 25)}')
    for i in range(60)
  ]
  copies = [
    about(60 + i, articles[i]['paragraphs'][0]['context'], title=f'copy {i}')
    for i in range(10)
  ]
  title_of = {
    a['paragraphs'][0]['context']: a['title'] for a in reversed(articles)
  }
  path = write(tmp_path / 's.json', *articles, *copies)
  found = read(path, '60/20/20')
  assert sum(map(len, found.values())) == 70
  contexts = {s: {q.context for q in qs} for s, qs in found.items()}
  titles = {s: {title_of[c] for c in cs} for s, cs in contexts.items()}
  for one, other in itertools.combinations(found, 2):
    assert not contexts[one] & contexts[other]
    assert not titles[one] & titles[other]
  assert len(titles['train']) == len(set(title_of.values())) * 60 // 100


def test_the_cut_depends_on_the_articles_alone(tmp_path):
  articles = [about(i) for i in range(40)]
  first = read(write(tmp_path / 'a.json', *articles), '80/10/10')
  random.Random(1).shuffle(articles)
  again = read(write(tmp_path / 'other.json.gz', *articles), '80/10/10')
  assert {s: {q.id for q in qs} for s, qs in first.items()} == {
    s: {q.id for q in qs} for s, qs in again.items()
  }
  assert [len(qs) for qs in first.values()] == [32, 4, 4]
  held = {q.id for q in first['validation']}
  assert held != {f'q{i}' for i in range(32, 36)}  # not simply the last


# What cannot be read.


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    ('{"data": [', 's.json is not JSON: '),
    ('[1, 2]', "it has no list 'data'"),
    ('{"version": "1.1"}', "it has no list 'data'"),
    ('{"data": [{"title": "x"}]}', "data[0] has no list 'paragraphs'"),
    ('{"data": [7]}', "data[0] has no list 'paragraphs'"),
    (
      '{"data": [{"paragraphs": [{"qas": []}]}]}',
      "data[0].paragraphs[0] has no text 'context'",
    ),
    (
      '{"data": [{"paragraphs": [{"context": "x"}]}]}',
      "data[0].paragraphs[0] has no list 'qas'",
    ),
    (
      '{"data": [{"paragraphs": [{"context": "x", "qas": [{"id": 1}]}]}]}',
      "data[0].paragraphs[0].qas[0] has no text 'question'",
    ),
    ('{"data": []}', 's.json has no questions'),
  ],
)
def test_what_is_not_squad(tmp_path, content, said):
  path = tmp_path / 's.json'
  path.write_text(content)
  with pytest.raises(BadInput) as error:
    read(path)
  assert said in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'id': None}, "qas[0] has no text 'id'"),
    ({'answers': 'Zürich'}, "qas[0] has no list 'answers'"),
    (
      {'answers': [{'text': 'Zürich'}]},
      "qas[0].answers[0] has no number 'answer_start'",
    ),
    (
      {'answers': [{'text': 'Zürich', 'answer_start': '30'}]},
      "qas[0].answers[0] has no number 'answer_start'",
    ),
    ({'id': 'q1'}, 'has two questions with the id q1'),
    ({'question': 'half \ud83d'}, 'the question 7 holds what is no character'),
  ],
)
def test_questions_that_are_not_squad(tmp_path, change, said):
  path = write(tmp_path / 's.json', article(CONTEXT, ASKED | change), about(1))
  with pytest.raises(BadInput) as error:
    read(path)
  assert said in str(error.value)


def test_other_bad_sources(tmp_path):
  def said(path, **fields):
    with pytest.raises(BadInput) as error:
      read(path, **fields)
    assert '\n' not in str(error.value)
    return str(error.value)

  whole = write(tmp_path / 's.json.gz', *map(about, range(50)))
  cut = tmp_path / 'cut.json.gz'
  cut.write_bytes(whole.read_bytes()[:-40])
  assert f'{cut} cannot be read' in said(cut)
  assert 'no such file or folder' in said(tmp_path / 'none.json')
  assert 'needs data.path' in said('')
  assert 'has no file train*.json' in said(tmp_path)
  alone = write(tmp_path / 'alone.json', about(1))
  assert 'has 1 articles, too few for data.parts 50/50' in said(alone)
  assert "unknown source of questions 'local'" in said(whole, source='local')


# TFDS.


class Asking(tfds.core.GeneratorBasedBuilder):
  """Records as TFDS's squad has them; splits and version as asked for."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [  # noqa: RUF012
    tfds.core.BuilderConfig(name=name) for name in ('v1', 'v2', 'one')
  ]

  def _info(self):
    f = tfds.features
    fields = {
      'id': np.str_,
      'title': f.Text(),
      'context': f.Text(),
      'question': f.Text(),
      'answers': f.Sequence({'text': f.Text(), 'answer_start': np.int32}),
    }
    if self.builder_config.name == 'v2':
      fields['is_impossible'] = np.bool_
    return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(fields))

  def _split_generators(self, manager):
    if self.builder_config.name == 'one':
      return {'test': self._generate_examples(0)}
    return {
      'train': self._generate_examples(0),
      'validation': self._generate_examples(6),
    }

  def _generate_examples(self, first):
    for i in range(first, first + 6):
      two = self.builder_config.name == 'v2'
      entry = {
        'id': f'q{i}',
        'title': f'{i % 3}',
        'context': f'é {i}',
        'question': f'{i}?',
        'answers': []
        if two and i % 2
        else [{'text': f'{i}', 'answer_start': 2}],
      }
      yield i, entry | ({'is_impossible': bool(i % 2)} if two else {})


@pytest.mark.parametrize('version', ['v1', 'v2', 'one'])
def test_records_of_tfds(tmp_path, version):
  tfds.disable_progress_bar()
  Asking(
    config=version, data_dir=tmp_path, file_format='array_record'
  ).download_and_prepare()
  found = read(tmp_path, '60/40', f'tfds:asking/{version}')
  if version == 'one':  # cut by titles, of which there are three
    assert sorted(map(len, found.values())) == [2, 4]
    for questions in found.values():
      numbers = {int(q.id[1:]) for q in questions}
      assert {(i + 3) % 6 for i in numbers} == numbers
  else:
    assert {q.id for q in found['train']} == {f'q{i}' for i in range(6)}
    assert {q.id for q in found['validation']} == {
      f'q{i}' for i in range(6, 12)
    }
  for question in everything(found):
    number = question.id[1:]
    gone = version == 'v2' and int(number) % 2 == 1
    assert question.impossible == gone
    assert question.answers == (() if gone else (number,))
    if not gone:
      assert question.context[slice(*question.span)] == number


# Real data.


@needs_data
@pytest.mark.parametrize(
  ('name', 'count', 'moved'),
  [
    ('covidqa/200423_covidQA.json.gz', 1380, 234),
    ('xquad/xquad.en.json', 1190, 0),
  ],
)
def test_real_files(caplog, name, count, moved):
  found = read(pathlib.Path(os.environ['SHARED_TFM_DATA']) / name, '90/10')
  questions = everything(found)
  assert len(questions) == count
  for question in questions:
    told = question.context[slice(*question.span)]
    assert told in [answer.strip() for answer in question.answers]
  said = ' '.join(record.getMessage() for record in caplog.records)
  assert (f'{moved} of {count} questions' in said) == bool(moved)
  assert 'nothing is trained' not in said
  references = {q.id: q.answers[0] for q in questions}
  perfect = {'exact_match': 100.0, 'f1': 100.0}
  assert squad_score.scores(questions, references) == perfect


@needs_data
def test_xquad_of_tfds_is_the_file(tmp_path):
  """By TFDS's own builder; even the cut is the same."""
  from tensorflow_datasets.question_answering.xquad import Xquad

  tfds.disable_progress_bar()
  folder = pathlib.Path(os.environ['SHARED_TFM_DATA']) / 'xquad'
  manual = tfds.download.DownloadConfig(
    manual_dir=str(folder), try_download_gcs=False
  )
  builder = Xquad(config='en', data_dir=tmp_path, file_format='array_record')
  builder.download_and_prepare(download_config=manual)
  of_tfds = read(tmp_path, '90/10', 'tfds:xquad/en')
  of_file = read(folder / 'xquad.en.json', '90/10')
  assert of_tfds.keys() == of_file.keys()
  for split, questions in of_tfds.items():
    expected = {question.id: question for question in of_file[split]}
    assert {question.id: question for question in questions} == expected


# Scores, by hand.


@pytest.mark.parametrize(
  ('text', 'left'),
  [
    ('The  Cat, a dog & an ox!', 'cat dog ox'),
    ('theatre-goer', 'theatregoer'),
    ("the U.S.A.'s", 'usas'),
    ('the "a" (an)', ''),
    ('a.b', 'ab'),
    ('Élan – the end', 'élan – end'),
  ],
)
def test_what_of_an_answer_is_compared(text, left):
  assert squad_score.normalized(text) == left


def asked(name, *answers):
  return squad.Question(name, '', '', answers, None, not answers)


def test_scores_of_version_1():
  questions = [
    asked('right', 'the Denver Broncos', 'Broncos'),
    asked('half', 'Santa Clara, California'),  # 2 of 3 words, 2 of 2: 4 / 5
    asked('twice', 'to be or not to be'),  # same: to, be; 2 * 2 / (6 + 3)
    asked('wrong', 'gold'),
    asked('best', 'x y', 'x y z w'),  # 2 * 1 / 3 before 2 * 1 / 5
    asked('nothing', 'the'),  # equal, but no word is the same
  ]
  given = {
    'right': 'Denver Broncos.',
    'half': 'Santa Clara',
    'twice': 'be to golden',
    'wrong': 'golden',
    'best': 'x',
    'nothing': 'a',
  }
  f1 = 1 + 4 / 5 + 4 / 9 + 0 + 2 / 3 + 0
  found = squad_score.scores(questions, given)
  assert found == pytest.approx(
    {'exact_match': 100 * 2 / 6, 'f1': 100 * f1 / 6}
  )


def test_scores_of_version_2():
  questions = [
    asked('right', 'France', 'in France'),
    asked('given up', 'France'),
    asked('left', 'the'),  # no word is left: as if there were no answer
    asked('gone'),
    asked('made up'),
  ]
  given = {
    'right': 'in the France',
    'given up': '',
    'left': '',
    'gone': '',
    'made up': 'France',
  }
  assert squad_score.scores(questions, given) == pytest.approx(
    {
      'exact_match': 100 * 3 / 5,
      'f1': 100 * 3 / 5,
      'answerable_exact_match': 100 * 2 / 3,
      'answerable_f1': 100 * 2 / 3,
      'unanswerable_f1': 50.0,
    }
  )
  assert squad_score.scores([], {}) == {}


@pytest.mark.parametrize('version', [1, 2])
def test_scores_equal_those_of_two_libraries(version):
  """See squad_peers.py."""
  cases = json.loads(squad_peers.GOLDEN.read_text())
  told = [(case['given'], case['answers']) for case in cases]
  assert told == squad_peers.cases()
  compared = 0
  for case in cases:
    given, answers = case['given'], case['answers']
    if version == 1 and not squad_score.normalized(given):
      continue  # torchmetrics has version 2's rule of answers without a word
    found = (
      100 * max(squad_score.exact(given, answer) for answer in answers),
      100
      * max(squad_score.f1(given, answer, version == 2) for answer in answers),
    )
    assert found == pytest.approx(case[f'version_{version}'], abs=1e-4), case
    compared += 1
  assert compared > 200
