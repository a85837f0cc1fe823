"""Prepared datasets: what is read, when, and what is said where it is not."""

import shutil

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds

from shared_tfm.data.sources import records
from shared_tfm.errors import BadInput


class Zoo(tfds.core.GeneratorBasedBuilder):
  """A dataset with a field of every kind that a task reads."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    f = tfds.features
    fields = {
      'text': f.Text(),
      'number': np.int32,
      'pixels': f.Tensor(shape=(2, 3, 1), dtype=np.uint8),
      'label': f.ClassLabel(names=['cat', 'dog']),
      'pair': f.Translation(['de', 'en']),
      'words': f.Sequence(f.Text()),
      'answers': f.Sequence({'text': f.Text(), 'start': np.int32}),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(fields)
    )

  def _split_generators(self, manager):
    return {
      'train': self._generate_examples(200),
      'test': self._generate_examples(3),
    }

  def _generate_examples(self, size):
    for i in range(size):
      yield i, animal(i)


def animal(i):
  return {
    'text': f'é {i}',
    'number': i,
    'pixels': np.full((2, 3, 1), i, np.uint8),
    'label': i % 2,
    'pair': {'de': f'Tier {i}', 'en': f'animal {i}'},
    'words': ['ä'] * (i % 3),
    'answers': [{'text': f'{i} ü', 'start': i}] * (i % 2),
  }


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  tfds.disable_progress_bar()
  folder = tmp_path_factory.mktemp('zoo')
  Zoo(data_dir=folder, file_format='array_record').download_and_prepare()
  return folder


@pytest.fixture
def folder(prepared, tmp_path):
  """A copy, to be damaged."""
  return shutil.copytree(prepared, tmp_path / 'tfds')


def test_what_a_record_holds(prepared):
  zoo = records.open_tfds('zoo', str(prepared))
  assert zoo.splits == ['test', 'train']
  assert zoo.classes('label') == ['cat', 'dog']
  assert zoo.classes('number') == []
  found = zoo.split('train')
  assert len(found) == 200
  seen = set()
  for record in found:
    i = int(record['number'])
    seen.add(i)
    made = animal(i)
    assert (record.pop('pixels') == made.pop('pixels')).all()
    answers = made.pop('answers')
    assert record.pop('answers') == {
      key: [answer[key] for answer in answers] for key in ('text', 'start')
    }
    assert record == made
  assert seen == set(range(200))


def test_part_of_a_split(prepared):
  zoo = records.open_tfds('zoo', str(prepared))
  whole = [r['number'] for r in zoo.split('train')]
  assert [r['number'] for r in zoo.split('train[:90%]')] == whole[:180]
  assert [r['number'] for r in zoo.split('train[-7:]')] == whole[-7:]
  with pytest.raises(IndexError):
    zoo.split('train[-7:]')[7]


@pytest.mark.parametrize(
  ('split', 'message'),
  [
    ('validation', 'tfds:zoo has no validation split, but test, train'),
    ('train[:90', r'train\[:90 is no part of tfds:zoo: Error parsing split'),
    ('train[:5000]', r'no part of tfds:zoo: Requested slice \[:5000\]'),
    ('train[5:1]', r'train\[5:1\] is no part of tfds:zoo'),
    ('train[:0]', r'train\[:0\] is no part of tfds:zoo'),
  ],
)
def test_a_split_that_is_not_there(prepared, split, message):
  zoo = records.open_tfds('zoo', str(prepared))
  with pytest.raises(BadInput, match=message) as told:
    zoo.split(split)
  assert '\n' not in str(told.value)


def test_a_field_that_is_not_there(prepared):
  zoo = records.open_tfds('zoo', str(prepared))
  zoo.check_field('label')
  rule = 'tfds:zoo has no data.text_field txt; it has answers, label, number,'
  with pytest.raises(BadInput, match=rule):
    zoo.check_field('txt', 'data.text_field')


def test_only_the_records_asked_for_are_read(prepared, monkeypatch):
  from array_record.python import array_record_data_source

  read = []
  real = array_record_data_source.ArrayRecordDataSource.__getitem__

  def counted(self, key):
    read.append(key)
    return real(self, key)

  monkeypatch.setattr(
    array_record_data_source.ArrayRecordDataSource, '__getitem__', counted
  )
  found = records.open_tfds('zoo', str(prepared)).split('train')
  assert len(found) == 200
  assert not read
  found[17], found[-1]
  assert read == [17, 199]


def half(content):
  return content[: len(content) // 2]


def flipped(content):
  changed = bytearray(content)
  changed[len(content) // 2] ^= 255
  return bytes(changed)


@pytest.mark.parametrize(
  ('file', 'damage', 'message'),
  [
    (
      '*-train.*',
      half,
      'record .* is missing; a file of it has been cut short',
    ),
    ('*-train.*', lambda content: content[:-100], 'cannot be read: Corrupted'),
    ('*-train.*', flipped, 'cannot be read: .*hash mismatch'),
    ('*-train.*', lambda content: b'', 'tfds:zoo cannot be read: ArrayRecord'),
    ('dataset_info.json', half, 'says of itself under .* is damaged: .*JSON'),
    ('features.json', half, 'says of itself under .* is damaged: '),
  ],
)
def test_a_damaged_file(folder, file, damage, message):
  [path] = (folder / 'zoo' / '1.0.0').glob(file)
  path.write_bytes(damage(path.read_bytes()))

  def read():
    source = records.open_tfds('zoo', str(folder)).split('train')
    for record in grain.MapDataset.source(source).to_iter_dataset():
      assert record

  with pytest.raises(BadInput, match=message) as told:
    read()
  assert '\n' not in str(told.value)
