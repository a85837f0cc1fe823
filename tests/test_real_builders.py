"""TFDS's own builders on real files give what our readers of these files do.

They need TensorFlow (`./setup.sh tf`) and SHARED_TFM_DATA; without, all skip.
"""

import os
import pathlib
import shutil

import numpy as np
import pytest

from shared_tfm import config
from shared_tfm.data.sources import builders, images, labelled, pairs

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    'SHARED_TFM_DATA' not in os.environ,
    reason='SHARED_TFM_DATA names no folder of public data sets',
  ),
]


@pytest.fixture(autouse=True)
def with_tensorflow():
  pytest.importorskip('tensorflow', reason='these builders need TensorFlow')


def files(name):
  return pathlib.Path(os.environ['SHARED_TFM_DATA']) / name


def prepared(name, folder, manual_dir, **fields):
  builders.prepare(name, str(folder), str(manual_dir), trust=True)
  return config.Data(source=f'tfds:{name}', path=str(folder), **fields)


def pictures(data, split):
  found = images.Pictures(data).read(split)
  return sorted((r['image'].tobytes(), int(r['label'])) for r in found)


def test_mnist(tmp_path):
  built = prepared('mnist', tmp_path, files('mnist'))
  ours = config.Data(source='mnist', path=str(files('mnist')))
  assert pictures(built, 'test') == pictures(ours, 'test')
  left, right = (
    sorted(pictures(data, 'train') + pictures(data, 'validation'))
    for data in (built, ours)
  )
  assert len(left) == 60_000 and left == right


def test_cmaterdb(tmp_path):
  built = prepared(
    'cmaterdb/bangla', tmp_path, files('cmaterdb') / 'bangla-numerals'
  )
  found = images.Pictures(built)
  assert found.classes == 10
  sizes = [len(found.read(s)) for s in ('train', 'validation', 'test')]
  assert sizes == [4500, 500, 1000]
  digit = found.read('test')[0]
  assert digit['image'].shape == (32, 32, 3)
  assert digit['image'].dtype == np.uint8


def test_trec(tmp_path):
  built = prepared('trec', tmp_path, files('trec'))
  ours = config.Data(source='trec', path=str(files('trec')))
  left, right = (labelled.open_set(data, 6).read for data in (built, ours))
  assert sorted(left('test')) == sorted(right('test'))
  assert len(left('train')) + len(left('validation')) == 5_452


def test_mrpc(tmp_path):
  manual = tmp_path / 'files'
  shutil.copytree(files('glue') / 'MRPC', manual)
  (manual / 'dev_ids.tsv').rename(manual / 'data_mrpc_dev_ids.tsv')
  built = prepared('glue/mrpc', tmp_path, manual)
  ours = config.Data(source='glue:mrpc', path=str(files('glue')))
  left, right = (labelled.open_set(data, 2).read for data in (built, ours))
  theirs, own = (
    {item[:2] for item in read('validation')} for read in (left, right)
  )
  assert theirs == own and len(own) == 408
  theirs, own = ({item[:2] for item in read('train')} for read in (left, right))
  assert own < theirs and len(theirs) == 3668  # the tsv file lacks one


def test_aeslc(tmp_path):
  fields = {'source_field': 'email_body', 'target_field': 'subject_line'}
  built = prepared('aeslc', tmp_path, files('aeslc'), **fields)
  ours = config.Data(source='aeslc', path=str(files('aeslc')))
  for split in ('train', 'validation', 'test'):
    theirs, own = (pairs.read(data, split) for data in (built, ours))
    assert len(theirs) == len(own)
    subjects = [sorted(x.strip() for _, x in each) for each in (theirs, own)]
    assert subjects[0] == subjects[1]
