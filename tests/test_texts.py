"""Files of text: plain, gzipped and in zip files; whole, or one clear line."""

import gzip
import itertools
import os
import pathlib
import shutil
import tracemalloc
import zipfile

import pytest

from shared_tfm import config, tasks
from shared_tfm.data import tokenizers, vocabularies
from shared_tfm.data.sources import builders, corpus
from shared_tfm.errors import BadInput

needs_data = pytest.mark.skipif(
  'SHARED_TFM_DATA' not in os.environ,
  reason='SHARED_TFM_DATA names no folder of public data sets',
)
SPLITS = ('train', 'validation', 'test')
SHAKESPEARE = 1_115_394  # characters


def data(name):
  return pathlib.Path(os.environ['SHARED_TFM_DATA']) / name


def read(split, path, **fields):
  given = config.Data(source='text', path=str(path), **fields)
  return list(corpus.documents(given, split))


@pytest.mark.slow
@pytest.mark.parametrize(
  'model',
  [{}, {'family': 'encoder', 'num_classes': 2}],
  ids=['language_model', 'sentence_order'],
)
@pytest.mark.parametrize('tokenizer', ['bytes', 'bpe', 'characters', 'words'])
def test_text_need_not_fit_into_memory(tmp_path, monkeypatch, model, tokenizer):
  """What is held does not grow with the text."""
  monkeypatch.setattr(tokenizers, 'GROUP', 8)
  line = 'The quick brown fox. It jumps over the lazy dog. \n'
  peaks = []
  for size in (100, 500):
    folder = tmp_path / str(size)
    folder.mkdir()
    # Python interns the names of paths, in a table that may grow by megabytes
    # at any new name: they are known, and held, before anything is measured.
    paths = [folder / f'{i:03}.txt' for i in range(size)]
    for i, path in enumerate(paths):
      path.write_text(f'{i} ' + line * 100)
    given = config.cross(
      {
        'model': {**model, 'vocab_size': 300},
        'data': {
          'source': 'text',
          'path': str(folder),
          'tokenizer': tokenizer,
        },
        'task': {'sentence_order': 'family' in model},
      }
    )
    tracemalloc.start()
    made = tasks.prepare(given, folder / 'run')
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert next(made.train(0))['inputs'].shape == (16, 128)
  assert peaks[1] - peaks[0] < 400 * 100 * len(line) / 4


def zipped(path, members):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, text in members.items():
      archive.writestr(name, text)


def plain(folder):
  for name in ('train.txt', 'valid.txt', 'test.txt', 'more.txt'):
    (folder / name).write_text(name)
  return ('train.txt', 'valid.txt', 'test.txt')


def published(folder):
  names = [f'wiki.{split}.tokens' for split in ('train', 'valid', 'test')]
  for name in names:
    (folder / name).write_text(name)
  return names


def in_a_zip(folder):
  zipped(
    folder / 'corpus.zip',
    {
      'corpus/': '',
      'corpus/train.txt': 'a',
      '__MACOSX/corpus/._train.txt': 'junk',
      'corpus/dev.txt': 'b',
    },
  )
  (folder / 'Test.txt.GZ').write_bytes(gzip.compress(b'c'))
  (folder / 'SOURCE.txt').write_text('where it is from')
  return 'abc'


@pytest.mark.parametrize('setup', [plain, published, in_a_zip])
def test_files_that_are_splits(tmp_path, setup):
  expected = setup(tmp_path)
  found = [read(split, tmp_path) for split in SPLITS]
  assert found == [[text] for text in expected]


def test_a_zip_file_by_its_own_name(tmp_path):
  in_a_zip(tmp_path)
  path = tmp_path / 'corpus.zip'
  assert [read(s, path) for s in SPLITS[:2]] == [['a'], ['b']]
  zipped(path, {f'{i:02}.txt': f'{i:02}' for i in range(20)} | {'x.png': 'no'})
  found = [read(s, path, parts='90/5/5') for s in SPLITS]
  assert list(map(len, found)) == [18, 1, 1]
  assert sorted(itertools.chain(*found)) == [f'{i:02}' for i in range(20)]


def test_names_of_splits_mean_nothing_elsewhere(tmp_path):
  for name in ('train.py', 'test.py', 'dev.md', 'train.txt', 'deep/test.txt'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(name.ljust(100))
  train, validation = (read(s, tmp_path) for s in SPLITS[:2])
  assert list(map(len, train)) == [90] * 5
  assert list(map(len, validation)) == [10] * 5


def test_parts(tmp_path):
  text = ''.join(map(chr, range(0x100, 0x100 + 999)))
  (tmp_path / 'a.txt').write_text(text)
  found = [read(s, tmp_path, parts='90/5/5') for s in SPLITS]
  assert [len(text) for text in itertools.chain(*found)] == [899, 50, 50]
  assert ''.join(itertools.chain(*found)) == text
  for i in range(19):
    (tmp_path / f'{i}.txt').write_text(f'{i}')
  found = [read(s, tmp_path, parts='90/5/5') for s in SPLITS]
  assert list(map(len, found)) == [18, 1, 1]
  assert [read(s, tmp_path) for s in SPLITS[:2]] == [
    found[0],
    found[1] + found[2],
  ]


@needs_data
def test_wikitext_2_as_it_is_published():
  found = [read(split, data('wikitext2')) for split in SPLITS]
  counts = [vocabularies.count_words(text) for [text] in found]
  assert counts == [2_088_628, 217_646, 245_569]  # 1609.07843, table 1
  sizes = [len(text.encode()) for [text] in found]
  assert sizes == [10_797_148, 1_121_681, 1_256_449]


@needs_data
def test_tiny_shakespeare_in_the_parts_of_tfds():
  path = data('tiny_shakespeare') / 'input.txt'
  found = [read(split, path, parts='90/5/5') for split in SPLITS]
  train = int(SHAKESPEARE * 0.9)  # as TFDS's builder has it
  half = int((SHAKESPEARE - train) * 0.5)
  assert [len(text) for [text] in found] == [
    train,
    half,
    SHAKESPEARE - train - half,
  ]
  assert ''.join(itertools.chain(*found)) == path.read_text()


@needs_data
def test_tiny_shakespeare_as_tfds_builds_it(tmp_path):
  pytest.importorskip('tensorflow', reason='its builder needs TensorFlow')
  folder, manual = str(tmp_path), str(data('tiny_shakespeare'))
  builders.prepare('tiny_shakespeare', folder, manual)
  for split in SPLITS:
    built = config.Data(source='tfds:tiny_shakespeare', path=folder)
    ours = read(split, data('tiny_shakespeare') / 'input.txt', parts='90/5/5')
    assert list(corpus.documents(built, split)) == ours


# Bad input.


def cut(path):
  path.write_bytes(path.read_bytes()[:-20])


def flipped(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 3] ^= 0xFF
  path.write_bytes(content)


LONG = {f'{s}.txt': ''.join(map(str, range(2000))) for s in ('train', 'valid')}


def cut_zip(folder):
  zipped(folder / 'x.zip', LONG)
  cut(folder / 'x.zip')


def flipped_zip(folder):
  zipped(folder / 'x.zip', LONG)
  flipped(folder / 'x.zip')


def no_zip(folder):
  (folder / 'x.zip').write_text('<html>not found</html>')


def cut_gz(folder):
  plain(folder)
  (folder / 'train.txt').unlink()
  path = folder / 'train.txt.gz'
  path.write_bytes(gzip.compress(LONG['train.txt'].encode()))
  cut(path)


def flipped_gz(folder):
  cut_gz(folder)
  path = folder / 'train.txt.gz'
  path.write_bytes(gzip.compress(LONG['train.txt'].encode()))
  flipped(path)


def no_gz(folder):
  plain(folder)
  shutil.move(folder / 'train.txt', folder / 'train.txt.gz')


def not_utf8(folder):
  zipped(folder / 'x.zip', {'train.txt': b'caf\xe9', 'valid.txt': 'a'})


def no_validation(folder):
  plain(folder)
  (folder / 'valid.txt').unlink()


def two_trains(folder):
  plain(folder)
  zipped(folder / 'x.zip', LONG)


@pytest.mark.parametrize(
  ('setup', 'split', 'message'),
  [
    (cut_zip, 'train', r'x\.zip is not a whole zip file: '),
    (no_zip, 'train', r'x\.zip is not a whole zip file: File is not a zip'),
    (flipped_zip, 'train', r'x\.zip: train\.txt cannot be read: '),
    (cut_gz, 'train', r'train\.txt\.gz cannot be read: Compressed file ended'),
    (flipped_gz, 'train', r'train\.txt\.gz cannot be read: '),
    (no_gz, 'train', r'train\.txt\.gz cannot be read: Not a gzipped file'),
    (not_utf8, 'train', r'x\.zip: train\.txt is not UTF-8 text: .* at byte 3'),
    (no_validation, 'validation', r'has no validation split, but test, train$'),
    (
      two_trains,
      'train',
      r'has two files for train: .*train\.txt and .*x\.zip',
    ),
  ],
)
def test_files_that_cannot_be_read(tmp_path, setup, split, message):
  setup(tmp_path)
  with pytest.raises(BadInput, match=message) as told:
    read(split, tmp_path)
  assert '\n' not in str(told.value)


def test_no_test_split(tmp_path):
  (tmp_path / 'a.txt').write_text('a' * 100)
  rule = 'data.parts 90/10 leaves no test split of text; 90/5/5 does'
  with pytest.raises(BadInput, match=rule):
    read('test', tmp_path)


@pytest.mark.parametrize('parts', ['', '90', '90/5', '100/0', '50/50/x', '9/1'])
def test_parts_that_make_no_whole(parts):
  with pytest.raises(BadInput, match='must be two or three percentages'):
    config.cross({'data': {'parts': parts}})
