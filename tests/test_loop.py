"""A run: however it is cut, it ends with the numbers of one that was not."""

import dataclasses
import errno
import fcntl
import functools
import io
import json
import os
import pathlib
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import tqdm
from tensorboardX.proto import event_pb2

from shared_tfm import accounting, config
from shared_tfm.errors import BadInput, Interrupted
from shared_tfm.tasks import prepare
from shared_tfm.train import log, loop, programs, runs

STEPS = 12
VARIANTS = {
  'dropout': {'model': {'dropout': 0.2}},
  'accumulate': {'model': {'dropout': 0.2}, 'train': {'accumulate': 2}},
  'batchnorm': {'model': {'norm': 'batchnorm'}},
  'encoder': {'model': {'family': 'encoder'}},  # its masks are drawn, too
}
WORDS = 'a bank of weights is picked by row and every layer reads its own row'


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  """A text that is the same on every machine."""
  words = random.Random(0).choices(WORDS.split(), k=3000)
  path = tmp_path_factory.mktemp('data') / 'text.txt'
  path.write_text(' '.join(words))
  return path


def fields(text, **groups):
  base = {
    'model': {
      'num_layers': 2,
      'd_model': 16,
      'num_heads': 2,
      'max_len': 16,
      'sharing': {'attention': 'all'},
    },
    'train': {
      'num_steps': STEPS,
      'batch_size': 4,
      'eval_every': 4,
      'eval_batches': 2,
      'checkpoint_every': 4,
      'log_every': 3,
    },
    'optimizer': {'warmup_steps': 3},
    'data': {'source': 'text', 'path': str(text)},
  }
  return {name: base[name] | groups.get(name, {}) for name in base}


def tiny(text, **groups):
  return config.cross(fields(text, **groups))


class Bar(tqdm.tqdm):
  """A progress bar that does something when it comes to a step."""

  def __init__(self, at, act):
    super().__init__(file=io.StringIO())
    self.at, self.act = at, act

  def update(self, n=1):
    super().update(n)
    if self.n == self.at:
      self.act()


def kill(number):
  """A bar's act: a real signal to this very process."""
  return lambda: os.kill(os.getpid(), number)


def cut(made, workdir, at, number=signal.SIGTERM):
  """A run that a signal ends in the middle of step `at`."""
  with pytest.raises(Interrupted) as error:
    loop.train(made, workdir, bar=Bar(at, kill(number)))
  return error.value


@pytest.fixture(scope='module')
def straight(text, tmp_path_factory):
  """(variant) -> the folder and result of a run that nothing disturbed."""

  @functools.cache
  def run(variant):
    workdir = tmp_path_factory.mktemp(variant)
    return workdir, loop.train(tiny(text, **VARIANTS[variant]), workdir)

  return run


def timeless(numbers):
  clocks = {'time', 'tokens_per_second'}
  return {name: n for name, n in numbers.items() if name not in clocks}


def lines(workdir):
  return [timeless(line) for line in log.read(workdir)]


def checkpoints(workdir):
  names = [path.name for path in workdir.glob('checkpoints/*')]
  return sorted(int(name) for name in names if name.isdigit())


def wait_for(workdir, step):
  while step not in checkpoints(workdir):  # it is written in the background
    time.sleep(0.01)


def assert_same_state(left, right):
  states = [loop.load(workdir, 'latest')[1] for workdir in (left, right)]
  jax.tree.map(np.testing.assert_array_equal, *states)
  assert states[0].step == states[1].step


def assert_same_run(workdir, result, expected):
  """Bit for bit the same state and the same numbers, each of them once."""
  other, other_result = expected
  assert_same_state(workdir, other)
  assert lines(workdir) == lines(other)
  assert timeless(result) == timeless(other_result)


# What a run writes.


@pytest.mark.slow
def test_the_log_has_every_step_once_and_the_result_follows_from_it(
  straight, text
):
  workdir, result = straight('dropout')
  made = tiny(text, **VARIANTS['dropout'])
  kinds = [(line['kind'], line['step']) for line in log.read(workdir)]
  assert sorted(kinds) == [
    *(('train', step) for step in (3, 6, 9, 12)),
    *(('validation', step) for step in (4, 8, 12)),
  ]
  assert json.loads((workdir / 'result.json').read_text()) == result
  last = [line for line in lines(workdir) if line['step'] == STEPS]
  train, validation = sorted(last, key=lambda line: line['kind'])
  assert result['train_loss'] == train['loss']
  assert result['validation_loss'] == validation['loss']
  assert (result['steps'], result['tokens']) == (STEPS, STEPS * 4 * 16)
  assert result['skipped'] == 0 < result['peak_memory_bytes']
  dataset = prepare(made, workdir)
  _, state = loop.load(workdir, 'latest')
  compiled = programs.programs(made)
  again = programs.evaluate(compiled, state, dataset, 2)
  assert again['loss'] == validation['loss']
  assert again['bits_per_byte'] == result['validation_bits_per_byte']


@pytest.mark.slow
def test_every_evaluation_says_how_much_is_stored_and_applied(straight):
  workdir, result = straight('dropout')
  made, state = loop.load(workdir)
  stored = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  # Two layers read one row of attention: 4 kernels and biases of width 16.
  attention = 4 * (16 * 16 + 16)
  counts = {
    'stored_params': stored,
    'applied_params': stored + attention,
    'sharing_ratio': accounting.describe(made)['sharing_ratio'],
  }
  assert counts['sharing_ratio'] > 1
  evaluations = [x for x in log.read(workdir) if x['kind'] == 'validation']
  assert [line['step'] for line in evaluations] == [4, 8, 12]
  for line in (*evaluations, result):
    assert {name: line[name] for name in counts} == counts


def scalars(workdir):
  """TensorBoard's events: {(tag, step): value}."""
  found = {}
  for path in sorted((workdir / 'tensorboard').iterdir()):
    content, at = path.read_bytes(), 0
    while at < len(content):  # length, its checksum, an event, its checksum
      (length,) = struct.unpack_from('<Q', content, at)
      event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
      for value in event.summary.value:
        found[value.tag, event.step] = value.simple_value
      at += 12 + length + 4
  return found


def test_tensorboard_has_what_the_log_has(straight):
  workdir, _ = straight('dropout')
  expected = {
    (f'{line["kind"]}/{name}', line['step']): value
    for line in log.read(workdir)
    for name, value in line.items()
    if name not in ('kind', 'step', 'time')
  }
  assert ('validation/sharing_ratio', 8) in expected
  found = scalars(workdir)
  assert found == pytest.approx(expected, rel=1e-6)


def test_tensorboard_of_a_resumed_run_has_it_too(straight, text, tmp_path):
  """In one file, and of steps that were trained twice the second."""
  made = tiny(text, **VARIANTS['dropout'])
  cut(made, tmp_path, at=5)
  cut(made, tmp_path, at=9)
  loop.train(made, tmp_path)
  (path,) = (tmp_path / 'tensorboard').iterdir()
  assert path.name == 'events.out.tfevents.0000000003'
  found, expected = scalars(tmp_path), scalars(straight('dropout')[0])
  speeds = {key for key in expected if 'tokens_per_second' in key[0]}
  assert found.keys() == expected.keys()
  for key in expected.keys() - speeds:
    assert found[key] == expected[key]


@pytest.mark.slow
def test_the_newest_and_the_best_are_kept(straight, text, tmp_path):
  workdir, _ = straight('dropout')
  assert checkpoints(workdir) == [8, 12]
  # At such a rate the loss is at its best when it is measured first.
  made = tiny(
    text,
    train={'keep': 1},
    optimizer={'learning_rate': 3.0, 'schedule': 'constant', 'warmup_steps': 6},
  )
  loop.train(made, tmp_path)
  losses = {x['step']: x['loss'] for x in lines(tmp_path) if 'accuracy' in x}
  best = min(losses, key=losses.get)
  assert best < 12
  assert checkpoints(tmp_path) == [best, 12]
  assert loop.load(tmp_path, 'best')[1].step == best
  assert loop.load(tmp_path, 'latest')[1].step == 12


# The same seed gives the same numbers.


def test_the_same_seed_gives_the_same_numbers(straight, text, tmp_path):
  made = tiny(text, **VARIANTS['dropout'])
  result = loop.train(made, tmp_path)
  assert_same_run(tmp_path, result, straight('dropout'))


def test_another_seed_gives_others(straight, text, tmp_path):
  workdir, result = straight('dropout')
  made = tiny(text, **VARIANTS['dropout'], train={'seed': 1})
  dataset, asked = prepare(made, tmp_path), []

  def elements(split, seed):
    asked.append((split, seed))
    return dataset.elements(split, seed)

  other = loop.train(
    made, tmp_path, dataclasses.replace(dataset, elements=elements)
  )
  assert ('train', 1) in asked and ('train', 0) not in asked
  assert other['train_loss'] != result['train_loss']
  assert other['validation_loss'] != result['validation_loss']
  left, right = (
    loop.load(folder, 'latest')[1].params['embedding']['token']['embedding']
    for folder in (workdir, tmp_path)
  )
  # Drawn anew, not only trained otherwise: in 12 steps nothing moves so far.
  assert np.abs(left - right).mean() > 0.2


# A run that is cut goes on as if it had not been.


def test_a_run_that_crashed_goes_on_from_its_checkpoint(
  straight, text, tmp_path
):
  def crash():
    wait_for(tmp_path, 8)
    raise RuntimeError('power is gone')

  made = tiny(text, **VARIANTS['dropout'])
  with pytest.raises(RuntimeError, match='power is gone'):
    loop.train(made, tmp_path, bar=Bar(11, crash))
  assert [x['step'] for x in lines(tmp_path)][-1] == 9
  result = loop.train(made, tmp_path)
  assert_same_run(tmp_path, result, straight('dropout'))


def test_a_damaged_checkpoint_costs_steps_but_changes_nothing(
  straight, text, tmp_path, caplog
):
  made = tiny(text, **VARIANTS['dropout'])
  cut(made, tmp_path, at=10)
  assert checkpoints(tmp_path) == [8, 10]
  for path in (tmp_path / 'checkpoints' / '10' / 'state').rglob('d/*'):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
  result = loop.train(made, tmp_path)
  assert f'{tmp_path / "checkpoints" / "10"} is damaged' in caplog.text
  assert (tmp_path / 'damaged' / '10').is_dir()
  assert_same_run(tmp_path, result, straight('dropout'))


@pytest.mark.slow
def test_what_only_observes_may_change_between_parts(straight, text, tmp_path):
  made = tiny(text, **VARIANTS['dropout'])
  cut(made, tmp_path, at=5)
  observing = {'eval_every': 6, 'checkpoint_every': 5, 'log_every': 1}
  observing |= {'keep': 5, 'eval_batches': 1}
  other = tiny(text, **VARIANTS['dropout'], train=observing)
  loop.train(other, tmp_path)
  assert_same_state(tmp_path, straight('dropout')[0])
  assert checkpoints(tmp_path) == [4, 5, 10, 12]
  assert loop.load(tmp_path)[0] == other


def test_another_config_is_refused_and_the_folder_left_alone(text, tmp_path):
  made = tiny(text, **VARIANTS['dropout'])
  cut(made, tmp_path, at=1)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  other = dataclasses.replace(
    made, optimizer=dataclasses.replace(made.optimizer, name='lion')
  )
  with pytest.raises(BadInput) as error:
    loop.train(other, tmp_path)
  assert str(error.value) == (
    f'workdir {tmp_path} belongs to another config; it differs in'
    " optimizer.name ('adamw' there, 'lion' given)"
  )
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')} == before


def test_a_finished_run_is_not_trained_again(straight, text, tmp_path):
  made = tiny(text, **VARIANTS['dropout'])
  result = loop.train(made, tmp_path)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('checkpoints/**/*')}
  assert timeless(loop.train(made, tmp_path)) == timeless(result)
  after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('checkpoints/**/*')}
  assert after == before
  assert_same_run(tmp_path, result, straight('dropout'))


# Signals.


def test_a_signal_in_the_last_step_finds_the_run_done(straight, text, tmp_path):
  made = tiny(text, **VARIANTS['dropout'])
  bar = Bar(STEPS, kill(signal.SIGTERM))
  result = loop.train(made, tmp_path, bar=bar)
  assert_same_run(tmp_path, result, straight('dropout'))


def test_a_signal_does_not_cut_the_last_save(
  straight, text, tmp_path, monkeypatch
):
  close, sent = loop.Checkpoints.close, []

  def late(checkpoints):
    if not sent:
      sent.append(signal.SIGTERM)
      os.kill(os.getpid(), signal.SIGTERM)
    close(checkpoints)

  def fail(number, frame):
    raise AssertionError('the signal was not held back')

  before = signal.signal(signal.SIGTERM, fail)
  try:
    monkeypatch.setattr(loop.Checkpoints, 'close', late)
    made = tiny(text, **VARIANTS['dropout'])
    result = loop.train(made, tmp_path)
  finally:
    signal.signal(signal.SIGTERM, before)
  assert_same_run(tmp_path, result, straight('dropout'))


@pytest.fixture
def ctrl_c():
  """Ctrl-C as a terminal has it; worker processes of pytest ignore it."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('ctrl_c')
def test_a_second_signal_is_not_held_back(straight, text, tmp_path):
  def act():
    wait_for(tmp_path, 4)
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # two signals at once would be one
      if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        break
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

  made = tiny(text, **VARIANTS['dropout'])
  with pytest.raises(KeyboardInterrupt):
    loop.train(made, tmp_path, bar=Bar(6, act))
  assert checkpoints(tmp_path) == [4]
  result = loop.train(made, tmp_path)
  assert_same_run(tmp_path, result, straight('dropout'))


def test_signals_are_handed_back(text, tmp_path):
  numbers = signal.SIGTERM, signal.SIGINT
  before = [signal.getsignal(number) for number in numbers]
  made = tiny(text, **VARIANTS['dropout'])
  cut(made, tmp_path, at=2)
  assert [signal.getsignal(number) for number in numbers] == before
  loop.train(made, tmp_path)  # to its end
  assert [signal.getsignal(number) for number in numbers] == before


def test_a_run_outside_the_main_thread(straight, text, tmp_path):
  made = tiny(text, **VARIANTS['dropout'])
  results = []
  thread = threading.Thread(
    target=lambda: results.append(loop.train(made, tmp_path))
  )
  thread.start()
  thread.join()
  assert_same_run(tmp_path, results[0], straight('dropout'))


# One folder, one run.


def test_two_runs_cannot_share_a_folder(straight, text, tmp_path):
  made = tiny(text, **VARIANTS['dropout'])

  def second():
    lines = (tmp_path / 'metrics.jsonl').read_bytes()
    with pytest.raises(BadInput) as error:
      loop.train(made, tmp_path)
    assert str(error.value) == (
      f'workdir {tmp_path} is in use by process {os.getpid()} on'
      f' {socket.gethostname()}; what trains has its folder to itself'
    )
    assert (tmp_path / 'metrics.jsonl').read_bytes() == lines

  result = loop.train(made, tmp_path, bar=Bar(8, second))
  assert_same_run(tmp_path, result, straight('dropout'))


@pytest.mark.parametrize('how', ['a signal', 'an error'])
def test_a_folder_is_free_when_its_run_has_ended(text, tmp_path, how):
  def fail():
    raise RuntimeError('on purpose')

  made = tiny(text, **VARIANTS['dropout'])
  if how == 'a signal':
    cut(made, tmp_path, at=2)
  else:
    with pytest.raises(RuntimeError, match='on purpose') as error:
      loop.train(made, tmp_path, bar=Bar(2, fail))
    assert error.value.__traceback__  # its frames still hold what was open
  with runs.claimed(tmp_path, made):
    pass


def test_a_folder_that_became_anothers_while_data_was_read(text, tmp_path):
  made = tiny(text)
  other = tiny(text, optimizer={'name': 'lion'})
  with runs.claimed(tmp_path, other):
    pass
  with (
    pytest.raises(BadInput, match='belongs to another config'),
    runs.claimed(tmp_path, made),
  ):
    pass
  assert runs.read_config(tmp_path) == other


def test_where_nothing_can_be_locked_there_is_a_warning(
  text, tmp_path, caplog, monkeypatch
):
  def flock(file, how):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, 'flock', flock)
  with runs.claimed(tmp_path, tiny(text)):
    assert runs.read_config(tmp_path) == tiny(text)
  assert 'cannot be locked (No locks available)' in caplog.text


# The log.


def test_of_a_damaged_log_what_can_be_read_is(tmp_path, caplog):
  line = '{"kind": "train", "step": 1, "time": 2.0, "loss": null, "a": 1}'
  damaged = [
    b'\xff{"kind"',
    b'[1]',
    b'{"kind": "train"}',
    *(
      line.replace(old, new).encode()
      for old, new in (
        ('1,', '-1e30,'),
        ('1,', '1e345,'),
        ('1,', '"3",'),
        ('2.0', '"x"'),
        ('1}', '9' * 400 + '}'),
        ('"a"', '"\\ud800"'),
        ('"train"', '7'),
      )
    ),
  ]
  rows = [line.encode(), *damaged, line.encode(), b'{"kind": "tr']
  (tmp_path / 'metrics.jsonl').write_bytes(b'\n'.join(rows))
  assert log.read(tmp_path) == [json.loads(line)] * 2
  said = [record.getMessage() for record in caplog.records]
  path = tmp_path / 'metrics.jsonl'
  assert said == [
    f'{path}: line {n} is damaged; left out' for n in range(2, 2 + len(damaged))
  ]
  log.Log(tmp_path, 1).close()  # and shows it
  assert log.read(tmp_path) == [json.loads(line)] * 2


def test_what_a_kill_left_of_a_file_is_removed(text, tmp_path):
  names = '.metrics.jsonl.7.part', '.config.json.7.part', '.mine.7.part'
  for name in names:
    (tmp_path / name).write_text('half')
  with runs.claimed(tmp_path, tiny(text)):
    pass
  assert [p.name for p in tmp_path.glob('*.part')] == ['.mine.7.part']


# Every kind of run.


@pytest.mark.parametrize(
  'variant',
  ['dropout']
  + [
    pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS if v != 'dropout'
  ],
)
def test_resumed_equals_uninterrupted(straight, text, tmp_path, variant):
  made = tiny(text, **VARIANTS[variant])
  error = cut(made, tmp_path, at=5)
  assert str(error) == (
    'SIGTERM after step 5; saved, and the same command continues'
  )
  assert checkpoints(tmp_path) == [4, 5]
  assert not (tmp_path / 'result.json').exists()
  result = loop.train(made, tmp_path)
  assert_same_run(tmp_path, result, straight(variant))


@pytest.mark.slow
def test_a_run_may_be_cut_again_and_again(straight, text, tmp_path):
  made = tiny(text, **VARIANTS['accumulate'])
  for at in (1, 2, 7, 11):
    error = cut(made, tmp_path, at, signal.SIGINT)
    assert error.signal == signal.SIGINT
  result = loop.train(made, tmp_path)
  assert_same_run(tmp_path, result, straight('accumulate'))


@pytest.mark.slow
def test_a_process_that_ctrl_c_ends(text, tmp_path):
  """The other signals: test_faults.py."""
  made = fields(
    text,
    train={
      'num_steps': 400,
      'batch_size': 4,
      'eval_batches': 2,
      'checkpoint_every': 40,
      'log_every': 7,
    },
    model={'dropout': 0.2, 'num_layers': 2, 'd_model': 16, 'max_len': 16},
  )
  (tmp_path / 'config.py').write_text(f'def get_config():\n  return {made!r}\n')
  command = [sys.executable, '-m', 'shared_tfm', 'train']
  command += [f'--config={tmp_path / "config.py"}']
  command += [f'--workdir={tmp_path / "cut"}']
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  root = pathlib.Path(__file__).parents[1]
  process = subprocess.Popen(command, cwd=root, **pipes)
  while 40 not in checkpoints(tmp_path / 'cut'):
    assert process.poll() is None, process.communicate()
    time.sleep(0.01)
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 130
  assert not out and 'Traceback' not in err
  step = checkpoints(tmp_path / 'cut')[-1]
  assert err.splitlines()[-1] == (
    f'interrupted: SIGINT after step {step}; saved, and the same command'
    ' continues'
  )
  assert 'interrupted' not in ''.join(err.splitlines()[:-1])
  assert not (tmp_path / 'cut' / 'result.json').exists()
  assert max(line['step'] for line in lines(tmp_path / 'cut')) < 400

  again = subprocess.run(command, cwd=root, **pipes)
  assert again.returncode == 0, again.stderr
  crossed = config.cross(made)
  expected = loop.train(crossed, tmp_path / 'straight')
  result = json.loads((tmp_path / 'cut' / 'result.json').read_text())
  assert json.loads(again.stdout) == result
  assert_same_run(tmp_path / 'cut', result, (tmp_path / 'straight', expected))
