"""Translation and summarisation: from files of pairs to BLEU and ROUGE."""

import collections
import functools
import gzip
import json
import logging
import os
import pathlib
import random
import shutil
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm import __main__, config, tasks
from shared_tfm.data import tokenizers
from shared_tfm.data.pair_examples import Bucket, PairExamples
from shared_tfm.data.sources import pairs
from shared_tfm.errors import BadInput
from shared_tfm.model import build
from shared_tfm.tasks import pairs as pair_tasks
from shared_tfm.train import loop
from shared_tfm.train.gradient import losses

EOS = 256
DATA = os.environ.get('SHARED_TFM_DATA')
needs_data = pytest.mark.skipif(not DATA, reason='SHARED_TFM_DATA is not set')


def made(folder, counts=(('train', 60), ('val', 11), ('test_x', 5))):
  """A folder of parallel text; a text in 'de' is one in 'en' backwards."""
  draw = random.Random(0)
  for split, count in counts:
    left = [
      ''.join(draw.choices('abcdef', k=draw.randint(1, 22)))
      for _ in range(count)
    ]
    right = [text[::-1].upper() for text in left]
    write(folder / f'{split}.en', left)
    write(folder / f'{split}.de.gz', right)
  return folder


def write(path, lines):
  content = ''.join(line + '\n' for line in lines).encode()
  zipped = path.suffix == '.gz'
  path.write_bytes(gzip.compress(content) if zipped else content)


def crossed(folder, name='translation', **fields):
  fields = {
    'data.source': 'parallel',
    'data.path': str(folder),
    'data.source_field': 'en',
    'data.target_field': 'de',
    'data.buckets': '8,16',
    'train.batch_size': 4,
    'model.family': 'encoder_decoder',
    'model.num_layers': 2,
    'model.d_model': 16,
    'model.num_heads': 2,
    'model.max_len': 24,
    'model.sharing.layer': 'all',
    'task.name': name,
    'task.beam_size': 2,
  } | fields
  given = collections.defaultdict(dict)
  for path, value in fields.items():
    group, field = path.split('.', 1)
    if '.' in field:
      part, field = field.split('.')
      given[group][part] = {field: value}
    else:
      given[group][field] = value
  return config.cross(dict(given))


def ready(folder, process=(0, 1), **fields):
  return tasks.prepare(crossed(folder, **fields), folder / 'run', *process)


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def assert_same(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Sources.


def read(folder, split='train', **fields):
  fields = {'source_field': 'en', 'target_field': 'de'} | fields
  given = {'source': 'parallel', 'path': str(folder), **fields}
  return [*pairs.read(config.Data(**given), split)]


def test_parallel_text(tmp_path):
  write(tmp_path / 'train.en', ['a\u2028b', '', 'c'])
  write(tmp_path / 'train.de.gz', ['ä', 'x', 'y\r'])
  write(tmp_path / 'dev.en', ['v'])
  (tmp_path / 'dev.de').write_text('w')  # without a last end of line
  assert read(tmp_path) == [('a\u2028b', 'ä'), ('', 'x'), ('c', 'y')]
  assert read(tmp_path, 'validation') == [('v', 'w')]
  turned = read(tmp_path, 'dev', source_field='de', target_field='en')
  assert turned == [('w', 'v')]


def test_plain_parallel_text_stays_on_disk(tmp_path):
  """Of 2 x 64 MB, what is held is where lines end."""
  for side, letter in (('en', 'a'), ('de', 'b')):
    (tmp_path / f'train.{side}').write_text(f'{letter * 127}\n' * 2**19)
  data = config.Data(
    source='parallel',
    path=str(tmp_path),
    source_field='en',
    target_field='de',
  )
  tracemalloc.start()
  found = pairs.read(data, 'train')
  assert len(found) == 2**19
  assert {found[i] for i in (0, 2**18, -1)} == {('a' * 127, 'b' * 127)}
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**25


def damaged(name):
  """What is wrong with a folder of parallel text, and what is said of it."""

  def cut(folder, keep):
    path = folder / 'train.de.gz'
    path.write_bytes(path.read_bytes()[:keep])

  wrong = {
    'lines': lambda f: write(f / 'train.en', ['a']),
    'cut': lambda f: cut(f, 60),
    'no gzip': lambda f: (
      write(f / 'train.de', []) or ((f / 'train.de').rename(f / 'train.de.gz'))
    ),
    'not UTF-8': lambda f: (f / 'train.en').write_bytes(b'\xff\n' * 60),
    'missing': lambda f: (f / 'train.de.gz').unlink(),
    'empty': lambda f: (
      write(f / 'train.en', []) or write(f / 'train.de.gz', [])
    ),
  }
  return wrong[name]


@pytest.mark.parametrize(
  'wrong,said',
  [
    ('lines', 'train.en has 1 lines and .*train.de.gz 60: they are not par'),
    ('cut', 'train.de.gz cannot be read: Compressed file ended'),
    ('no gzip', 'train.de.gz cannot be read: '),
    ('not UTF-8', 'train.en is not UTF-8 text: invalid start byte at byte 0'),
    ('missing', 'no train.de or train.de.gz for the split train; it holds'),
    ('empty', 'the train split of parallel holds no pairs'),
  ],
)
def test_damaged_parallel_text(tmp_path, wrong, said):
  made(tmp_path)
  damaged(wrong)(tmp_path)
  if wrong == 'no gzip':
    (tmp_path / 'train.de.gz').write_text('plain text\n')
  with pytest.raises(BadInput, match=said) as error:
    ready(tmp_path)
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'fields,split,said',
  [
    ({}, 'test', 'no test.en or test.en.gz for the split test; it holds'),
    ({'source_field': 'fr'}, 'train', 'has no train.fr or train.fr.gz'),
    ({'target_field': ''}, 'train', "and target_field, .* got 'en' and ''"),
    ({'path': 'nowhere'}, 'train', 'data.path nowhere: no such folder'),
    ({'path': ''}, 'train', "'parallel' needs data.path, a folder"),
    ({'source': 'paralel'}, 'train', "did you mean 'parallel'"),
    ({'source': 'aeslc', 'path': ''}, 'train', 'needs data.path, AESLC-mast'),
    ({'source': 'aeslc', 'path': 'no.zip'}, 'train', 'no.zip: No such file'),
    ({'source': 'tfds:wmt14'}, 'train', 'tfds:wmt14'),
  ],
)
def test_sources_that_are_wrong(tmp_path, fields, split, said):
  with pytest.raises(BadInput, match=said):
    read(made(tmp_path), split, **fields)


EMAIL = 'Dear all,\nit rains.\n\n\n@subject\nRain\n\n@ann0\nweather\n'


def emails(path, **texts):
  with zipfile.ZipFile(path / 'AESLC-master.zip', 'w') as archive:
    for split, text in texts.items():
      name = f'AESLC-master/enron_subject_line/{split}/a.subject'
      archive.writestr(name, text)
    archive.writestr('AESLC-master/README.md', 'of no interest')


def test_emails(tmp_path):
  emails(tmp_path, train='Hi.\n\n@subject\nHello', dev=EMAIL)
  assert read(tmp_path, source='aeslc') == [('Hi.', 'Hello')]
  held = read(tmp_path / 'AESLC-master.zip', 'validation', source='aeslc')
  assert held == [('Dear all,\nit rains.', 'Rain')]
  with pytest.raises(
    BadInput, match='no test split of e-mails, but dev, train'
  ):
    read(tmp_path, 'test', source='aeslc')
  emails(tmp_path, train='no mark')
  with pytest.raises(BadInput, match=r'train/a.subject of .* has no @subject'):
    read(tmp_path, source='aeslc')
  whole = (tmp_path / 'AESLC-master.zip').read_bytes()
  (tmp_path / 'AESLC-master.zip').write_bytes(whole[:-30])
  with pytest.raises(BadInput, match='is not a whole zip file'):
    read(tmp_path, source='aeslc')


@needs_data
def test_real_pairs():
  folder = pathlib.Path(DATA) / 'multi30k_ende'
  sizes = {'train': 29_000, 'validation': 1_014, 'test_2016_flickr': 1_000}
  assert {split: len(read(folder, split)) for split in sizes} == sizes
  assert read(folder)[0][0].startswith('Two young, White males')
  assert read(folder)[0][1].startswith('Zwei junge weiße Männer')
  held = read(pathlib.Path(DATA) / 'aeslc', 'validation', source='aeslc')
  assert len(held) == 1_960
  assert (
    held[0][1] == 'Confirmation: Risk Management Simulation Meeting 10/30/01'
  )


# Examples.


def test_an_example():
  tokenizer = tokenizers.make('bytes', [], 258, pathlib.Path())
  buckets = [Bucket(3, 3, 2), Bucket(5, 4, 1)]
  held = PairExamples(
    [('ab', 'X'), ('abc', 'YZ'), ('abcdefg', 'VWXYZ')], tokenizer, buckets
  )
  a, x, v = map(ord, 'aXV')
  assert held.kinds.tolist() == [0, 1, 1] and held.cut == 1
  first = {name: array.tolist() for name, array in held[0].items()}
  assert first == {
    'source': [a, a + 1, EOS],
    'source_mask': [True] * 3,
    'inputs': [EOS, x, EOS],
    'targets': [x, EOS, EOS],
    'mask': [True, True, False],
    'weights': [1, 1, 0],
    'row': 0,
  }
  second = {name: array.tolist() for name, array in held[1].items()}
  assert second['source'] == [a, a + 1, a + 2, EOS, EOS]
  assert second['source_mask'] == [True] * 4 + [False]
  assert second['targets'] == [x + 1, x + 2, EOS, EOS]
  cut = {name: array.tolist() for name, array in held[2].items()}
  assert cut['source'] == [a, a + 1, a + 2, a + 3, a + 4]
  assert cut['inputs'] == [EOS, v, v + 1, v + 2]
  assert cut['targets'] == [v, v + 1, v + 2, v + 3]
  assert all(cut['mask']) and all(cut['source_mask'])


def test_cut_texts_are_told(tmp_path, caplog):
  made(tmp_path)
  long = sum(len(left) > 15 for left, _ in read(tmp_path))
  assert 0 < long < 60
  with caplog.at_level(logging.WARNING):
    ready(tmp_path, **{'data.seq_len': 16})
  assert f'{long} of 60 training pairs are cut' in caplog.text


def test_buckets(tmp_path):
  """About as many tokens in each, in rows that micro-batches can share."""
  task = tasks.make(crossed(tmp_path, **{'train.batch_size': 24}))
  assert task.buckets() == [(8, 8, 72), (16, 16, 32), (24, 24, 24)]
  fields = {
    'train.batch_size': 24,
    'train.accumulate': 3,
    'data.seq_len': 4,
    'data.source_len': 24,
  }
  summaries = tasks.make(crossed(tmp_path, 'summarisation', **fields))
  assert summaries.buckets() == [(8, 4, 48), (16, 4, 24), (24, 4, 24)]
  assert len(task.batches()) == 3
  with pytest.raises(BadInput, match=r'growing lengths, .* got .16,8.'):
    crossed(tmp_path, **{'data.buckets': '16,8'})
  with pytest.raises(BadInput, match='none of them above source_len and'):
    crossed(tmp_path, **{'data.buckets': '8,25'})
  with pytest.raises(BadInput, match=r'source_len must be at most .* got 25'):
    crossed(tmp_path, **{'data.source_len': 25})


# Batches.


def test_batches_have_one_shape_and_every_pair_comes_in_every_epoch(tmp_path):
  dataset = ready(made(tmp_path))
  shapes = [
    {name: shape.shape for name, shape in kind.items()}
    for kind in tasks.make(crossed(tmp_path)).batches()
  ]
  counts = np.bincount(dataset.kinds('train'), minlength=3)
  assert (counts > 0).all()
  size = sum(-(-counts // np.array(dataset.rows)))
  iterator = dataset.train(7)
  epochs = [take(iterator, size) for _ in range(2)]
  orders = []
  for epoch in epochs:
    seen = collections.Counter()
    for batch in epoch:
      shape = {name: array.shape for name, array in batch.items()}
      assert shape in shapes
      kinds = dataset.kinds('train')[batch['row']]
      assert (kinds == shapes.index(shape)).all()
      seen.update(batch['row'].tolist())
    assert set(seen) == set(range(60))
    lacking = sum(-counts % np.array(dataset.rows))
    assert sum(seen.values()) == 60 + lacking
    orders.append([batch['row'].tolist() for batch in epoch])
  assert orders[0] != orders[1]
  assert_same(take(dataset.train(7), size), epochs[0])
  other = [b['row'].tolist() for b in take(dataset.train(8), size)]
  assert other != orders[0]
  held = dataset.elements('train', 0)
  for batch in epochs[1]:
    for place, row in enumerate(batch['row']):
      example = held[int(row)]
      assert_same([example], [{k: v[place] for k, v in batch.items()}])


def test_resume_is_exact_at_every_cut(tmp_path):
  dataset = ready(made(tmp_path))
  iterator, expected, states = dataset.train(3), [], []
  for _ in range(30):
    expected.append(next(iterator))
    states.append(json.dumps(iterator.get_state()))
  for cut, state in enumerate(states, 1):
    assert all(type(leaf) is int for leaf in jax.tree.leaves(json.loads(state)))
    resumed = dataset.train(3)
    resumed.set_state(json.loads(state))
    assert_same(expected[cut:], take(resumed, 30 - cut))
    resumed.close()


def test_evaluation_has_every_pair_exactly_once(tmp_path):
  dataset = ready(made(tmp_path))
  for split, size in (('validation', 11), ('test_x', 5), ('train', 60)):
    batches = list(dataset.evaluation(split, 0))
    assert_same(batches, list(dataset.evaluation(split, 0)))
    assert_same(batches[:2], list(dataset.evaluation(split, 2)))
    rows = np.concatenate([batch['row'] for batch in batches])
    assert sorted(rows[rows >= 0].tolist()) == list(range(size))
    for batch in batches:
      nobody = batch['row'] < 0
      assert (batch['weights'][nobody] == 0).all()
      assert batch['weights'][~nobody].any(axis=1).all()
      assert not batch['source_mask'][nobody].any()
  with pytest.raises(BadInput, match='for the split test_y; it holds'):
    list(dataset.evaluation('test_y', 0))


def test_processes_share_every_batch(tmp_path):
  dataset = ready(made(tmp_path))
  shards = [ready(tmp_path, (i, 2)) for i in range(2)]
  whole, parts = (
    take(dataset.train(1), 20),
    [take(d.train(1), 20) for d in shards],
  )
  for batch, one, other in zip(whole, *parts, strict=True):
    together = {k: np.stack([one[k], other[k]], axis=1) for k in batch}
    flat = {k: together[k].reshape(batch[k].shape) for k in batch}
    assert_same([batch], [flat])
  scored = [list(d.evaluation('validation', 0)) for d in (dataset, *shards)]
  assert_same(scored[0], scored[1])
  assert_same(scored[0], scored[2])
  with pytest.raises(BadInput, match='sequences cannot be shared by 5 proc'):
    ready(tmp_path, (0, 5), **{'train.batch_size': 10, 'data.buckets': '7'})


# What a model sees.


@pytest.mark.slow
def test_padding_and_the_future_do_not_leak(tmp_path):
  """Neither losses nor gradients know what stands there."""
  folder = made(tmp_path)
  given = crossed(folder, **{'task.label_smoothing': 0.1})
  dataset, task = tasks.prepare(given, tmp_path / 'run'), tasks.make(given)
  batch = next(b for b in dataset.train(0) if not b['mask'].all())
  assert not batch['source_mask'].all()
  model = build(given, train=True)
  init = jax.jit(functools.partial(build(given).init, jax.random.key(0)))
  params = init(batch['inputs'][:1], source_BS=batch['source'][:1])['params']
  whole = losses(task)

  def before(model, batch):
    """Losses of the first three targets."""
    outputs = model.outputs(**tasks.arguments(batch))
    return task.losses(model, outputs.hidden_XBLD[-1], batch)[0][:, :3]

  @jax.jit
  def run(batch):
    def total(params):
      return model.apply({'params': params}, batch, method=whole)[0]

    def first(params):
      found = model.apply({'params': params}, batch, method=before)
      return jnp.sum(found), found

    return jax.grad(total)(params), jax.grad(first, has_aux=True)(params)

  def changed(name, where):
    other = np.where(where, (batch[name] + 77) % 256, batch[name])
    assert (other != batch[name]).any()
    return {**batch, name: other.astype(np.int32)}

  known = run(batch)
  future = np.arange(batch['inputs'].shape[1]) >= 3
  seen = batch['source_mask'] & (np.arange(batch['source'].shape[1]) == 1)
  for other, part in (
    (changed('source', ~batch['source_mask']), slice(None)),
    (changed('inputs', ~batch['mask']), slice(None)),
    (changed('targets', ~batch['mask']), slice(None)),
    (changed('inputs', future), slice(1, None)),
    (changed('targets', future), slice(1, None)),
  ):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
      run(other)[part],
      known[part],
    )
  (_, (_, found)) = run(changed('source', seen))
  assert (np.abs(found - known[1][1]) > 1e-6).any()  # the test can fail


# Scores.


def test_bleu_by_hand():
  """1- to 4-grams: 5 of 6, 3 of 5, 2 of 4, 1 of 3; as long as the reference."""
  compared = tasks.TASKS['translation'].compared
  found = compared(None, ['the cat sat on the mat'], ['the cat sat on a mat'])
  expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
  assert found['bleu'] == pytest.approx(expected)
  assert 0 < found['chrf'] < 100
  assert found['bleu_signature'].startswith(
    'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:'
  )
  assert found['chrf_signature'].startswith(
    'nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:'
  )


def test_rouge_by_hand():
  """Stems 'the cat sat' against 'the cat sat down': 3 of 3 and 3 of 4."""
  compared = tasks.TASKS['summarisation'].compared
  task = tasks.make(crossed('', 'summarisation'))
  found = compared(task, ['the cats sat', 'x'], ['the cat sat down', 'y'])
  assert found == {
    'rouge1': pytest.approx(6 / 7 / 2),
    'rouge2': pytest.approx(4 / 5 / 2),
    'rougeL': pytest.approx(6 / 7 / 2),
  }


def test_a_summary_is_compared_with_the_first_words(tmp_path):
  """As many as targets have on average: two; one of three is right, once."""
  write(tmp_path / 'train.en', ['x'] * 4)
  write(tmp_path / 'train.de', ['a b', 'c', 'd e', 'f g h'])
  write(tmp_path / 'val.en', ['one two three four', 'five'])
  write(tmp_path / 'val.de', ['one two', 'six'])
  given = crossed(tmp_path, 'summarisation')
  dataset = tasks.prepare(given, tmp_path / 'run')
  found = tasks.make(given).baseline(dataset)
  assert found['lead_rouge1'] == pytest.approx(1 / 2)
  assert found['unigram_bits_per_byte'] > 0


@pytest.mark.parametrize('name', ['translation', 'summarisation'])
def test_references_as_predictions(tmp_path, monkeypatch, name):
  """All the way from a batch to the score, whatever order rows come in."""
  write(tmp_path / 'train.en', ['a b c', 'd e'])
  write(tmp_path / 'train.de', ['A B C', 'D E'])
  for split in ('val', 'test'):
    right = [f'ein {split} satz mit {n} wörtern' for n in range(9)]
    write(tmp_path / f'{split}.en', [f'{n} x{"x" * n}' for n in range(9)])
    write(tmp_path / f'{split}.de', right)
  fields = {'model.max_len': 32, 'task.max_decode': 32}
  given = crossed(tmp_path, name, **fields, **{'train.accumulate': 2})
  dataset, task = tasks.prepare(given, tmp_path / 'run'), tasks.make(given)
  tokenizer = dataset.tokenizer

  def perfect(config, variables, source_BS, mask_BS, start, eos, most, *_):
    assert len(source_BS) in {rows // 2 for rows in dataset.rows}
    assert mask_BS.any()  # nothing is searched for nobody
    known = dict(read(tmp_path, 'test'))
    tokens = np.full((len(source_BS), 2, most), start)
    for row, (ids, mask) in enumerate(zip(source_BS, mask_BS, strict=True)):
      if mask.any():
        text = known[tokenizer.decode(ids[mask])]
        written = task.prompt(text, tokenizer)
        tokens[row, 0, : len(written)] = written
    return tokens, None

  monkeypatch.setattr(pair_tasks, 'beam_search', perfect)
  found = task.score({}, dataset, 'test', tmp_path)
  best = 100 if name == 'translation' else 1
  assert all(found[score] == pytest.approx(best) for score in task.reported)
  sides = {'predictions': 'de', 'sources': 'en', 'references': 'de'}
  for kind, side in sides.items():
    lines = (tmp_path / f'{kind}-test.txt').read_text()
    assert lines == (tmp_path / f'test.{side}').read_text()


# All of it.


@pytest.mark.slow
def test_a_run(tmp_path, capsys):
  """Trains in micro-batches, resumes, scores any split, and translates."""
  folder = made(tmp_path)
  fields = {
    'data.buckets': '12',
    'train.accumulate': 2,
    'train.num_steps': 12,
    'train.checkpoint_every': 6,
    'train.log_every': 5,
    'optimizer.learning_rate': 1e-3,
    'task.label_smoothing': 0.1,
  }
  given, whole = crossed(folder, **fields), tmp_path / 'whole'
  result = loop.train(given, whole)
  again = tmp_path / 'again'
  shutil.copytree(whole, again)
  shutil.rmtree(again / 'checkpoints' / '12')
  (again / 'result.json').unlink()
  resumed = loop.train(given, again)
  clocks = ('tokens_per_second', 'peak_memory_bytes')
  assert {**result, **dict.fromkeys(clocks)} == {
    **resumed,
    **dict.fromkeys(clocks),
  }
  dataset = tasks.prepare(given, whole)
  batches = take(dataset.train(0), 12)
  assert len({batch['inputs'].shape for batch in batches}) == 2
  assert result['tokens'] == sum(int(b['mask'].sum()) for b in batches)
  assert result['validation_bleu'] >= 0 and result['validation_chrf'] >= 0
  assert 'tok:13a' in result['validation_bleu_signature']
  verb = ['evaluate', '--workdir', str(whole), '--split', 'test_x', '--json']
  said = tmp_path / 'said'
  assert __main__.main([*verb, '--predictions', str(said)]) == 0
  scores = json.loads(capsys.readouterr().out)
  lines = (said / 'predictions-test_x.txt').read_text().splitlines()
  assert len(lines) == 5
  task = tasks.make(given)
  expected = task.compared(lines, [b for _, b in read(folder, 'test_x')])
  assert scores['bleu'] == pytest.approx(expected['bleu'], abs=0.01)
  assert __main__.main([*verb[:3], '--split', 'test_y']) == 2
  assert 'test_y' in capsys.readouterr().err
  sources = [a for a, _ in read(folder, 'test_x')]
  verb = ['generate', '--workdir', str(whole), '--prompt', sources[2]]
  assert __main__.main(verb) == 0
  out = capsys.readouterr().out
  assert ' '.join(out.split()) == lines[2]
