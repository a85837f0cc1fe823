"""Sources and the pipeline: what goes in comes out, in order, exactly once."""

import collections
import itertools
import json
import math
import os
import pathlib
import random
import socket
import string
import sysconfig

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow_datasets as tfds

from shared_tfm import config, tasks
from shared_tfm.data.sources import corpus
from shared_tfm.errors import BadInput
from shared_tfm.tasks.tokens import unigram_bits_per_byte

EOS, MASK = 256, 257
LETTERS = string.ascii_letters + string.digits


def write(folder, size, name='text.txt'):
  """A file of `size` random letters, so that no two chunks are the same."""
  text = ''.join(random.Random(size).choices(LETTERS, k=size))
  (folder / name).write_text(text)
  return text


def ready(tmp_path, family='decoder', batch=4, process=(0, 1), **fields):
  """A prepared dataset; by default of the file that `write` writes."""
  fields = {
    'source': 'text',
    'path': str(tmp_path / 'text.txt'),
    'seq_len': 9,
  } | fields
  crossed = config.cross(
    {
      'model': {'family': family},
      'train': {'batch_size': batch},
      'data': fields,
    }
  )
  return tasks.prepare(crossed, tmp_path / 'run', *process)


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def rows(batches, key='targets'):
  return [tuple(row) for batch in batches for row in batch[key].tolist()]


def flat(text):
  return [*text.encode(), EOS]


def assert_same(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Batches.


def test_chunks_cover_the_text_and_targets_lie_one_ahead(tmp_path):
  text = write(tmp_path, 960)
  made = ready(tmp_path)
  for split, part in [('train', text[:864]), ('validation', text[864:])]:
    chunks = made.elements(split, 0)
    whole = flat(part)
    size = (len(whole) - 1) // 9
    assert len(chunks) == size
    inputs = np.concatenate([chunks[i]['inputs'] for i in range(size)])
    targets = np.concatenate([chunks[i]['targets'] for i in range(size)])
    assert inputs.tolist() == whole[: size * 9]
    assert targets.tolist() == whole[1 : size * 9 + 1]


def test_a_batch(tmp_path):
  write(tmp_path, 960)
  batch = next(ready(tmp_path).train(0))
  shapes = {key: (array.shape, array.dtype) for key, array in batch.items()}
  assert shapes == {
    'inputs': ((4, 9), np.int32),
    'targets': ((4, 9), np.int32),
    'weights': ((4, 9), np.float32),
  }
  assert (batch['weights'] == 1).all()


def test_epochs_differ_in_order_and_cover_the_same_chunks(tmp_path):
  write(tmp_path, 960)
  made = ready(tmp_path)  # 96 chunks, 24 batches
  chunks = made.elements('train', 0)
  every = sorted(tuple(chunks[i]['targets'].tolist()) for i in range(96))
  assert len(set(every)) == 96
  iterator = made.train(0)
  first, second = rows(take(iterator, 24)), rows(take(iterator, 24))
  assert sorted(first) == sorted(second) == every
  assert first != second and first != every
  assert rows(take(made.train(0), 24)) == first
  assert rows(take(made.train(1), 24)) != first


def test_processes_share_every_batch(tmp_path):
  """None twice, none left out, and in each step what one process would have."""
  write(tmp_path, 960)
  whole = take(ready(tmp_path, batch=12).train(0), 20)
  shards = [
    take(ready(tmp_path, batch=12, process=(i, 3)).train(0), 20)
    for i in range(3)
  ]
  for batch, *parts in zip(whole, *shards, strict=True):
    assert all(len(part['inputs']) == 4 for part in parts)
    assert sorted(rows(parts)) == sorted(rows([batch]))
  assert len(set(rows(part[i] for part in shards for i in range(8)))) == 96


@pytest.mark.parametrize('family', ['decoder', 'encoder'])
def test_validation_is_the_whole_split_every_time(tmp_path, family):
  write(tmp_path, 2000)
  made = ready(tmp_path, family, batch=6)  # 22 chunks: the 4th batch has 4
  batches = list(made.validation(0))
  assert_same(batches, list(made.validation(0)))
  assert_same(batches[:2], list(made.validation(2)))
  assert_same(batches, list(made.validation(99)))
  assert {b['inputs'].shape for b in batches} == {(6, 9)} and len(batches) == 4
  counted = batches[-1]['weights'].any(axis=1)
  assert counted.tolist() == [True] * 4 + [False] * 2
  chunks = made.elements('validation', 0)
  expected = [tuple(chunks[i]['targets'].tolist()) for i in range(22)]
  assert sorted(rows(batches)[:22]) == sorted(expected)
  for i in range(2):
    share = ready(tmp_path, family, batch=6, process=(i, 2))
    assert_same(batches, list(share.validation(0)))


def test_masking(tmp_path):
  write(tmp_path, 40_000)
  made = ready(tmp_path, 'encoder', batch=50, seq_len=64)
  batches = take(made.train(0), 20)
  assert len(made.elements('train', 0)) == 36_001 // 64
  inputs, targets, weights = (
    np.concatenate([b[key] for b in batches])
    for key in ('inputs', 'targets', 'weights')
  )
  chosen = weights == 1
  assert (weights[~chosen] == 0).all()
  assert (chosen.sum(axis=1) == round(0.15 * 64)).all()
  np.testing.assert_array_equal(inputs[~chosen], targets[~chosen])
  assert abs(chosen.mean(axis=0) - 10 / 64).max() < 0.06  # no place is spared
  masked = (inputs == MASK)[chosen].mean()
  kept = (inputs == targets)[chosen].mean()
  assert abs(masked - 0.8) < 0.02
  assert abs(kept - 0.1) < 0.02
  others = inputs[chosen & (inputs != MASK) & (inputs != targets)]
  assert others.max() < EOS and len(set(others.tolist())) > 200
  whole = flat((tmp_path / 'text.txt').read_text()[:36_000])
  assert set(rows(batches)) <= {
    tuple(whole[i : i + 64]) for i in range(0, len(whole), 64)
  }


def test_every_epoch_is_masked_anew_whoever_reads_it(tmp_path):
  write(tmp_path, 960)

  def read(made, count):
    batches = take(made.train(5), count)
    return list(zip(rows(batches), rows(batches, 'inputs'), strict=True))

  found = read(ready(tmp_path, 'encoder', seq_len=9), 48)
  first, second = dict(found[:96]), dict(found[96:])
  assert first.keys() == second.keys() and len(first) == 96
  assert sum(first[row] != second[row] for row in first) > 60
  shards = [ready(tmp_path, 'encoder', process=(i, 2)) for i in range(2)]
  assert dict(read(shards[0], 24) + read(shards[1], 24)) == first


def test_the_unigram_bound(tmp_path):
  text = write(tmp_path, 3000)
  made = ready(tmp_path, seq_len=30)
  targets = flat(text[2700:])[1 : 10 * 30 + 1]
  counts = collections.Counter(targets)
  bits = -sum(n * math.log2(n / 300) for n in counts.values())
  expected = bits / (300 - counts[EOS])
  assert counts[EOS] == 1
  assert unigram_bits_per_byte(made) == pytest.approx(expected)


# Resuming.

KINDS = {
  'text': {},
  'masked': {'family': 'encoder'},
  'task': {'source': 'modular', 'difficulty': 3, 'seq_len': 12},
}
every_kind = pytest.mark.parametrize('kind', KINDS)


@every_kind
def test_resume_is_exact_at_every_cut(tmp_path, kind):
  write(tmp_path, 400)  # 40 chunks: 10 batches an epoch
  made = ready(tmp_path, **KINDS[kind])
  iterator, expected, states = made.train(3), [], []
  for _ in range(24):
    expected.append(next(iterator))
    states.append(json.dumps(iterator.get_state()))
  for cut, state in enumerate(states, 1):
    assert all(type(leaf) is int for leaf in jax.tree.leaves(json.loads(state)))
    assert len(state) < 100
    resumed = ready(tmp_path, **KINDS[kind]).train(3)
    resumed.set_state(json.loads(state))
    assert_same(expected[cut:], take(resumed, 24 - cut))
    resumed.close()


def test_a_checkpoint_holds_the_iterator(tmp_path):
  write(tmp_path, 960)
  made = ready(tmp_path)
  iterator = made.train(0)
  take(iterator, 30)
  with ocp.CheckpointManager(tmp_path / 'checkpoints') as manager:
    saved = grain.checkpoint.CheckpointSave(iterator)
    manager.save(30, args=ocp.args.Composite(data=saved))
    expected = take(iterator, 5)
    manager.wait_until_finished()
    restored = grain.checkpoint.CheckpointRestore(made.train(0))
    found = manager.restore(30, args=ocp.args.Composite(data=restored))
  assert_same(expected, take(found['data'], 5))


# Sources.


def read(split, source, path='', **fields):
  given = config.Data(source=source, path=str(path), **fields)
  return list(corpus.documents(given, split))


def both(*args, **fields):
  return [read(s, *args, **fields) for s in ('train', 'validation')]


@pytest.mark.slow
def test_local_is_the_standard_library_split_by_file():
  train, validation = both('local')
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  for name in ('json/decoder.py', 'ast.py', 'http/client.py'):
    text = (root / name).read_text()
    assert (text in train) != (text in validation)
  assert 0.05 < len(validation) / len(train) < 0.15
  assert len(train) > 300
  found = set(train + validation)
  for folder in ('test', 'tests', 'idle_test'):
    for path in root.glob(f'*/**/{folder}/*.py'):
      if path.stat().st_size > 200:
        assert path.read_bytes().decode(errors='replace') not in found
  for path in root.glob('test/test_json/test_*.py'):
    assert path.read_text() not in found
  assert [train, validation] == both('local')


def test_one_file_is_split_by_position(tmp_path):
  text = write(tmp_path, 1001) + 'é'
  (tmp_path / 'text.txt').write_text(text)
  train, validation = both('text', tmp_path / 'text.txt')
  assert [train, validation] == [[text[:901]], [text[901:]]]


def test_few_files_are_each_split_by_position(tmp_path):
  for i in range(3):
    write(tmp_path, 100 * (i + 1), f'{i}.md')
  train, validation = both('text', tmp_path)
  assert sorted(map(len, train)) == [90, 180, 270]
  assert sorted(map(len, validation)) == [10, 20, 30]


def test_many_files_are_split_by_file(tmp_path):
  (tmp_path / 'deep' / 'er').mkdir(parents=True)
  for i in range(30):
    name = f'deep/er/{i}.txt' if i % 2 else f'{i}.RST'
    (tmp_path / name).write_text(f'file {i}')
  (tmp_path / 'picture.png').write_bytes(b'\xff\xfe')
  (tmp_path / 'empty.txt').write_text('')
  train, validation = both('text', tmp_path)
  assert sorted(train + validation) == sorted(f'file {i}' for i in range(30))
  assert len(validation) in (3, 4)


def test_max_bytes_takes_a_fair_sample(tmp_path):
  for i in range(100):
    (tmp_path / f'{i:02}.txt').write_text(f'{i:02}é' * 25)  # 100 bytes
  whole = both('text', tmp_path)
  train, validation = both('text', tmp_path, max_bytes=2050)
  assert sum(len(text.encode()) for text in train) == 2050
  assert sum(len(text.encode()) for text in validation) == 205
  assert train[:20] == whole[0][:20] and validation[:2] == whole[1][:2]
  assert whole[0][20].startswith(train[20])
  assert 5 <= sum(text[:2] < '50' for text in train) <= 16
  assert read('train', 'text', tmp_path, max_bytes=3) == [whole[0][0][:2]]


needs_data = pytest.mark.skipif(
  'SHARED_TFM_DATA' not in os.environ,
  reason='SHARED_TFM_DATA names no folder of public data sets',
)


@needs_data
def test_tiny_shakespeare(tmp_path):
  path = pathlib.Path(os.environ['SHARED_TFM_DATA'])
  path = path / 'tiny_shakespeare' / 'input.txt'
  made = ready(tmp_path, path=str(path), seq_len=128)
  text = path.read_text()
  cut = len(text) * 9 // 10
  assert len(made.elements('train', 0)) == cut // 128
  assert len(made.elements('validation', 0)) == (len(text) - cut) // 128
  for row in next(made.train(0))['inputs']:
    assert made.tokenizer.decode(row) in text
  assert 4.5 < unigram_bits_per_byte(made) < 5


# TFDS, with datasets of our own: nothing is downloaded.


class NeedsPackage(tfds.features.Text):
  """A feature that cannot be read where a package is missing."""

  def decode_example_np(self, example):
    import no_such_package  # noqa: F401


class OddVerses(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [  # noqa: RUF012
    tfds.core.BuilderConfig(name=name)
    for name in ('train', 'validation', 'test', 'all', 'none', 'few', 'broken')
  ]

  def _info(self):
    broken = self.builder_config.name == 'broken'
    text = NeedsPackage() if broken else tfds.features.Text()
    features = {'verse': text, 'number': np.int32}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, manager):
    name = self.builder_config.name
    sizes = {'train': 5 if name == 'few' else 250}
    if name in ('validation', 'test'):
      sizes[name] = 7
    elif name == 'all':
      sizes = {'train': 250, 'validation': 5, 'test': 6}
    elif name == 'none':
      sizes = {'verses': 9}
    return {s: self._generate_examples(s, n) for s, n in sizes.items()}

  def _generate_examples(self, split, size):
    for i in range(size):
      yield i, {'verse': f'{split} versé {i:05}', 'number': i}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  tfds.disable_progress_bar()
  folder = tmp_path_factory.mktemp('tfds')
  for kind in OddVerses.BUILDER_CONFIGS:
    OddVerses(
      config=kind.name, data_dir=folder, file_format='array_record'
    ).download_and_prepare()
  OddVerses(
    config='train', data_dir=folder / 'old', file_format='parquet'
  ).download_and_prepare()
  return folder


@pytest.fixture
def no_network(monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError('the network was asked')

  monkeypatch.setattr(socket, 'getaddrinfo', refuse)
  monkeypatch.setattr(socket.socket, 'connect', refuse)


def verses(split, numbers):
  return sorted(f'{split} versé {i:05}' for i in numbers)


@pytest.mark.parametrize(
  ('name', 'held_out', 'size'),
  [
    ('validation', 'validation', 7),
    ('all', 'validation', 5),
  ],
)
def test_tfds_with_a_split_of_its_own(folder, no_network, name, held_out, size):
  found = both(f'tfds:odd_verses/{name}', folder, text_field='verse')
  assert sorted(found[0]) == verses('train', range(250))
  assert sorted(found[1]) == verses(held_out, range(size))


def test_tfds_with_a_test_split_holds_out_training_text(folder, no_network):
  fields = {'path': folder, 'text_field': 'verse', 'parts': '80/20'}
  found = [
    read(split, 'tfds:odd_verses/test', **fields) for split in corpus.SPLITS
  ]
  assert [len(each) for each in found] == [200, 50, 7]
  assert sorted(found[0] + found[1]) == verses('train', range(250))
  assert sorted(found[2]) == verses('test', range(7))


def test_tfds_without(folder, no_network):
  name = 'tfds:odd_verses/train:1.0.0'
  train, validation = both(name, folder, text_field='verse')
  assert (len(train), len(validation)) == (225, 25)
  assert sorted(train + validation) == verses('train', range(250))
  few = both('tfds:odd_verses/few', folder, text_field='verse')
  assert sorted(map(''.join, zip(*few, strict=True))) == verses(
    'train', range(5)
  )
  capped = read('train', name, folder, text_field='verse', max_bytes=100)
  assert sum(len(text.encode()) for text in capped) == 100


def test_tfds_and_test_splits(folder, no_network):
  fields = {'path': folder, 'text_field': 'verse'}
  found = read('test', 'tfds:odd_verses/all', **fields)
  assert sorted(found) == verses('test', range(6))
  parts = [
    read(split, 'tfds:odd_verses/train', parts='90/5/5', **fields)
    for split in corpus.SPLITS
  ]
  assert list(map(len, parts)) == [225, 12, 13]
  assert sorted(itertools.chain(*parts)) == verses('train', range(250))
  with pytest.raises(BadInput, match='has no test split, but train, valid'):
    read('test', 'tfds:odd_verses/validation', **fields)
  with pytest.raises(BadInput, match=r'90/10 leaves no test split of tfds:'):
    read('test', 'tfds:odd_verses/train', **fields)


def test_tfds_becomes_batches(tmp_path, folder):
  source = 'tfds:odd_verses/train'
  made = ready(
    tmp_path, source=source, path=str(folder), text_field='verse', seq_len=40
  )
  for row in next(made.train(0))['inputs']:
    assert 'train versé 00' in made.tokenizer.decode(row)
    assert 2 <= row.tolist().count(EOS) <= 3


@pytest.mark.parametrize(
  ('name', 'fields', 'message'),
  [
    ('odd_verse/train', {}, "nor a name of TFDS; did you mean 'odd_verses'"),
    ('tiny_shakespear', {}, "nor a name .*; did you mean 'tiny_shakespeare'"),
    ('x y/z', {}, 'tfds:x y/z is neither prepared under .*tfds. nor a name'),
    ('huggingface:abc', {}, 'tfds:huggingface:abc is neither prepared'),
    (
      'tiny_shakespeare',
      {},
      'tiny_shakespeare is not prepared under .*tfds.: run python -m shared_tfm'
      ' prepare tiny_shakespeare --path=.*tfds. once',
    ),
    ('odd_verses/train:3.0.0', {}, 'odd_verses/train:3.0.0 is not prepared'),
    (
      'odd_verses/train',
      {'text_field': 'vers'},
      'field vers; .* number, verse',
    ),
    (
      'odd_verses/train',
      {'text_field': 'number'},
      'number .* holds int.*, not',
    ),
    ('odd_verses/none', {}, 'no train split, but verses'),
    (
      'odd_verses/broken',
      {},
      "not installed: No .* 'no_such_package'; for Ten",
    ),
  ],
)
def test_tfds_that_cannot_be_read(folder, no_network, name, fields, message):
  with pytest.raises(BadInput, match=message) as told:
    read('train', f'tfds:{name}', folder, **{'text_field': 'verse'} | fields)
  assert '\n' not in str(told.value)


def test_tfds_in_another_format(folder):
  rule = 'as parquet; only array_record can be read: delete .* and run python'
  with pytest.raises(BadInput, match=rule):
    read('train', 'tfds:odd_verses/train', folder / 'old', text_field='verse')


def test_tfds_known_from_disk_alone(folder):
  (folder / 'on_disk' / '1.0.0').mkdir(parents=True)
  with pytest.raises(
    BadInput, match=r'on_disk has no on_disk:2.0.0, but 1.0.0'
  ):
    read('train', 'tfds:on_disk:2.0.0', folder)


def test_tfds_with_a_lost_file(folder):
  [path] = (folder / 'odd_verses' / 'test' / '1.0.0').glob('*-train.*')
  path.rename(path.with_name('lost'))
  with pytest.raises(
    BadInput, match=r'odd_verses/test cannot be read: .*No such'
  ):
    read('train', 'tfds:odd_verses/test', folder, text_field='verse')
  path.with_name('lost').rename(path)


# Bad input.


def nothing(folder):
  pass


def empty(folder):
  (folder / 'text.txt').write_text('')


def binary(folder):
  (folder / 'text.txt').write_bytes(b'caf\xe9 noir')


def short(folder):
  (folder / 'text.txt').write_text('a' * 100)


@pytest.mark.parametrize(
  ('setup', 'fields', 'message'),
  [
    (nothing, {}, r'data.path .*text\.txt: no such file or folder'),
    (
      nothing,
      {'path': ''},
      "source 'text' needs data.path, a file or a folder",
    ),
    (nothing, {'path': '.'}, r'data.path .* has no files .md .py .raw'),
    (empty, {}, r'the train split of text .*text\.txt holds no text'),
    (binary, {}, r'text\.txt is not UTF-8 text: .* at byte 3'),
    (short, {'max_bytes': 5}, r'the validation split .* holds no text'),
    (
      short,
      {'source': 'txt'},
      "unknown data.source 'txt'; did you mean 'text'",
    ),
    (short, {'source': 'tfds:'}, "unknown data.source 'tfds:'; did you mean"),
    (short, {'source': 'imagenet'}, 'known: local, text, tfds:NAME, copy, rev'),
    (
      short,
      {'seq_len': 91},
      'train split of text has 91 tokens.*91 .* least 92',
    ),
    (short, {'seq_len': 11}, 'validation split .* 11 tokens.* 11 .* least 12'),
    (short, {'process': (0, 3)}, 'batch_size must be divisible by the 3 proc'),
    (short, {'family': 'encoder', 'mask_rate': 0.0}, 'mask_rate must be above'),
  ],
)
def test_bad_input(tmp_path, monkeypatch, setup, fields, message):
  monkeypatch.chdir(tmp_path)
  setup(tmp_path)
  with pytest.raises(BadInput, match=message) as told:
    ready(tmp_path, **fields)
  assert '\n' not in str(told.value)
  assert not (tmp_path / 'run').exists()


def test_a_chunk_that_just_fits(tmp_path):
  short(tmp_path)
  made = ready(tmp_path, batch=2, seq_len=10)
  assert len(made.elements('validation', 0)) == 1
  [batch] = made.validation(0)
  assert batch['weights'].sum(axis=1).tolist() == [10, 0]


def test_a_seed_of_more_than_32_bits(tmp_path):
  write(tmp_path, 960)
  with pytest.raises(BadInput, match=r'train.seed must be below 2\*\*32'):
    ready(tmp_path).train(2**32)
