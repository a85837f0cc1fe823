"""Questions about texts: what is read, what is learned, what is answered."""

import functools
import itertools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm import config, tasks
from shared_tfm.__main__ import main
from shared_tfm.data import tokenizers
from shared_tfm.data.passages import ADDED, encoded, passages, thinned
from shared_tfm.data.sources import squad
from shared_tfm.errors import BadInput
from shared_tfm.tasks import spans, squad_score
from shared_tfm.tasks.questions import FORBIDDEN
from shared_tfm.train import gradient
from shared_tfm.train import state as states
from shared_tfm.train import step as steps
from shared_tfm.train.loop import train

EOS = 256  # of the tokenizer 'bytes'
LETTERS = 'abc é߷한🙂\n'  # one to four bytes each


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('tokenizer')


def tokenizer(name, folder):
  """Bytes, or a BPE that joins some of LETTERS and breaks others."""
  draw = random.Random(0)
  texts = [''.join(draw.choices(LETTERS, k=60)) for _ in range(20)]
  return tokenizers.make(name, texts, 300, folder)


def asked(context, span, question='?', name='x', impossible=False):
  answers = () if impossible else (context[slice(*span)] if span else 'lost',)
  return squad.Question(name, question, context, answers, span, impossible)


def random_questions(count, most, seed=0):
  """About texts of up to `most` characters, no answer with blanks around it."""
  draw, made = random.Random(seed), []
  while len(made) < count:
    context = ''.join(draw.choices(LETTERS, k=draw.randint(1, most)))
    start = draw.randrange(len(context))
    end = min(len(context), start + draw.randint(1, 12))
    if context[start:end].strip() == context[start:end] != '':
      question = ''.join(draw.choices(LETTERS, k=draw.randint(0, 12)))
      made.append(asked(context, (start, end), question, f'q{len(made)}'))
  return made


# Tokens and characters.


@pytest.mark.parametrize('name', ['bytes', 'bpe'])
def test_tokens_and_the_characters_they_are_of(folder, name):
  made = tokenizer(name, folder)
  questions = random_questions(40, 30)
  texts = encoded([q.context for q in questions], made)
  for question, text in zip(questions, texts, strict=True):
    starts = list(itertools.accumulate(len(c.encode()) for c in text.text))
    at = 0
    for token, first, last in zip(
      text.ids_T.tolist(), text.first_T, text.last_T, strict=True
    ):
      size = len(made.pieces[token])
      assert first == sum(end <= at for end in starts)
      assert last == sum(end <= at + size - 1 for end in starts)
      at += size
    first, last = text.tokens(*question.span)
    told = text.characters(first, last)
    assert question.answers[0] in told
    if name == 'bytes':
      assert told == question.answers[0]
    for fewer in ((first + 1, last), (first, last - 1)):  # it is the shortest
      inside = made.decode(text.ids_T[fewer[0] : fewer[1] + 1])
      assert question.answers[0] not in inside


def test_a_text_without_tokens(folder):
  (text,) = encoded([''], tokenizer('bytes', folder))
  assert len(text.ids_T) == len(text.first_T) == len(text.last_T) == 0


# Windows.


def test_what_a_window_is(folder):
  made = passages(
    [asked('vwxyz', (2, 4), 'ab?')], tokenizer('bytes', folder), 9, 3, 2, True
  )
  assert made.rows.tolist() == [[0, 0], [0, 2]]
  one, two = made[0], made[1]
  ids = [EOS, *b'ab?', EOS]
  assert one['inputs'].tolist() == [*ids, *b'vwx', EOS]
  assert two['inputs'].tolist() == [*ids, *b'xyz', EOS]
  assert one['types'].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
  assert one['targets'].tolist() == [0, 0]  # x is in it, y is not
  assert two['targets'].tolist() == [5, 6]
  for row, example in enumerate((one, two)):
    assert np.flatnonzero(example['allowed']).tolist() == [0, 5, 6, 7]
    assert example['mask'].all()
    assert example['weights'] == 1
    assert example['row'] == row
  short = passages(
    [asked('vw', (0, 1), 'ab?')], tokenizer('bytes', folder), 9, 2, 2, False
  )
  assert len(short) == 1
  assert short[0]['inputs'].tolist() == [EOS, *b'ab', EOS, *b'vw', *[EOS] * 3]
  assert np.flatnonzero(short[0]['mask']).tolist() == [0, 1, 2, 3, 4, 5, 6]
  assert np.flatnonzero(short[0]['allowed']).tolist() == [0, 4, 5]
  assert short[0]['targets'].tolist() == [4, 4]
  assert 'types' not in short[0]


@pytest.mark.parametrize('name', ['bytes', 'bpe'])
@pytest.mark.parametrize(('length', 'stride'), [(24, 5), (24, 13), (40, 1)])
def test_every_token_and_every_short_answer_is_in_a_window(
  folder, name, length, stride
):
  made = tokenizer(name, folder)
  question_len = 8
  questions = random_questions(30, 80, seed=stride)
  held = passages(questions, made, length, question_len, stride, True)
  sure = length - question_len - ADDED - stride + 1
  seen = [np.zeros(len(text.ids_T), bool) for text in held.texts]
  whole = [False] * len(questions)
  for row in range(len(held)):
    example = held[row]
    number, start = held.rows[row].tolist()
    before, count = held.place(row)
    assert count > 0
    seen[number][start : start + count] = True
    inputs, text = example['inputs'], held.texts[number]
    np.testing.assert_array_equal(
      inputs[before : before + count], text.ids_T[start : start + count]
    )
    assert {*inputs[[0, before - 1, before + count]].tolist()} == {made.eos}
    assert example['mask'].sum() == before + count + 1 <= length
    first, last = example['targets'].tolist()
    if first:
      whole[number] = True
      shift = start - before
      told = text.characters(first + shift, last + shift)
      assert questions[number].answers[0] in told
      assert example['allowed'][[first, last]].all()
  for number, text in enumerate(held.texts):
    assert seen[number].all()
    first, last = text.tokens(*questions[number].span)
    if last - first < sure:
      assert whole[number]
  assert sum(whole) > 15


def test_questions_without_an_answer_and_those_nobody_knows(folder):
  questions = [
    asked('vwxyz' * 4, (2, 4), name='known'),
    asked('abc' * 4, None, name='unknown'),
    asked('abc' * 4, None, name='gone', impossible=True),
  ]
  made = passages(questions, tokenizer('bytes', folder), 12, 4, 2, False)
  targets = {name: set() for name in ('known', 'unknown', 'gone')}
  for row in range(len(made)):
    example = made[row]
    name = questions[made.rows[row, 0]].id
    targets[name].add((*example['targets'].tolist(), float(example['weights'])))
  assert targets['unknown'] == {(0, 0, 0.0)}
  assert targets['gone'] == {(0, 0, 1.0)}
  assert (0, 0, 1.0) in targets['known'] and len(targets['known']) > 1

  everything = thinned(made, 1.0)
  assert 1 not in everything.rows[:, 0]
  assert set(everything.rows[:, 0].tolist()) == {0, 2}
  none = thinned(made, 0.0)
  kept = [
    (int(none.rows[i, 0]), none[i]['targets'][0] > 0) for i in range(len(none))
  ]
  assert {told for number, told in kept if number == 0} == {True}
  assert sum(number == 2 for number, _ in kept) == np.sum(made.rows[:, 0] == 2)
  assert [int(none[i]['row']) for i in range(len(none))] == [*range(len(none))]


# From logits to answers.


def said_of(made, logits_of):
  """Predictions: `logits_of(row)` gives start and end logits of positions."""
  predictions = []
  for row in range(len(made)):
    example = made[row]
    start, end = (
      np.where(example['allowed'], x, FORBIDDEN).astype(np.float32)
      for x in logits_of(row)
    )
    predictions.append(tasks.Prediction(row=row, start=start, end=end))
  return predictions


def peaks(length, *places):
  logits = np.zeros(length)
  for place, value in places:
    logits[place] = value
  return logits


def test_the_best_span_by_hand(folder):
  """'vwxyz' in one window, from position 3 on."""
  made = passages(
    [asked('vwxyz', (2, 4), '?')], tokenizer('bytes', folder), 12, 1, 8, False
  )
  start = peaks(12, (0, 3.0), (6, 5.0), (1, 90.0))  # no answer, y, the question
  end = peaks(12, (0, 1.5), (4, 9.0), (7, 4.0), (3, 2.0))  # w, z, v
  predictions = said_of(made, lambda row: (start, end))
  found = spans.found(made, predictions, max_answer=3, n_best=4)[0]
  assert [(c.text, c.start, c.end) for c in found.best] == [
    ('w', 0.0, 9.0),  # the shortest of those that score 9
    ('vw', 0.0, 9.0),
    ('yz', 5.0, 4.0),
    ('y', 5.0, 0.0),
  ]
  assert found.none == spans.Candidate('', 3.0, 1.5)
  assert found.null_odds == 4.5 - 9.0
  assert found.answer(abstain=True, threshold=-4.5) == found.best[0].text
  assert found.answer(abstain=True, threshold=-5.0) == ''
  assert found.answer(abstain=False, threshold=-5.0) == found.best[0].text


@pytest.mark.parametrize('max_answer', [1, 4, 50])
def test_the_best_spans_are_those_of_a_search_of_all(folder, max_answer):
  made = passages(
    random_questions(6, 60), tokenizer('bytes', folder), 24, 6, 5, False
  )
  draw = np.random.default_rng(0)
  logits = draw.normal(size=(len(made), 2, 24))
  predictions = said_of(made, lambda row: logits[row])
  draw.shuffle(predictions)
  found = spans.found(made, predictions, max_answer, n_best=5)
  assert [*found] == [*range(6)]
  best = {number: {} for number in found}
  none = {number: [] for number in found}
  for prediction in predictions:
    row = prediction['row']
    number, first = made.rows[row].tolist()
    before, count = made.place(row)
    start, end = prediction['start'], prediction['end']
    none[number].append(float(start[0]) + float(end[0]))
    for i in range(count):
      for j in range(i, min(count, i + max_answer)):
        text = made.texts[number].characters(first + i, first + j).strip()
        score = float(start[before + i]) + float(end[before + j])
        if text:
          best[number][text] = max(score, best[number].get(text, -np.inf))
  for number, each in found.items():
    assert each.none.score == min(none[number])
    assert each.id == made.questions[number].id
    ranked = sorted(best[number], key=best[number].get, reverse=True)[:5]
    assert each.best[0].text == ranked[0]
    for candidate in each.best:
      assert candidate.score == best[number][candidate.text]
      assert candidate.text in made.questions[number].context


def test_a_question_waits_for_all_its_windows(folder):
  made = passages(
    [asked('vwxyz' * 4, (2, 4), name='a'), asked('vw', (0, 1), name='b')],
    tokenizer('bytes', folder),
    *(12, 4, 4, False),
  )
  predictions = said_of(made, lambda row: (np.zeros(12), np.zeros(12)))
  assert [*spans.found(made, predictions, 5, 5)] == [0, 1]
  assert [*spans.found(made, predictions[1:], 5, 5)] == [1]
  assert [*spans.found(made, predictions[:-1], 5, 5)] == [0]


def test_no_answer_can_be_given_about_nothing(folder):
  made = passages(
    [asked('', None), asked(' \n', None)],
    tokenizer('bytes', folder),
    9,
    1,
    2,
    0,
  )
  predictions = said_of(made, lambda row: (np.zeros(9), np.zeros(9)))
  for each in spans.found(made, predictions, 5, 5).values():
    assert each.answer(abstain=False, threshold=0.0) == ''
    assert json.loads(json.dumps(each.null_odds)) == spans.CERTAIN


def knowing(made, row):
  """Logits of a model that knows: the answer, or that it is not here."""
  first, last, _ = made.target(row)
  sure = 5.0 if first else 1.0
  return peaks(made.length, (first, sure)), peaks(made.length, (last, sure))


@pytest.mark.parametrize('impossible', [False, True])
def test_a_model_that_knows_scores_100(tmp_path, impossible):
  """Through the task, from a file to the scores and what is written."""
  path = tmp_path / 's.json'
  content = colours(30, impossible=impossible)
  path.write_text(json.dumps(content))
  crossed = configured(path)
  task, dataset = tasks.make(crossed), tasks.prepare(crossed, tmp_path)
  assert dataset.abstain == impossible
  made = dataset.passages['validation']
  predictions = said_of(made, functools.partial(knowing, made))
  totals = {'loss': 1.0, 'weight': 4.0, 'correct': 2.0}
  scores = task.metrics(totals, predictions, dataset, 'validation')
  perfect = {'exact_match': 100.0, 'f1': 100.0}
  if impossible:
    perfect |= {
      'answerable_exact_match': 100.0,
      'answerable_f1': 100.0,
      'unanswerable_f1': 100.0,
    }
  assert scores == {'loss': 0.25, 'accuracy': 0.5} | perfect
  assert 0 <= task.baseline(dataset)['random_f1'] < 60

  found = spans.found(made, predictions, 30, 20)
  written = spans.files(made.questions, [*found.values()], impossible, 0.0)
  names = ['predictions.json', 'nbest_predictions.json']
  others = ['references.json'] + ['null_odds.json'] * impossible
  assert sorted(written) == sorted(names + others)
  given, best = (json.loads(written[name]) for name in names)
  questions = made.questions
  assert given == {q.id: (*q.answers, '')[0] for q in questions}
  assert squad_score.scores(questions, given) == perfect
  for name, candidates in best.items():
    assert candidates[0]['text'] == given[name]
    assert ('' in [c['text'] for c in candidates]) == impossible
    odds = [c['start_logit'] + c['end_logit'] for c in candidates]
    assert odds == sorted(odds, reverse=True)
    softmax = np.exp(odds) / np.exp(odds).sum()
    assert [c['probability'] for c in candidates] == pytest.approx(softmax)
  if impossible:
    null_odds = json.loads(written['null_odds.json'])
    for question in questions:
      assert (null_odds[question.id] > 0) == question.impossible


# The task.

WORDS = ('red', 'blue', 'grün', 'gelb', 'noir', 'белый', 'pink', 'cyan')
KEYS = 'abcdefghijklmnop'


def colours(count, keys=4, impossible=False, seed=0):
  """SQuAD whose texts list keys and values; questions name a key."""
  draw, data = random.Random(seed), []
  for i in range(count):
    named = draw.sample(KEYS, keys)
    context, qas = '', []
    for j, key in enumerate(named):
      word = draw.choice(WORDS)
      context += f'{key}='
      answers = [{'text': word, 'answer_start': len(context)}]
      qas.append({'id': f'{i}.{j}', 'question': key, 'answers': answers})
      context += f'{word} '
    if impossible:
      other = draw.choice([key for key in KEYS if key not in named])
      gone = {'question': other, 'answers': [], 'is_impossible': True}
      qas.append({'id': f'{i}.x', **gone})
    data.append({'paragraphs': [{'context': context, 'qas': qas}]})
  return {'version': 'v2.0' if impossible else '1.1', 'data': data}


def configured(path, **fields):
  given = {
    'model': {
      'family': 'encoder',
      'num_layers': 2,
      'd_model': 16,
      'num_heads': 2,
      'max_len': 24,
      'type_vocab_size': 2,
      'sharing': {'layer': 'all'},
    },
    'train': {'batch_size': 4},
    'data': {'source': 'squad', 'path': str(path), 'question_len': 2},
    'task': {'name': 'question_answering'},
  }
  for group, changed in fields.items():
    given[group] = given.get(group, {}) | changed
  return config.cross(given)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  path = tmp_path_factory.mktemp('colours') / 'squad.json'
  path.write_text(json.dumps(colours(20)))
  return path


@pytest.mark.parametrize('types', [0, 2])
def test_batches_are_as_the_task_says(path, tmp_path, types):
  """With types and without; one step is traced, and nothing compiled."""
  crossed = configured(path, model={'type_vocab_size': types})
  task, dataset = tasks.make(crossed), tasks.prepare(crossed, tmp_path)
  (shapes,) = task.batches()
  for batch in (next(dataset.train(0)), next(dataset.validation(1))):
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
      k: (v.shape, v.dtype) for k, v in shapes.items()
    }
  assert ('types' in shapes) == bool(types)
  state = jax.eval_shape(
    functools.partial(states.initial, crossed), jnp.uint32(0)
  )
  _, metrics = jax.eval_shape(steps.train_step(crossed), state, shapes)
  assert metrics['loss'].shape == ()
  _, said = jax.eval_shape(steps.eval_step(crossed), state, shapes)
  assert said['start'].shape == said['end'].shape == (4, 24)


@pytest.mark.slow
def test_loss_by_hand_and_padding_changes_nothing(path, tmp_path):
  """Not the loss, not what is said, not a gradient (values and gradients)."""
  crossed = configured(path, train={'batch_size': 6})
  dataset = tasks.prepare(crossed, tmp_path)
  made = dataset.passages['train']
  batch = {
    key: np.stack([made[row][key] for row in range(6)]) for key in made[0]
  }
  batch['weights'][2] = 0
  assert not batch['mask'].all()
  state = jax.jit(functools.partial(states.initial, crossed))(jnp.uint32(0))
  model = steps.build(crossed)
  task = tasks.make(crossed)

  @jax.jit
  def measured(params, batch):
    def loss(params):
      total, sums, _ = model.apply(
        {'params': params}, batch, method=gradient.losses(task)
      )
      return total, sums

    (total, sums), grads = jax.value_and_grad(loss, has_aux=True)(params)
    observed, said = model.apply({'params': params}, batch, method=task.observe)
    return total, sums, grads, observed, said

  # Parameters other than the first: those of the head start alike.
  params = jax.tree.map(
    lambda x: x + 0.1 * np.random.default_rng(x.size).normal(size=x.shape),
    state.params,
  )
  plain = measured(params, batch)
  _, sums, _, observed, said = jax.device_get(plain)

  def logsumexp(row, name):
    inside = said[name][row][batch['allowed'][row]].astype(np.float64)
    return np.log(np.exp(inside).sum())

  losses = [
    np.mean(
      [
        logsumexp(row, name) - said[name][row, batch['targets'][row, place]]
        for place, name in enumerate(('start', 'end'))
      ]
    )
    for row in range(6)
    if row != 2
  ]
  np.testing.assert_allclose(sums['loss'], np.sum(losses), rtol=1e-5)
  np.testing.assert_allclose(observed['loss'], np.sum(losses), rtol=1e-5)
  assert sums['weight'] == observed['weight'] == 5
  assert (said['start'][~batch['allowed']] == FORBIDDEN).all()
  assert np.std(losses) > 0

  other = {**batch, 'inputs': batch['inputs'].copy()}
  other['inputs'][~batch['mask']] = np.random.default_rng(0).integers(
    0, 256, np.sum(~batch['mask'])
  )
  other['types'] = np.where(batch['mask'], batch['types'], 1)
  changed = measured(params, other)
  jax.tree.map(np.testing.assert_array_equal, plain, changed)
  seen = {**batch, 'inputs': batch['inputs'].copy()}
  seen['inputs'][:, 1] = ord('z')  # of the question
  assert measured(params, seen)[0] != plain[0]


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    (
      {'data': {'stride': 20}},
      'data.stride must be from 1 to data.seq_len 24 - question_len 2 - 3 ='
      ' 19, got 20',
    ),
    ({'data': {'question_len': 21}}, 'data.stride must be from 1 to'),
    ({'data': {'tokenizer': 'words'}}, 'a data.tokenizer that loses nothing'),
    ({'model': {'type_vocab_size': 3}}, 'model.type_vocab_size must be 2 or 0'),
    ({'task': {'label_smoothing': 0.1}}, 'has no task.label_smoothing'),
    ({'data': {'source': 'local'}}, "unknown source of questions 'local'"),
    ({'data': {'negatives': 1.5}}, 'data.negatives must be at most 1'),
  ],
)
def test_what_it_cannot_be_asked(path, tmp_path, fields, said):
  fields = {k: dict(v) for k, v in fields.items()}
  base = {'source': 'squad', 'path': str(path), 'question_len': 2}
  if 'data' in fields:
    fields['data'] = base | fields['data']
  if 'task' in fields:
    fields['task']['name'] = 'question_answering'
  with pytest.raises(BadInput) as error:
    tasks.prepare(configured(path, **fields), tmp_path)
  assert said in str(error.value)


def test_a_split_that_is_not_there(path, tmp_path):
  dataset = tasks.prepare(configured(path), tmp_path)
  with pytest.raises(
    BadInput, match='has no test split, but train, validation'
  ):
    dataset.examples('test')
  few = tasks.prepare(configured(path, data={'negatives': 0.5}), tmp_path)
  with pytest.raises(BadInput, match='train split has not all of its windows'):
    next(few.evaluation('train', 0))
  thirds = configured(path, data={'parts': '60/20/20'})
  assert tasks.prepare(thirds, tmp_path).examples('test')


@pytest.mark.slow
def test_answers_are_found_and_written(tmp_path, capsys):
  """One layer, used twice, looks up keys in texts that were held out."""
  path = tmp_path / 'squad.json'
  path.write_text(json.dumps(colours(800)))
  crossed = configured(
    path,
    model={
      'd_model': 32,
      'position': 'rotary',
      'norm': 'rmsnorm',
      'activation': 'relu',
      'vocab_size': 330,
    },
    optimizer={'learning_rate': 5e-3, 'warmup_steps': 20, 'weight_decay': 0.0},
    train={
      'num_steps': 350,
      'batch_size': 64,
      'eval_every': 350,
      'eval_batches': 0,
      'checkpoint_every': 350,
    },
    data={'tokenizer': 'bpe'},
  )
  run, written = tmp_path / 'run', tmp_path / 'written'
  result = train(crossed, run)
  assert result['validation_exact_match'] > 90
  flags = ['--workdir', str(run), '--predictions', str(written), '--json']
  assert main(['evaluate', *flags]) == 0
  scores = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert sorted(path.name for path in written.iterdir()) == [
    'nbest_predictions.json',
    'predictions.json',
    'references.json',
  ]
  given = json.loads((written / 'predictions.json').read_text())
  questions = squad.questions(crossed.data)['validation']
  content = json.loads((written / 'references.json').read_text())
  asked = [  # as SQuAD's own script looks for what it needs
    (qa['id'], [answer['text'] for answer in qa['answers']])
    for article in content['data']
    for paragraph in article['paragraphs']
    for qa in paragraph['qas']
  ]
  assert sorted(asked) == sorted((q.id, [*q.answers]) for q in questions)
  assert {name for name, _ in asked} == given.keys()
  told = squad_score.scores(questions, given)
  assert told == {name: scores[name] for name in told}
  assert told['exact_match'] == result['validation_exact_match']
