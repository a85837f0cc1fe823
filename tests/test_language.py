"""Scores of a text: every token once, by the context that it should have."""

import functools
import json
import math
import os
import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm import config, tasks
from shared_tfm.__main__ import main
from shared_tfm.data import tokenizers, vocabularies
from shared_tfm.data.examples import Windows
from shared_tfm.data.sources import corpus
from shared_tfm.errors import BadInput
from shared_tfm.model import build
from shared_tfm.train import state as states

needs_data = pytest.mark.skipif(
  'SHARED_TFM_DATA' not in os.environ,
  reason='SHARED_TFM_DATA names no folder of public data sets',
)
TEXT = ' '.join(random.Random(0).choices(['to', 'be', 'or', 'not\n'], k=250))
EOS, LENGTH = 256, 8


def crossed(path, **fields):
  model = {
    'num_layers': 2,
    'd_model': 16,
    'num_heads': 2,
    'max_len': LENGTH,
    'sharing': {'layer': 'all'},
  }
  given = {
    'model': model | fields.pop('model', {}),
    'train': {'batch_size': 4},
    'data': {'source': 'text', 'path': str(path), 'parts': '90/5/5'},
    'task': {'stride': fields.pop('stride', 3)},
  }
  given['data'] |= fields
  return config.cross(given)


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'text.txt'
  path.write_text(TEXT)
  return path


@functools.cache
def random_weights():
  """Larger than a model starts with, so that context matters."""
  state = states.initial(crossed('any'), jnp.uint32(0))
  return {'params': jax.tree.map(lambda a: 4 * a, state.params)}


def score(given, folder, variables=None, split='validation'):
  task = tasks.make(given)
  dataset = tasks.prepare(given, folder)
  return task.score(variables or random_weights(), dataset, split)


def stream(given, split='validation'):
  """What is read, and what is to be told, of one document of bytes."""
  [text] = corpus.documents(given.data, split)
  tokens = [*text.encode()]
  return np.array([EOS, *tokens[:-1]]), np.array(tokens)


def nats_by_hand(given, starts_and_counts):
  """Nats of the last `count` targets of windows, one after the other."""
  read, told = stream(given)
  model, variables = build(given), random_weights()
  apply = jax.jit(model.apply)
  nats = []
  for start, count in starts_and_counts:
    window = np.full((1, LENGTH), EOS)
    there = read[start : start + LENGTH]
    window[0, : len(there)] = there
    losses = -jax.nn.log_softmax(apply(variables, jnp.array(window))[0])
    for i in range(len(there) - count, len(there)):
      nats.append(float(losses[i, told[start + i]]))
  return nats


# What counts.


@pytest.mark.parametrize('stride', [1, 2, 3, 7, 8])
@pytest.mark.parametrize('size', [1, 7, 8, 9, 15, 16, 17, 50])
def test_every_token_counts_once_with_its_context(size, stride):
  tokens = np.arange(100, 100 + size, dtype=np.int32)
  windows = Windows(tokens, LENGTH, stride, EOS)
  counted, seen = [], []
  for i in range(len(windows)):
    window = windows[i]
    assert {array.shape for array in window.values()} == {(LENGTH,)}
    for place in np.flatnonzero(window['weights']):
      counted.append(window['targets'][place])
      before = window['inputs'][: place + 1].tolist()
      whole = [EOS, *range(100, counted[-1])]
      assert before == whole[-len(before) :]
      seen.append(len(before))
  assert counted == tokens.tolist()
  assert windows[len(windows) - 1]['weights'].any()
  assert seen[:LENGTH] == list(range(1, 1 + min(size, LENGTH)))
  assert all(count > LENGTH - stride for count in seen[LENGTH:])


def test_ends_of_documents_are_read_but_do_not_count():
  tokens = np.array([5, 6, EOS, 7, 8, 9, EOS], np.int32)
  windows = [Windows(tokens, 4, 2, EOS)[i] for i in range(3)]
  assert [w['inputs'].tolist() for w in windows] == [
    [EOS, 5, 6, EOS],
    [6, EOS, 7, 8],
    [7, 8, 9, EOS],
  ]
  assert [w['weights'].tolist() for w in windows] == [
    [1, 1, 0, 1],
    [0, 0, 1, 1],
    [0, 0, 0, 0],
  ]


# What it costs.


@pytest.mark.slow
def test_stride_1_is_every_token_by_its_full_window(path, tmp_path):
  given = crossed(path, stride=1)
  size = len(stream(given)[1])
  first = [(0, LENGTH)]
  rest = [(end - LENGTH, 1) for end in range(LENGTH + 1, size + 1)]
  nats = nats_by_hand(given, first + rest)
  found = score(given, tmp_path)
  assert found['tokens'] == found['bytes'] == len(nats) == size
  expected = math.fsum(nats) / math.log(2) / size
  assert found['bits_per_token'] == pytest.approx(expected, rel=1e-6)


def test_a_stride_of_whole_windows_is_chunks(path, tmp_path):
  given = crossed(path, stride=LENGTH)
  size = len(stream(given)[1])
  nats = nats_by_hand(
    given, [(i, min(LENGTH, size - i)) for i in range(0, size, LENGTH)]
  )
  found = score(given, tmp_path)
  assert found['tokens'] == len(nats) == size
  expected = math.fsum(nats) / math.log(2) / size
  assert found['bits_per_byte'] == pytest.approx(expected, rel=1e-6)
  longer = score(crossed(path, stride=1), tmp_path)
  assert longer['bits_per_byte'] != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
  ('tokenizer', 'vocab_size'),
  [('bytes', 258), ('bpe', 300), ('characters', 33), ('words', 64)],
)
def test_a_model_that_knows_nothing(path, tmp_path, tokenizer, vocab_size):
  """Bytes and words are the text's, and all tokens cost log2(V) bits."""
  given = crossed(path, tokenizer=tokenizer, model={'vocab_size': vocab_size})
  shapes = jax.eval_shape(lambda: states.initial(given, jnp.uint32(0)).params)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  found = score(given, tmp_path, {'params': zeros}, 'test')
  [text] = corpus.documents(given.data, 'test')
  made = tasks.prepare(given, tmp_path).tokenizer
  bits = math.log2(vocab_size)
  assert found['bits_per_token'] == pytest.approx(bits, rel=1e-6)
  assert found['tokens'] == len(made.encode(text))
  assert found['bytes'] == len(text.encode())
  assert found['words'] == len(text.split()) + text.count('\n')
  total = bits * found['tokens']
  assert found['bits_per_byte'] == pytest.approx(total / len(text), rel=1e-6)
  expected = 2 ** (total / found['words'])
  assert found['word_perplexity'] == pytest.approx(expected, rel=1e-5)


def test_several_documents(tmp_path):
  for i in range(3):
    (tmp_path / f'{i}.txt').write_text(TEXT[i : i + 400])
  given = crossed(tmp_path)
  found = score(given, tmp_path / 'run', split='test')
  texts = corpus.documents(given.data, 'test')
  assert [len(text) for text in texts] == [20] * 3
  assert found['tokens'] == found['bytes'] == 60


def test_without_a_stride_there_is_no_score(path, tmp_path):
  assert score(crossed(path, stride=0), tmp_path) == {}


@pytest.mark.parametrize(
  ('stride', 'model', 'message'),
  [
    (9, {}, 'task.stride must be at most data.seq_len 8, got 9'),
    (3, {'family': 'encoder'}, 'of a decoder, got model.family encoder'),
    (-1, {}, 'task.stride must be at least 0, got -1'),
  ],
)
def test_bad_strides(stride, model, message):
  with pytest.raises(BadInput, match=message):
    crossed('any', stride=stride, model=model)


@pytest.mark.slow
def test_a_run_and_its_test_split(path, tmp_path, capsys):
  """The score of a run is of all its text, and so is `evaluate`'s."""
  file = tmp_path / 'config.py'
  fields = {
    'model': {'num_layers': 1, 'd_model': 8, 'num_heads': 1, 'max_len': LENGTH},
    'train': {'num_steps': 2, 'batch_size': 4, 'eval_batches': 1},
    'data': {
      'source': 'text',
      'path': str(path),
      'parts': '90/5/5',
      'tokenizer': 'characters',
    },
    'task': {'stride': 4},
  }
  file.write_text(f'def get_config():\n  return {fields}\n')
  folder = tmp_path / 'run'
  given = [f'--config={file}', f'--workdir={folder}']
  assert main(['train', *given]) == 0
  result = json.loads((folder / 'result.json').read_text())
  capsys.readouterr()
  for split in ('validation', 'test'):
    asked = [f'--workdir={folder}', f'--split={split}', '--json']
    assert main(['evaluate', *asked]) == 0
    found = json.loads(capsys.readouterr().out)
    [text] = corpus.documents(config.cross(fields).data, split)
    assert found['bytes'] == found['tokens'] == len(text)
    assert found['words'] == vocabularies.count_words(text)
    if split == 'validation':
      for name in ('bits_per_byte', 'word_perplexity', 'words'):
        assert found[name] == pytest.approx(result[f'validation_{name}'])
  assert main(['evaluate', f'--workdir={folder}', '--split=tset']) == 2
  assert "unknown split 'tset'; did you mean 'test'" in capsys.readouterr().err


# No leaks.


@pytest.mark.slow
def test_the_future_changes_neither_losses_nor_gradients():
  cut = 5
  given = crossed('any', model={'tie_embeddings': False})
  task = tasks.make(given)
  model = build(given, train=True)
  params = states.initial(given, jnp.uint32(0)).params

  def losses(params, tokens):
    """Of the targets before the cut."""
    batch = {
      'inputs': tokens[None, :-1],
      'targets': tokens[None, 1:],
      'weights': jnp.ones((1, LENGTH)),
    }

    def run(bound):
      hidden = bound.hidden(**tasks.arguments(batch))
      return task.losses(bound, hidden, batch)[0][0, :cut]

    return model.apply({'params': params}, method=run)

  past = np.arange(10, 10 + cut)
  one = jnp.array([*past, *range(50, 50 + LENGTH + 1 - cut)])
  other = jnp.array([*past, 50, *range(90, 90 + LENGTH - cut)])
  np.testing.assert_array_equal(losses(params, one), losses(params, other))
  grads = [
    jax.grad(lambda p, t=t: losses(p, t).sum())(params, t) for t in (one, other)
  ]
  jax.tree.map(np.testing.assert_array_equal, *grads)
  [rows] = [
    np.abs(leaf).max(axis=-1)
    for keys, leaf in jax.tree.leaves_with_path(grads[0]['embedding'])
    if leaf.shape == (258, 16)
  ]
  assert np.flatnonzero(rows).tolist() == past.tolist()


# The real texts.


@needs_data
@pytest.mark.parametrize('tokenizer', ['bytes', 'bpe', 'characters', 'words'])
def test_nothing_of_wikitext_2_is_lost(tmp_path, tokenizer):
  root = pathlib.Path(os.environ['SHARED_TFM_DATA']) / 'wikitext2'
  given = config.Data(source='text', path=str(root), tokenizer=tokenizer)
  learned_from = 'train' if tokenizer == 'words' else 'validation'
  made = tokenizers.make(
    tokenizer, corpus.documents(given, learned_from), 40_000, tmp_path
  )
  [text] = corpus.documents(given, 'test')
  ids = made.encode(text)
  assert made.decode(ids) == text
  assert made.byte_lengths[ids].sum() == len(text.encode()) == 1_256_449
  if tokenizer == 'words':
    assert made.vocab_size == 33_278 + 2
    assert len(ids) == 245_569
    unknown = (ids == made.encode('<unk>')[0]).sum()
    assert unknown == text.split().count('<unk>')
