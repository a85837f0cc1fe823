"""The command line: what it prints, and the one line it says of bad input."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest

from shared_tfm.__main__ import main

CONFIG = """\
import ml_collections

def get_config(argument=''):
  return ml_collections.ConfigDict({
    'model': {
      'num_layers': 12,
      'd_model': 16,
      'num_heads': 2,
      'max_len': 16,
      'sharing': {'layer': argument or 'cycle:3'},
    },
    'train': {
      'num_steps': 4,
      'batch_size': 4,
      'eval_every': 2,
      'eval_batches': 2,
      'checkpoint_every': 2,
    },
    'data': {'source': 'text', 'path': 'text.txt'},
  })
"""
TEXT = 'every layer reads a row of the bank of weights; ' * 60


def tree(folder):
  """Every path below, with the bytes of each file and when it was written."""
  return {
    path: (path.is_file() and path.read_bytes(), path.stat().st_mtime_ns)
    for path in folder.rglob('*')
  }


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A folder with config.py, text.txt and a finished run, in `run`."""
  folder = tmp_path_factory.mktemp('trained')
  (folder / 'config.py').write_text(CONFIG)
  (folder / 'text.txt').write_text(TEXT)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    assert main(['train', '--config=config.py', '--workdir=run']) == 0
  return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder with config.py and text.txt, in which the test runs."""
  (tmp_path / 'config.py').write_text(CONFIG)
  (tmp_path / 'text.txt').write_text(TEXT)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture
def run(here, trained):
  """The same folder, with a finished run in `run`."""
  shutil.copytree(trained / 'run', here / 'run')
  return here / 'run'


def said(capsys, *words):
  """What a command that is done prints."""
  capsys.readouterr()
  assert main(words) == 0
  return capsys.readouterr().out


def refused(capsys, here, *words):
  """What is said of bad input: one line, and nothing is written."""
  before = tree(here)
  capsys.readouterr()
  assert main(words) == 2
  printed = capsys.readouterr()
  assert not printed.out
  (line,) = printed.err.splitlines()
  assert line.startswith('error: ')
  assert tree(here) == before
  return line.removeprefix('error: ')


# What the verbs say.

DESCRIBE = ('describe', '--config=config.py')


def test_describe_as_json(here, capsys):
  described = json.loads(said(capsys, *DESCRIBE, '--json'))
  cycle = [0, 1, 2] * 4
  # Of a layer: four products of 16 x 16 and two of 16 x 64, with biases, and
  # two norms; outside: 258 tokens, 16 positions, a norm.
  layer = 4 * (16 * 16 + 16) + (16 * 64 + 64) + (64 * 16 + 16) + 2 * 32
  embedding = (258 + 16) * 16
  products = 12 * (2 * 4 * 16 * 16 + 2 * 2 * 16 * 64 + 2 * 2 * 16 * 16)
  forward = products + 2 * 16 * 258
  assert described == {
    'owners': {'attention': cycle, 'feed_forward': cycle, 'norm': cycle},
    'params': {
      'stored': 3 * layer + embedding + 32,
      'applied': 12 * layer + embedding + 32,
      'embedding': embedding,
      'non_embedding': 3 * layer + 32,
    },
    'sharing_ratio': 4.0,
    'flops_per_token': {'forward': forward, 'train': 3 * forward},
    'kv_bytes_per_token': 2 * 12 * 16 * 4,
    'weight_bytes': 4 * (3 * layer + embedding + 32),
  }


def test_describe_has_its_keys_in_the_documented_order(here, capsys):
  described = json.loads(said(capsys, *DESCRIBE, '--json'))
  assert list(described) == [
    'owners',
    'params',
    'sharing_ratio',
    'flops_per_token',
    'kv_bytes_per_token',
    'weight_bytes',
  ]
  assert list(described['params']) == [
    'stored',
    'applied',
    'embedding',
    'non_embedding',
  ]


def test_describe_draws_the_tables(here, capsys):
  printed = said(capsys, *DESCRIBE, '--config.model.num_layers=6')
  (line,) = (x for x in printed.splitlines() if x.strip().startswith('att'))
  assert '0  1  2  0  1  2' in line


@pytest.mark.parametrize('field', ['attention.key', 'attention_key'])
def test_a_part_of_a_component_may_be_written_with_its_dot(here, capsys, field):
  words = f'--config.model.sharing.{field}=all', '--json'
  owners = json.loads(said(capsys, *DESCRIBE, *words))['owners']
  assert owners == {
    'attention': [0, 1, 2] * 4,
    'feed_forward': [0, 1, 2] * 4,
    'norm': [0, 1, 2] * 4,
    'attention.key': [0] * 12,
  }


@pytest.mark.parametrize(
  ('words', 'ratio'),
  [
    (['--config.model.sharing.layer=all'], 12),
    (['--config.model.sharing.layer', 'all'], 12),
    (['--config=config.py:all'], 12),
    (['--config=config.py:all', '--config.model.sharing.layer=none'], 1),
    (['--config.model.num_layers=6', '--config.model.use_bias=false'], 2),
    (['--config.model.num_layers=6', '--noconfig.model.use_bias'], 2),
    (['--config.model.sharing.layer=' + '0,' * 11 + '0'], 12),
  ],
)
def test_ways_to_give_a_field(here, capsys, words, ratio):
  printed = said(capsys, *DESCRIBE, *words, '--json')
  assert json.loads(printed)['sharing_ratio'] == ratio


def test_train_prints_its_result(run, capsys):
  printed = said(capsys, 'train', '--config=config.py', '--workdir=run')
  assert json.loads(printed) == json.loads((run / 'result.json').read_text())


def test_evaluate_scores_the_whole_validation_split(run, capsys):
  before = tree(run)
  scores = json.loads(said(capsys, 'evaluate', '--workdir=run', '--json'))
  assert list(scores) == ['loss', 'perplexity', 'accuracy', 'bits_per_byte']
  assert 4 < scores['loss'] < 7
  printed = said(capsys, 'evaluate', '--workdir=run', '--checkpoint=latest')
  assert re.fullmatch(
    r'loss +\d\.\d{4}\nperplexity +\d+\.\d{4}\naccuracy +\d\.\d{4}\n'
    r'bits_per_byte +\d\.\d{4}\n',
    printed,
  )
  assert tree(run) == before


@pytest.mark.slow
def test_evaluate_runs_more_loops(run, capsys):
  """Four times cycle:3 was trained; as many say the same, six another thing."""
  words = ['evaluate', '--workdir=run', '--json']
  trained, same, more = (
    json.loads(said(capsys, *words, *flag))['loss']
    for flag in ([], ['--loops=4'], ['--loops=6'])
  )
  assert trained == same != more


@pytest.mark.slow
def test_generate_continues_the_prompt(run, capsys):
  words = ['generate', '--workdir=run', '--prompt=row ', '--tokens=8']
  greedy = said(capsys, *words)
  assert greedy.startswith('row ') and greedy == said(capsys, *words)
  drawn = [*words, '--temperature=2', '--top_k=200', '--seed']
  one, again, other = (said(capsys, *drawn, seed) for seed in '112')
  assert one == again != other


@pytest.mark.slow
def test_generate_continues_several_prompts_and_stops(run, capsys):
  words = ['generate', '--workdir=run', '--tokens=8', '--prompt']
  alone = [said(capsys, *words, prompt) for prompt in ('row ', 'a')]
  both = said(capsys, *words, 'row ', '--prompt=a')
  assert both == ''.join(alone)
  added = alone[0].removeprefix('row ')[:-1]
  stop = added[3:5]
  ended = said(capsys, *words, 'row ', f'--stop={stop}', '--stop=never')
  assert ended == 'row ' + added[: added.index(stop)] + '\n'
  own = said(capsys, *words, 'row ', '--cache=owner')
  assert own.startswith('row ')
  narrow = said(capsys, *words, 'row ', '--beam=1')
  assert narrow == alone[0]
  assert said(capsys, *words, 'row ', '--exit=kl:0') == alone[0]
  more = said(capsys, *words, 'row ', '--loops=6')
  assert more.startswith('row ') and more != alone[0]


def test_help_is_no_error(capsys):
  with pytest.raises(SystemExit) as done:
    main(['train', '--help'])
  assert done.value.code == 0
  assert '--workdir' in capsys.readouterr().out


# Bad input. A line of rules: words, and what is said of them.

TRAIN = ('train', '--config=config.py', '--workdir=new')
COMPARE = ('compare', '--config=config.py', '--workdir=new')

FLAGS = [
  ([], r'.*required: VERB .*--help\)'),
  (['trian'], r".*invalid choice: 'trian'.*train.*"),
  (['train', '--workdir=new'], r'.*required: --config .*--help\)'),
  (['train', '--config=config.py'], r'.*required: --workdir .*--help\)'),
  (['evaluate'], r'.*required: --workdir .*'),
  (['generate', '--workdir=new'], r'.*required: --prompt .*'),
  ([*TRAIN, '--wrokdir=x'], r".*'wrokdir'.*"),
  ([*TRAIN, 'stray'], r"what is 'stray'\? A flag starts with --"),
  ([*COMPARE, '--sharing=all', '--seeds=two'], r".*--seeds.*'two'.*"),
  ([*COMPARE, '--sharing=all', '--seeds=0'], '.*seeds must be .*, got 0'),
  (['evaluate', '--workdir=.', '--checkpoint=first'], r".*'first'.*best.*"),
]
FIELDS = [
  ('model.num_layer=3', r".*'model.num_layer'.*mean 'model.num_layers'\?"),
  ('modle.num_layers=3', r".*'modle'.*mean 'model'\?"),
  ('optimizer.lr=3', r".*unknown config field 'optimizer.lr'.*"),
  ('model.num_layers.x=3', r'config.model.num_layers is no group of fields.*'),
  ('model.num_layers=three', r'.*three.*'),
  ('model.num_layers=3.5', r'.*3\.5.*'),
  ('model.use_bias=perhaps', r'.*perhaps.*'),
  ('train.num_steps', r'.*train.num_steps.*'),
  ('model={}', r'config.model is a group of fields: .*num_layers.*'),
  ('model.sharing=all', r'config.model.sharing is a group of fields: .*'),
  (
    'model.sharing.layer=cycle:5',
    'model.sharing.layer: cycle:5 needs num_layers divisible by 5, got 12',
  ),
  (
    'model.sharing.attention.key=cycel:3',
    r"model.sharing.attention_key: .*'cycel'; did you mean 'cycle'\?",
  ),
  ('model.sharing.atention=all', r".*mean 'model.sharing.attention'\?"),
  ('model.sharing.norm=cycle', 'model.sharing.norm: cycle is written .*'),
  ('model.sharing.norm=0,1,3', r'model.sharing.norm: .* 0,1,3 has 3 but no 2'),
  ('model.family=decodr', r"unknown model.family 'decodr'.*'decoder'\?"),
  ('optimizer.name=adam', r"unknown optimizer.name 'adam'.*'adamw'\?"),
  (
    'optimizer.schedule=x',
    r"unknown optimizer.schedule 'x'; known: .*cosine.*",
  ),
  ('model.num_heads=3', r'model.d_model must be divisible .*16 and 3'),
  ('model.dropout=1.5', r'model.dropout must be below 1, got 1.5'),
  ('train.num_steps=0', r'train.num_steps must be at least 1, got 0'),
  ('train.accumulate=3', r'train.accumulate must divide batch_size 4, got 3'),
  ('train.seed=4294967296', r'train.seed must be below 2\*\*32, got .*'),
  ('optimizer.learning_rate=nan', r'optimizer.learning_rate .* got nan'),
  ('optimizer.warmup_steps=5', r'.*at most train.num_steps 4, got 5'),
  ('data.seq_len=17', r'data.seq_len must be at most .* 16, got 17'),
  ('data.source=txet', r".*'txet'.*mean 'text'\?"),
  ('data.path=missing.txt', r'data.path missing.txt: no such file or folder'),
  ('data.path=empty.txt', r'.*text empty.txt holds no text'),
  ('data.path=short.txt', r'.*has \d+ tokens, but data.seq_len 16 needs.*'),
  ('data.path=binary.txt', r'binary.txt is not UTF-8 text: .*at byte 0'),
  ('model.vocab_size=100', r'model.vocab_size must be at least 258 .*got 100'),
]


@pytest.mark.parametrize(('words', 'rule'), FLAGS)
def test_wrong_flags(here, capsys, words, rule):
  assert re.fullmatch(rule, refused(capsys, here, *words))


@pytest.mark.parametrize(('field', 'rule'), FIELDS)
def test_wrong_fields_and_data(here, capsys, field, rule):
  (here / 'empty.txt').touch()
  (here / 'short.txt').write_text('short')
  (here / 'binary.txt').write_bytes(b'\xff\xfe')
  line = refused(capsys, here, *TRAIN, f'--config.{field}')
  assert re.fullmatch(rule, line), line


@pytest.mark.parametrize(
  ('content', 'rule'),
  [
    (None, 'there is no config file c.py'),
    ('config = {}', r'the config file c.py has no get_config\(\)'),
    ('def get_config(): pass', r'get_config\(\) in c.py must return .*None'),
    (
      "def get_config(): return {'model': {'layers': 3}}",
      r"unknown config field 'model.layers'; .*",
    ),
    (
      "def get_config(): return {'model': {'num_layers': '3'}}",
      r"model.num_layers is a int, got '3'",
    ),
    (
      "def get_config(): return {'model': 3}",
      r'model is a group of fields, got 3',
    ),
    (
      "def get_config(): return {'model': {'num_layers': True}}",
      r'model.num_layers is a int, got True',
    ),
  ],
)
def test_wrong_config_files(here, capsys, content, rule):
  if content is not None:
    (here / 'c.py').write_text(content)
  line = refused(capsys, here, 'train', '--config=c.py', '--workdir=new')
  assert re.fullmatch(rule, line), line


def test_a_config_that_is_no_python_file(here, capsys):
  (here / 'c.txt').write_text('hello')
  line = refused(capsys, here, 'describe', '--config=c.txt')
  assert line == 'the config file c.txt is no Python file'
  line = refused(capsys, here, 'describe', '--config=.')
  assert line == 'there is no config file .'


def test_an_unknown_tfds_name_is_told_at_once(here, capsys, monkeypatch):
  def no_network(*_, **__):
    raise AssertionError('the network is not to be asked')

  monkeypatch.setattr('socket.getaddrinfo', no_network)
  monkeypatch.setattr('socket.socket.connect', no_network)
  name = '--config.data.source=tfds:wikitxt', '--config.data.path='
  line = refused(capsys, here, *TRAIN, *name)
  start = time.monotonic()  # the first time, TFDS is imported
  assert line == refused(capsys, here, *TRAIN, *name)
  assert time.monotonic() - start < 5
  assert line.startswith('tfds:wikitxt is neither prepared under ')


def test_a_workdir_that_is_a_file(here, capsys):
  (here / 'new').write_text('mine')
  assert refused(capsys, here, *TRAIN) == 'workdir new is no folder'
  line = refused(capsys, here, *COMPARE, '--sharing=all')
  assert line.startswith('new')
  line = refused(capsys, here, *TRAIN[:-1], '--workdir=new/below')
  assert line.startswith('new/below')


def test_a_workdir_of_another_config(run, here, capsys):
  words = 'train', '--config=config.py:all', '--workdir=run'
  line = refused(capsys, here, *words, '--config.train.seed=3')
  assert line == (
    'workdir run belongs to another config; it differs in'
    " model.sharing.layer ('cycle:3' there, 'all' given);"
    ' train.seed (0 there, 3 given)'
  )
  every = [f'--config.model.sharing.{p}=all' for p in ('norm', 'attention')]
  line = refused(capsys, here, *words, *every, '--config.model.d_model=32')
  assert line.count(' given)') == 4


@pytest.mark.parametrize(
  ('content', 'rule'),
  [
    ('{', r'run/config.json is not a config: .*'),
    ('[]', r'run/config.json is not a config: .*'),
    ('{"model": {"width": 3}}', r".*unknown config field 'model.width'.*"),
  ],
)
def test_a_run_whose_config_is_damaged(run, here, capsys, content, rule):
  (run / 'config.json').write_text(content)
  for verb in ('evaluate', 'train'):
    config = ['--config=config.py'] if verb == 'train' else []
    line = refused(capsys, here, verb, *config, '--workdir=run')
    assert re.fullmatch(rule, line), line


@pytest.mark.parametrize('verb', ['evaluate', 'generate'])
def test_a_folder_that_is_no_run(here, capsys, verb):
  prompt = ['--prompt=a'] if verb == 'generate' else []
  for folder in ('nowhere', '.'):
    line = refused(capsys, here, verb, f'--workdir={folder}', *prompt)
    assert line == f'{folder} is no run: it has no config.json'


@pytest.mark.parametrize('verb', ['evaluate', 'generate'])
def test_a_run_has_its_config(run, here, capsys, verb):
  prompt = ['--prompt=a'] if verb == 'generate' else []
  words = '--workdir=run', '--config.model.num_layers=3'
  line = refused(capsys, here, verb, *prompt, *words)
  assert line == (
    'a run has its config; --config.model.num_layers=3 cannot change it'
  )


@pytest.mark.parametrize(
  ('words', 'rule'),
  [
    (['--prompt='], 'the prompt is empty'),
    (
      ['--prompt=' + 'long' * 4],
      'a prompt of 16 tokens and 64 more exceed model.max_len 16',
    ),
    (
      ['--prompt=row', '--tokens=14'],
      'a prompt of 3 tokens and 14 more exceed model.max_len 16',
    ),
    (['--prompt=a', '--tokens=0'], '.*at least 1, got 0'),
    (
      ['--prompt=a', '--tokens=5', '--temperature=-1'],
      '.*at least 0, got -1.0',
    ),
    (['--prompt=a', '--tokens=5', '--top_k=999'], 'top_k .* 0 to 258, got 999'),
    (['--prompt=a', '--tokens=5', '--top_p=0'], 'top_p must be above 0 .*'),
    (['--prompt=a', '--tokens=5', '--beam=-1'], '--beam must .*, got -1'),
    (
      ['--prompt=a', '--tokens=5', '--beam=2', '--top_k=3'],
      '--beam goes with none of --temperature, .*',
    ),
    (['--prompt=a', '--exit=kl'], "--exit needs one of none, .*, got 'kl'"),
    (['--prompt=a', '--exit=cdf:.5'], 'the criterion cdf needs .*'),
    (['--prompt=a', '--tokens=5', '--cache=no'], ".*--cache.*'no'.*"),
    (['--prompt=a', '--tokens=many'], ".*--tokens.*'many'.*"),
  ],
)
def test_what_cannot_be_generated(run, here, capsys, words, rule):
  line = refused(capsys, here, 'generate', '--workdir=run', *words)
  assert re.fullmatch(rule, line), line


@pytest.mark.slow
def test_an_encoder_does_not_generate(here, capsys):
  encoder = '--config.model.family=encoder', '--config.train.num_steps=1'
  said(capsys, *TRAIN, *encoder)
  words = '--workdir=new', '--prompt=a', '--tokens=2'
  line = refused(capsys, here, 'generate', *words)
  assert line == 'generate needs a decoder, got an encoder'


@pytest.mark.parametrize(
  ('sharing', 'rule'),
  [
    ('none;cycle:5', 'cycle:5 needs num_layers divisible by 5, got 12'),
    ('none;cycel:3', r"unknown sharing scheme 'cycel'; did you .*"),
    ('all;none;all', 'the scheme all is given twice'),
    ('atention=all', r"unknown component 'atention'; .*'attention'\?"),
    ('all all', 'layer is given twice in the scheme .*'),
    ('', 'there is no scheme to compare'),
    (' ; ', 'there is no scheme to compare'),
  ],
)
def test_schemes_that_cannot_be_compared(here, capsys, sharing, rule):
  line = refused(capsys, here, *COMPARE, f'--sharing={sharing}')
  assert re.search(rule, line), line


def test_a_comparison_without_data_leaves_no_folder(here, capsys):
  missing = '--config.data.path=missing.txt'
  line = refused(capsys, here, *COMPARE, '--sharing=all', missing)
  assert line == 'data.path missing.txt: no such file or folder'


# As users meet it: another process, its own standard error.


def process(here, *words):
  return subprocess.run(
    [sys.executable, '-m', 'shared_tfm', *words],
    cwd=here,
    env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[1])},
    capture_output=True,
    text=True,
  )


def spoil(checkpoint):
  for path in (checkpoint / 'state').rglob('d/*'):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_bad_input_in_a_process(here):
  done = process(here, *TRAIN, '--config.model.sharing.layer=cycle:5')
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == (
    'error: model.sharing.layer: cycle:5 needs num_layers divisible by 5,'
    ' got 12\n'
  )
  assert not (here / 'new').exists()


def test_predictions_of_a_task_that_writes_none(run, here, capsys):
  assert main(['evaluate', '--workdir=run', '--predictions=said']) == 2
  told = capsys.readouterr().err
  assert told == 'error: --predictions: this task writes none\n'
  assert not (here / 'said').exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_in_a_process(run, here):
  spoil(run / 'checkpoints' / '4')
  done = process(here, 'evaluate', '--workdir=run', '--checkpoint=latest')
  assert done.returncode == 0 and done.stdout.startswith('loss ')
  (line,) = done.stderr.splitlines()
  folder = run / 'checkpoints' / '4'
  assert line.startswith(f'checkpoint {folder} is damaged (')
  assert line.endswith('); left out')  # who only reads moves nothing

  spoil(run / 'checkpoints' / '2')
  done = process(here, 'evaluate', '--workdir=run')
  assert (done.returncode, done.stdout) == (2, '')
  *warnings, line = done.stderr.splitlines()
  for step, warning in zip(('4', '2'), warnings, strict=True):
    assert warning.startswith(f'checkpoint {folder.with_name(step)} is damaged')
  assert line == (
    f'error: no checkpoint in {folder.parent} can be used; damaged: 4, 2'
  )
