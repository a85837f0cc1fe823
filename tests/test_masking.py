"""Masked modelling: what is hidden, and which segment came first."""

import collections
import dataclasses
import functools
import json
import random

import jax
import numpy as np
import pytest

from shared_tfm import config, tasks
from shared_tfm.data import order, tokenizers
from shared_tfm.data.masking import Masking, Words, ngrams
from shared_tfm.errors import BadInput
from shared_tfm.model import build
from shared_tfm.train import gradient
from shared_tfm.train import state as states

EOS, MASK = 256, 257
WORDS = ['(', 'New', ' York', ')', ',', ' he', "'", 's', ' in', ' 1998', ';']
WORDS += [' naïve', ' ', ' runs', '.', '\n', 'next']
VERBS = ['runs', 'sleeps', '(loudly)', 'eats', '1998', 'apples,', 'tea;', 'and']


@pytest.fixture(scope='module')
def text():
  """Sentences of random words, in lines of a few."""
  draw = random.Random(0)
  sentences = (
    ' '.join(['The', *draw.choices(VERBS, k=draw.randint(2, 9))]) + '.'
    for _ in range(2000)
  )
  return ' '.join(sentences)


@pytest.fixture(scope='module')
def tokenizer_of(text, tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizers')
  return {
    name: tokenizers.make(name, [text], 270, folder)
    for name in ('bytes', 'bpe')
  }


def chunk(tokens):
  return {
    'inputs': tokens,
    'targets': tokens,
    'weights': np.ones(len(tokens), np.float32),
  }


def masked(masking, tokens, length, times=3):
  rng = np.random.default_rng(0)
  for _ in range(times):
    for start in range(0, len(tokens) - length, length):
      yield masking(chunk(tokens[start : start + length]), rng)


def words_of(tokenizer, tokens):
  begins = np.flatnonzero(Words(tokenizer).begins(tokens))
  return [tokenizer.decode(part) for part in np.split(tokens, begins[1:])]


@pytest.mark.parametrize('name', ['bytes', 'bpe'])
def test_words(tokenizer_of, name):
  tokenizer = tokenizer_of[name]
  said = "(New York), he's in 1998; naïve  runs.\nnext"
  assert words_of(tokenizer, tokenizer.encode(said)) == WORDS


@pytest.mark.parametrize('name', ['bytes', 'bpe'])
@pytest.mark.parametrize('whole_word', [False, True])
@pytest.mark.parametrize('ngram', [1, 3])
def test_the_share_that_is_hidden(text, tokenizer_of, name, whole_word, ngram):
  tokenizer = tokenizer_of[name]
  masking = Masking(0.15, tokenizer, ngram, whole_word)
  weights = [
    example['weights']
    for example in masked(masking, tokenizer.encode(text), 128)
  ]
  assert np.mean(weights) == pytest.approx(0.15, abs=0.008)
  assert np.abs(np.mean(weights, axis=0) - 0.15).max() < 0.1  # nowhere spared
  assert min(each.sum() for each in weights) >= 1


@pytest.mark.slow
def test_eighty_ten_ten(text, tokenizer_of):
  tokenizer = tokenizer_of['bytes']
  masking = Masking(0.15, tokenizer, 3, whole_word=True)
  fates, others = collections.Counter(), set()
  for example in masked(masking, tokenizer.encode(text), 128, times=6):
    hidden = example['weights'] == 1
    read, right = example['inputs'][hidden], example['targets'][hidden]
    fates['mask'] += (read == MASK).sum()
    fates['same'] += (read == right).sum()
    others |= {*read[(read != MASK) & (read != right)].tolist()}
    fates['all'] += hidden.sum()
    np.testing.assert_array_equal(
      example['inputs'][~hidden], example['targets'][~hidden]
    )
  assert fates['mask'] / fates['all'] == pytest.approx(0.8, abs=0.01)
  assert fates['same'] / fates['all'] == pytest.approx(0.1, abs=0.01)
  assert len(others) > 240 and max(others) < EOS


@pytest.mark.slow
def test_runs_are_as_often_of_n_as_the_equation_says():
  rng = np.random.default_rng(0)
  free, follows = np.ones(100, bool), np.ones(100, bool)
  free[50] = follows[20] = False
  counts, units = collections.Counter(), []
  for _ in range(3000):
    spans = ngrams(free, follows, 15.0, 3, rng)
    counts.update(n for _, n in spans)
    places = [i for at, n in spans for i in range(at, at + n)]
    units.append(len(places))
    assert len({*places}) == len(places) and 50 not in places
    assert not any(at < 20 < at + n for at, n in spans)
  total = counts.total()
  # 1, 1/2 and 1/3, of their sum; four standard deviations of a share.
  for n, share in ((1, 6 / 11), (2, 3 / 11), (3, 2 / 11)):
    deviation = (share * (1 - share) / total) ** 0.5
    assert abs(counts[n] / total - share) < 4 * deviation
  assert np.mean(units) == pytest.approx(15, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['bytes', 'bpe'])
def test_no_word_is_hidden_in_part(text, tokenizer_of, name):
  tokenizer = tokenizer_of[name]
  masking = Masking(0.15, tokenizer, 3, whole_word=True)
  longest = 0
  for example in masked(masking, tokenizer.encode(text), 128):
    begins = Words(tokenizer).begins(example['targets'])
    for word in np.split(example['weights'], np.flatnonzero(begins)[1:]):
      assert len({*word.tolist()}) == 1
      longest = max(longest, len(word) * int(word[0]))
  assert longest > 3  # words of several tokens are hidden


def test_specials_are_not_hidden_and_part_runs(tokenizer_of):
  tokenizer = tokenizer_of['bytes']
  tokens = np.full(60, EOS, np.int32)
  tokens[::2] = ord('a')  # every letter alone between specials
  for ngram, whole_word in ((3, False), (1, True), (3, True)):
    masking = Masking(0.3, tokenizer, ngram, whole_word)
    for example in masked(masking, np.tile(tokens, 20), 60):
      hidden = np.flatnonzero(example['weights'])
      assert (hidden % 2 == 0).all() and 1 <= len(hidden) <= 10


def test_a_word_too_long_to_be_hidden_is_left(tokenizer_of):
  tokenizer = tokenizer_of['bytes']
  masking = Masking(0.15, tokenizer, 1, whole_word=True)
  tokens = tokenizer.encode('x' * 90 + ' ab' * 10)
  for example in masked(masking, np.tile(tokens, 9), 120):
    hidden = np.flatnonzero(example['weights'])
    assert len(hidden) and hidden.min() >= 90
  tokens = tokenizer.encode('x' * 120)  # there is nothing else
  for example in masked(masking, np.tile(tokens, 9), 120):
    assert 1 <= example['weights'].sum() <= 20


# Sentence order.


def ready(tmp_path, paths, **fields):
  crossed = config.cross(
    {
      'model': {'family': 'encoder', 'type_vocab_size': 2, 'max_len': 64},
      'task': {'sentence_order': True},
      'train': {'batch_size': 4},
      'data': {
        'source': 'text',
        'path': str(paths),
        'mask_ngram': 3,
        'whole_word': True,
        **fields,
      },
    }
  )
  return crossed, tasks.prepare(crossed, tmp_path / 'run')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Documents, each of letters of its own, with sentences in order."""
  folder = tmp_path_factory.mktemp('files')
  for number in range(24):
    letters = 'abcdefghijklmnopqrstuvwx'[number]
    lengths = random.Random(number).choices(range(1, 9), k=60)
    sentences = (
      f'{letters * length} {place}.' for place, length in enumerate(lengths)
    )
    (folder / f'{number}.txt').write_text(' '.join(sentences))
  return folder


def read(tokenizer, example):
  """The two segments, as text."""
  targets, types, mask = (example[k] for k in ('targets', 'types', 'mask'))
  ends = np.flatnonzero((targets == EOS) & mask)
  assert ends.tolist() == [0, ends[1], mask.sum() - 1]
  expected = np.arange(64) > ends[1]
  np.testing.assert_array_equal(types, expected & mask)
  assert not mask[ends[2] + 1 :].any()
  first, second = targets[1 : ends[1]], targets[ends[1] + 1 : ends[2]]
  return tokenizer.decode(first), tokenizer.decode(second)


def test_segments_of_one_document_swapped_or_not(tmp_path, files):
  _, made = ready(tmp_path, files)
  whole = {path.read_text()[0]: path.read_text() for path in files.iterdir()}
  swapped = []
  examples = made.elements('train', 3)
  for i in range(len(examples)):
    example = examples[i]
    first, second = read(made.tokenizer, example)
    swapped.append(int(example['order']))
    if swapped[-1]:
      first, second = second, first
    letter = (first + second).strip()[0]
    assert first + second in whole[letter]  # of one document, and in order
    if (first + second).count('.') > 1:  # whole sentences
      assert second.startswith(' ') and first.endswith('.')
    hidden = example['weights'] > 0
    assert hidden.any() and not hidden[~example['mask']].any()
    assert (example['targets'][hidden] != EOS).all()
    np.testing.assert_array_equal(
      example['inputs'][~hidden], example['targets'][~hidden]
    )
  assert np.mean(swapped) == pytest.approx(0.5, abs=0.12)
  other = made.elements('train', 4)
  again = [int(other[i]['order']) for i in range(len(other))]
  assert len(again) == len(swapped) and again != swapped


def test_stretches_hold_every_token_once(files, tokenizer_of):
  texts = [path.read_text() for path in sorted(files.iterdir())]
  found = order.stretches(texts, tokenizer_of['bytes'], 64)
  assert found.bounds[0, 0] == 0 and found.bounds[-1, 1] == len(found.tokens)
  np.testing.assert_array_equal(found.bounds[1:, 0], found.bounds[:-1, 1])
  sizes = np.diff(found.bounds, axis=1)
  assert sizes.max() <= 61 and sizes.mean() > 45
  ends = np.cumsum([len(text.encode()) for text in texts])
  assert {*ends.tolist()} <= {*found.bounds[:, 1].tolist()}


def test_a_document_of_one_sentence_is_cut_at_a_word(tokenizer_of):
  tokenizer = tokenizer_of['bytes']
  found = order.stretches(['one two three', 'x', 'abcdef'], tokenizer, 16)
  assert len(found) == 2
  ordering = order.Ordering(tokenizer, 16, True, lambda example, rng: example)
  rng = np.random.default_rng(0)
  cuts = collections.Counter()
  for _ in range(60):
    example = ordering(found[0], rng)
    places = np.flatnonzero(example['targets'][:15] == EOS)[1]
    size = places - 1 if not example['order'] else 13 - (places - 1)
    cuts[int(size)] += 1
    assert ordering(found[1], rng)['mask'].sum() == 9
  assert {*cuts} == {3, 7}


def test_titles_of_wikitext_begin_documents():
  text = (
    '\n = Valkyria = \n\n Text . \n = = Plot = = \n\n More . \n = Two = \n a'
  )
  assert list(order.articles([text, 'other'])) == [
    ' = Valkyria = \n\n Text . \n = = Plot = = \n\n More . \n',
    ' = Two = \n a',
    'other',
  ]


def test_resume_is_exact(tmp_path, files):
  _, made = ready(tmp_path, files)
  iterator, expected, states = made.train(3), [], []
  for _ in range(8):
    expected.append(next(iterator))
    states.append(json.dumps(iterator.get_state()))
  for cut in (1, 4, 7):
    resumed = made.train(3)
    resumed.set_state(json.loads(states[cut - 1]))
    for batch in expected[cut:]:
      found = next(resumed)
      assert batch.keys() == found.keys()
      for name in batch:
        np.testing.assert_array_equal(batch[name], found[name])


def test_batches_are_what_the_task_says(tmp_path, files):
  crossed, made = ready(tmp_path, files)
  (shapes,) = tasks.make(crossed).batches()
  for batch in (next(made.train(0)), next(made.validation(1))):
    found = {name: (a.shape, a.dtype) for name, a in batch.items()}
    assert found == {name: (s.shape, s.dtype) for name, s in shapes.items()}


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    (
      {'model': {'family': 'decoder'}},
      'task.sentence_order is for masked_lm and model.family encoder, got no'
      ' task.name and decoder',
    ),
    (
      {'model': {'family': 'encoder', 'type_vocab_size': 1}},
      'task.sentence_order tells 2 classes of 2 segments: model.num_classes'
      ' must be 0 or 2, and type_vocab_size 0 or at least 2, got 0 and 1',
    ),
    (
      {'model': {'family': 'encoder', 'head': 'spans'}},
      'task.sentence_order needs model.head tokens_classes, got spans',
    ),
  ],
)
def test_networks_that_cannot_tell_an_order(fields, said):
  with pytest.raises(BadInput) as error:
    config.cross({**fields, 'task': {'sentence_order': True}})
  assert str(error.value) == said


@pytest.mark.slow
def test_padding_does_not_leak(tmp_path, files):
  made, dataset = ready(tmp_path, files)
  model = dataclasses.replace(made.model, num_layers=2, max_len=64)
  made = dataclasses.replace(made, model=model)
  batch = next(dataset.validation(1))
  # The last row becomes nobody's, as where a batch is filled up.
  batch = {
    k: np.concatenate([v[:3], np.zeros_like(v[3:])]) for k, v in batch.items()
  }
  assert not batch['mask'][:3].all()
  padded = np.where(batch['mask'], batch['inputs'], 7)
  state = jax.jit(functools.partial(states.initial, made))(np.uint32(0))
  task, network = tasks.make(made), build(made)

  @jax.jit
  def run(params, batch):
    def loss(params):
      total, _, seen = network.apply(
        {'params': params}, batch, method=gradient.losses(task)
      )
      return total, seen

    sums, _ = network.apply({'params': params}, batch, method=task.observe)
    return jax.value_and_grad(loss, has_aux=True)(params), sums

  (left, moved), sums = run(state.params, batch)
  (right, other), again = run(state.params, {**batch, 'inputs': padded})
  jax.tree.map(
    np.testing.assert_array_equal, (left, moved, sums), (right, other, again)
  )
  total, seen = left
  count = batch['weights'].sum()
  assert sums['order_weight'] == 3 and sums['weight'] == count
  order_loss = float(sums['order_loss']) / 3
  assert float(seen['order_loss']) == pytest.approx(order_loss, rel=1e-5)
  expected = float(sums['loss']) + order_loss * count
  assert float(total) == pytest.approx(expected, rel=1e-5)
  found = task.metrics(jax.device_get(sums), [], dataset, 'validation')
  assert found['order_loss'] == pytest.approx(order_loss)
  assert found['order_accuracy'] in (0, 1 / 3, 2 / 3, 1)
