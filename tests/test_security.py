"""What is read is data: it is not run, writes nowhere, and fills no memory."""

import ast
import dataclasses
import gzip
import io
import json
import os
import pathlib
import pickle
import sys
import tarfile
import zipfile
from html.parser import HTMLParser

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.core.download import extractor
from test_checkpoint import restored, saved

from shared_tfm import compare
from shared_tfm import config as configs
from shared_tfm.config import Data
from shared_tfm.data import tokenizers
from shared_tfm.data.sources import builders, images, pairs, records, squad
from shared_tfm.data.sources import texts as text_files
from shared_tfm.errors import BadInput
from shared_tfm.report import compare as comparing
from shared_tfm.report import results_file, sweep_file, trained
from shared_tfm.train import log, runs

ROOT = pathlib.Path(__file__).parents[1]

# --- The source: no call that runs what it reads.

MODULES = {
  *('pickle', '_pickle', 'cloudpickle', 'dill', 'joblib', 'jsonpickle'),
  *('marshal', 'shelve'),
}
CALLS = {
  *('eval', 'exec', 'os.system', 'os.popen', 'torch.load'),
  *('yaml.load', 'yaml.full_load', 'yaml.unsafe_load', 'tempfile.mktemp'),
}
METHODS = {'extractall', 'unpack_archive', 'read_pickle', 'exec_module'}
ALLOWED = {
  # A config file is a program, by design, and is the user's own.
  ('shared_tfm/config_file.py', 'exec_module'),
  ('tests/test_configs.py', 'exec_module'),
  ('tests/pages.py', 'exec'),  # of the Python that our pages show
  ('tests/test_generators.py', 'eval'),  # of what the generator wrote
}


def suspicious(source):
  """The modules and calls in a source that may run, or unpack, what is read."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from MODULES & {name.name.partition('.')[0] for name in node.names}
    if isinstance(node, ast.ImportFrom):
      yield from MODULES & {(node.module or '').partition('.')[0]}
    if not isinstance(node, ast.Call):
      continue
    name = ast.unparse(node.func)
    given = {key.arg: ast.unparse(key.value) for key in node.keywords}
    if name in CALLS:
      yield name
    if name.rpartition('.')[2] in METHODS:
      yield name.rpartition('.')[2]
    if name in {'np.load', 'numpy.load', 'jnp.load', 'jax.numpy.load'}:
      if given.get('allow_pickle') != 'False':
        yield name
    elif given.get('allow_pickle', 'False') != 'False':
      yield name
    if given.get('shell', 'False') != 'False':
      yield f'{name}(shell)'


@pytest.mark.slow
def test_no_source_runs_what_it_reads():
  folders = (
    'benchmarks',
    'configs',
    'docs',
    'experiments',
    'shared_tfm',
    'tests',
  )
  paths = [path for name in folders for path in (ROOT / name).rglob('*.py')]
  assert len(paths) > 150
  found = {
    (path.relative_to(ROOT).as_posix(), what)
    for path in paths
    if path != pathlib.Path(__file__)
    for what in suspicious(path.read_text())
  }
  assert found == ALLOWED


@pytest.mark.parametrize(
  ('source', 'found'),
  [
    ('import pickle', ['pickle']),
    ('import os, joblib.memory', ['joblib']),
    ('from pickle import loads', ['pickle']),
    ('np.load(path)', ['np.load']),
    ('np.load(path, allow_pickle=True)', ['np.load']),
    ('np.load(path, allow_pickle=given)', ['np.load']),
    ('np.load(path, allow_pickle=False)', []),
    ('np.fromfile(path, allow_pickle=True)', ['np.fromfile']),
    ('torch.load(path)', ['torch.load']),
    ('yaml.safe_load(text)', []),
    ('yaml.load(text)', ['yaml.load']),
    ('tarfile.open(path).extractall()', ['extractall']),
    ('shutil.unpack_archive(path)', ['unpack_archive']),
    ('subprocess.run(text, shell=True)', ['subprocess.run(shell)']),
    ('model.eval()', []),
    ('eval(text)', ['eval']),
  ],
)
def test_what_is_suspicious(source, found):
  assert list(suspicious(source)) == found


# --- A pickle that would make a folder, planted where files are read.


class Trap:
  def __init__(self, folder):
    self.folder = str(folder)

  def __reduce__(self):
    return os.mkdir, (self.folder,)


@pytest.fixture
def trap(tmp_path):
  """A pickle's bytes, and the folder that appears if anybody unpickles it."""
  return pickle.dumps(Trap(tmp_path / 'sprung')), tmp_path / 'sprung'


def test_the_trap_is_one(trap):
  content, sprung = trap
  pickle.loads(content)
  assert sprung.is_dir()


def compared(folder):
  config = {
    'model': {'num_layers': 2, 'd_model': 8, 'num_heads': 1, 'max_len': 8},
    'data': {'source': 'text', 'path': str(folder / 'text.txt')},
    'train': {'num_steps': 1, 'batch_size': 1},
  }
  (folder / 'text.txt').write_text('some text\n' * 50)
  compare(config, ['all'], 1, folder)


READERS = {
  'config.json': runs.read_config,
  'tokenizer.json': lambda folder: tokenizers.make('bpe', [], 300, folder),
  'runs/all/seed-0/result.json': compared,
  'sweep.json': sweep_file.begun,
  'results.csv': lambda folder: results_file.read(folder / 'results.csv'),
  'train.txt': lambda folder: text_files.File(folder / 'train.txt').read(),
  't10k-images-idx3-ubyte': lambda folder: images.Pictures(
    Data(source='mnist', path=str(folder))
  ),
  'train.json': lambda folder: squad.questions(
    Data(source='squad', path=str(folder))
  ),
  'AESLC-master.zip': lambda folder: pairs.read(
    Data(source='aeslc', path=str(folder)), 'train'
  ),
}
NAMES = {**READERS}
NAMES['train.json.gz'] = READERS['train.json']
NAMES['train-images-idx3-ubyte.gz'] = READERS['t10k-images-idx3-ubyte']


@pytest.mark.parametrize('name', NAMES)
def test_a_pickle_is_refused(tmp_path, trap, name):
  content, sprung = trap
  path = tmp_path / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(gzip.compress(content) if path.suffix == '.gz' else content)
  for kind in ('t10k', 'train'):
    for rest in ('images-idx3', 'labels-idx1'):
      other = tmp_path / f'{kind}-{rest}-ubyte'
      if (
        not other.exists() and not other.with_name(f'{other.name}.gz').exists()
      ):
        other.write_bytes(bytes([0, 0, 8, int(rest[-1]), *[0, 0, 0, 0] * 3]))
  with pytest.raises(BadInput) as told:
    NAMES[name](tmp_path)
  assert '\n' not in str(told.value)
  assert not sprung.exists()


SOUND = '{"kind": "train", "step": 1, "time": 2.0}\n'  # a line of a log


def test_a_pickle_in_a_log_is_left_out(tmp_path, trap):
  content, sprung = trap
  (tmp_path / log.METRICS).write_text(SOUND + content.decode('latin-1'))
  assert log.read(tmp_path) == [json.loads(SOUND)]
  assert not sprung.exists()


@pytest.mark.parametrize(
  'odd', ['[]', '3', 'null', '"kind"', '{"step": 2}', '[' * 100_000]
)
def test_a_line_of_a_log_that_is_none_is_left_out(tmp_path, odd):
  (tmp_path / log.METRICS).write_text(f'{SOUND}{odd}\n{SOUND}')
  assert log.read(tmp_path) == [json.loads(SOUND)] * 2


@pytest.mark.filterwarnings('ignore:coroutine .* never awaited:RuntimeWarning')
def test_a_pickle_in_a_checkpoint_is_not_loaded(tmp_path, trap):
  content, sprung = trap
  saved(tmp_path, {1: 1.0, 2: 2.0})
  files = [
    p for p in (tmp_path / 'checkpoints' / '2').rglob('*') if p.is_file()
  ]
  assert files
  for path in files:
    path.write_bytes(content)
  assert restored(tmp_path)[0] == 1
  assert not sprung.exists()


# --- The config of a run's folder.


def with_field(path, value):
  config = dataclasses.asdict(configs.cross({}))
  *groups, name = path.split('.')
  at = config
  for group in groups:
    at = at[group]
  at[name] = value
  return json.dumps(config)


@pytest.mark.parametrize(
  ('content', 'rule'),
  [
    pytest.param('[' * 100_000, 'is not a config', id='lists'),
    pytest.param('{"a":' * 100_000, 'is not a config', id='dicts'),
    ('{"model":' * 400 + '1' + '}' * 400, "unknown config field 'model.model'"),
    (
      with_field('model.d_model', [[[]]]),
      r'd_model is a int, got \[\[\[\]\]\]',
    ),
    (with_field('model.d_model', 10**400), r'd_model must be below \d+, got 1'),
    (with_field('model.num_layers', 10**15), 'num_layers must be below 65536'),
    (
      with_field('optimizer.learning_rate', 10**400),
      'learning_rate is a float',
    ),
    (with_field('optimizer.weight_decay', float('inf')), 'must be finite'),
    (f'{{"model": {"9" * 5000}}}', 'is not a config'),
    (
      '{"preset": "albert", "model": {"num_layers": 1000000000000000}}',
      'below',
    ),
    (
      with_field('model.sharing.layer', 'all+' * 200 + 'all'),
      'at most 100 lev',
    ),
    (with_field('model.d_model', '64'), "d_model is a int, got '64'"),
    (with_field('model.d_model', True), 'd_model is a int, got True'),
    (with_field('model.use_bias', 1), 'use_bias is a bool, got 1'),
    (with_field('model.sharing', []), r'is a group of fields, got \[\]'),
    (with_field('model.__class__', 'os.system'), 'field .*__class__'),
    ('{"__class__": "os.system"}', "unknown config field '__class__'"),
    ('{"!!python/object": "os.system"}', 'unknown config field'),
    (with_field('model.family', 'a\nb'), r"unknown model.family 'a\\nb'"),
    (
      with_field('model.sharing.layer', '__import__("os").mkdir("sprung")'),
      'unknown sharing scheme',
    ),
    ('[]', r'a config is a group of fields, got \[\]'),
    ('null', 'a config is a group of fields, got None'),
    ('', 'is not a config'),
    ('\0\0', 'is not a config'),
  ],
  ids=lambda value: value[:30],
)
def test_the_config_of_a_folder_is_data(tmp_path, monkeypatch, content, rule):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'config.json').write_text(content)
  with pytest.raises(BadInput, match=rule) as told:
    runs.read_config(tmp_path)
  assert '\n' not in str(told.value)
  assert os.listdir(tmp_path) == ['config.json']


def test_a_result_of_a_folder_is_data(tmp_path):
  path = tmp_path / 'runs' / 'all' / 'seed-0' / 'result.json'
  path.parent.mkdir(parents=True)
  for content in ('[' * 100_000, '[]', 'null', '{'):
    path.write_text(content)
    with pytest.raises(BadInput, match=r'result\.json is not a result'):
      compared(tmp_path)


def test_files_of_json_may_not_be_too_deep(tmp_path):
  for name in ('tokenizer.json', 'train.json'):
    (tmp_path / name).write_text('[' * 100_000)
  for kind in ('bpe', 'characters', 'words'):
    with pytest.raises(BadInput, match=r'tokenizer\.json is not a'):
      tokenizers.make(kind, [], 300, tmp_path)
  with pytest.raises(BadInput, match=r'train\.json is not JSON'):
    READERS['train.json'](tmp_path)


# --- The report.


class Tags(HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.words = set(), set(), []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self.attributes |= {name for name, _ in attrs}

  def handle_data(self, data):
    self.words.append(data)


@pytest.mark.parametrize(
  'evil',
  [
    '<script>alert(1)</script>',
    '"><img src=x onerror=alert(1)>',
    "'; onload='alert(1)",
    '</td></table><iframe src=//x>',
    '{{ 7 * 7 }}{% raw %}',
  ],
)
def test_a_report_shows_names_as_they_are(tmp_path, evil):
  config = configs.cross({'data': {'path': evil, 'text_field': evil}})
  run = trained.Run(evil, 0, config, tmp_path / 'run')
  number = {int: 3, float: 0.5, str: evil}
  fields = {name: number[kind] for name, kind in results_file.FIELDS.items()}
  comparing.report(tmp_path, [run], [results_file.Result(**fields)])
  text = (tmp_path / 'report.html').read_text()
  found = Tags(text)
  assert found.tags.isdisjoint({'iframe', 'object', 'link', 'base'})
  assert text.count('<script') == text.count('</script>') == 2  # both are ours
  assert not any(name.startswith('on') for name in found.attributes)
  assert found.words.count(evil) >= 4  # scheme, owner table, two fields
  assert "default-src 'none'" in text and 'unsafe-inline' not in text
  assert len([tag for tag in found.tags if tag == 'img']) == 1


# --- Archives: nothing leaves them, and they fill no memory.

OUTSIDE = '../outside.txt', '../../outside.txt', '/tmp/outside_of_it.txt'


def tree(folder):
  return {
    path: path.is_file() and path.read_bytes() for path in folder.rglob('*')
  }


def test_members_of_a_zip_file_are_read_where_they_are(tmp_path):
  inner = tmp_path / 'a' / 'b'
  inner.mkdir(parents=True)
  with zipfile.ZipFile(inner / 'x.zip', 'w') as archive:
    for name in OUTSIDE:
      archive.writestr(name, 'the text\n' * 9)
  before = tree(tmp_path)
  files = text_files.listed(inner / 'x.zip')
  assert len(files) == 3
  assert {file.read() for file in files} == {'the text\n' * 9}
  assert tree(tmp_path) == before
  assert not pathlib.Path(OUTSIDE[2]).exists()


def test_what_tfds_unpacks_stays_in_its_folder():
  """It writes files under the names of these pairs (with TensorFlow only)."""
  zipped, tarred = io.BytesIO(), io.BytesIO()
  with zipfile.ZipFile(zipped, 'w') as archive:
    for name in ('inside.txt', *OUTSIDE):
      archive.writestr(name, 'text')
  with tarfile.open(fileobj=tarred, mode='w') as archive:
    for name in ('inside.txt', *OUTSIDE):
      archive.addfile(tarfile.TarInfo(name))
    link = tarfile.TarInfo('link')
    link.type, link.linkname = tarfile.SYMTYPE, '../..'
    archive.addfile(link)
  for file, opened in (
    (zipped, extractor.iter_zip),
    (tarred, extractor.iter_tar),
  ):
    file.seek(0)
    assert [name for name, _ in opened(file)] == ['inside.txt']


def bomb(size=1 << 20):
  """A kilobyte that unpacks to a megabyte."""
  return gzip.compress(bytes(size))


@pytest.mark.parametrize(
  'where', ['gz', 'zip', 'gz in zip', 'idx', 'json', 'aeslc']
)
def test_what_unpacks_to_too_much_is_not_read(tmp_path, monkeypatch, where):
  monkeypatch.setattr(text_files, 'ALWAYS', 1000)
  name = {'gz': 'train.txt.gz', 'idx': 't10k-images-idx3-ubyte.gz'}.get(where)
  email = 'x/enron_subject_line/train/a.subject'
  if where == 'json':
    name = 'train.json.gz'
  if name:
    (tmp_path / name).write_bytes(bomb())
    for kind in ('train-images-idx3', 'train-labels-idx1', 't10k-labels-idx1'):
      plain = bytes([0, 0, 8, int(kind[-1]), *[0] * 4 * int(kind[-1])])
      (tmp_path / f'{kind}-ubyte').write_bytes(plain)
  else:
    path = tmp_path / pairs.AESLC
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
      if where == 'gz in zip':
        archive.writestr('train.txt.gz', bomb())
      else:
        member = email if where == 'aeslc' else 'train.txt'
        archive.writestr(member, bytes(1 << 20))
  reads = {
    'gz': lambda: text_files.File(tmp_path / 'train.txt.gz').read(),
    'zip': lambda: text_files.listed(tmp_path / pairs.AESLC)[0].read(),
    'gz in zip': lambda: text_files.listed(tmp_path / pairs.AESLC)[0].read(),
    'idx': lambda: images._mnist(str(tmp_path), 'test'),
    'json': lambda: READERS['train.json'](tmp_path),
    'aeslc': lambda: READERS['AESLC-master.zip'](tmp_path),
  }
  with pytest.raises(
    BadInput, match=r'not read: \d+ bytes unpack to more than'
  ):
    reads[where]()


def test_what_unpacks_to_much_text_is_read(tmp_path):
  """A megabyte of one letter is more than 200 times what it is packed."""
  (tmp_path / 'train.txt.gz').write_bytes(gzip.compress(b'a' * (1 << 20)))
  file = text_files.File(tmp_path / 'train.txt.gz')
  assert file.read() == 'a' * (1 << 20)


# --- Prepared datasets.


class Lines(tfds.core.GeneratorBasedBuilder):
  """One line of text."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    fields = {'line': tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(fields)
    )

  def _split_generators(self, manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    yield 0, {'line': 'text'}


@pytest.fixture
def dataset(tmp_path):
  """A prepared dataset, and the file that says what its records are."""
  tfds.disable_progress_bar()
  where = tmp_path / 'a'
  builders.prepare('lines', str(where))
  (path,) = where.rglob('features.json')
  return where, path


def planted(tmp_path, monkeypatch, name):
  """A module that leaves a folder when it is imported."""
  (tmp_path / f'{name}.py').write_text(
    f'import os\nos.mkdir({str(tmp_path / "sprung")!r})\n'
  )
  monkeypatch.syspath_prepend(tmp_path)


def nested(content, name):
  content['featuresDict']['features']['line']['pythonClassName'] = name


def outer(content, name):
  content['pythonClassName'] = name


def other_spelling(content, name):
  del content['pythonClassName']
  content['python_class_name'] = name


def legacy(content, name):
  content['type'] = name
  content['content'] = {}


@pytest.mark.parametrize('change', [nested, outer, other_spelling, legacy])
def test_a_dataset_has_no_module_imported(
  tmp_path, monkeypatch, dataset, change
):
  where, path = dataset
  name = f'planted_{change.__name__}'
  planted(tmp_path, monkeypatch, name)
  content = json.loads(path.read_text())
  change(content, f'{name}.Feature')
  path.write_text(json.dumps(content))
  with pytest.raises(
    BadInput, match=f'names the class .{name}.Feature'
  ) as told:
    records.open_tfds('lines', str(where))
  assert '\n' not in str(told.value)
  assert not (tmp_path / 'sprung').exists()
  # What it is kept from:
  with pytest.raises(ValueError, match='Unrecognized'):
    read_only_builder.builder_from_files('lines', data_dir=where)
  assert (tmp_path / 'sprung').exists() and name in sys.modules


@pytest.mark.parametrize('name', ['kaggle:set', 'someone:set/config'])
def test_no_code_of_others_is_downloaded(tmp_path, name):
  with pytest.raises(BadInput, match='would download the code of others'):
    builders.prepare(name, str(tmp_path))
