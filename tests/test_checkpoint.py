"""Checkpoints: what is kept, and that nothing damaged is taken for good."""

import contextlib
import errno
import itertools
import json
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm.errors import BadInput
from shared_tfm.train import orbax
from shared_tfm.train.checkpoint import Checkpoints, content_hash
from shared_tfm.train.fingerprint import fingerprint

# Orbax leaves coroutines behind when it cannot read something.
pytestmark = pytest.mark.filterwarnings(
  'ignore:coroutine .* was never awaited:RuntimeWarning'
)
SIZE = 500


def state(step):
  """A small state whose every leaf says which step it is of."""
  return {
    'params': {'kernel': jnp.arange(SIZE, dtype=jnp.float32) * step},
    'half': jnp.full((3,), step, jnp.bfloat16),
    'step': jnp.int32(step),
    'key': jnp.array([step, 2**32 - 1], jnp.uint32),
  }


LIKE = jax.tree.map(
  lambda leaf: jax.ShapeDtypeStruct(
    leaf.shape, leaf.dtype, sharding=leaf.sharding
  ),
  state(0),
)


def position(step):
  return {'next': step, 'unread': [{'loss': 0.1 * step}]}


def saved(run, losses, latest=2):
  """Saves {step: loss}, and closes."""
  checkpoints = Checkpoints(run / 'checkpoints', latest)
  for step, loss in losses.items():
    checkpoints.save(step, state(step), position(step), loss)
  checkpoints.close()


def restored(run):
  checkpoints = Checkpoints(run / 'checkpoints', 2)
  try:
    return checkpoints.restore(LIKE)
  finally:
    checkpoints.close()


def loaded(run, which):
  """The step of the state that is loaded; nothing is written."""
  checkpoints = Checkpoints(run / 'checkpoints')
  try:
    return int(checkpoints.load(which, LIKE)['step'])
  finally:
    checkpoints.close()


def steps(run, folder='checkpoints'):
  return sorted(path.name for path in (run / folder).glob('*'))


def files(folder):
  """The content of every file below, by its path."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def assert_is_of(step, found):
  number, found_state, found_position = found
  assert number == step
  assert found_position == position(step)
  jax.tree.map(np.testing.assert_array_equal, found_state, state(step))
  dtypes = jax.tree.map(lambda leaf: leaf.dtype, found_state)
  assert dtypes == jax.tree.map(lambda leaf: leaf.dtype, state(step))


def data_files(folder):
  """The files of a checkpoint that hold its arrays."""
  found = [p for p in (folder / 'state').rglob('d/*') if p.is_file()]
  assert found
  return found


def flip(path, at=0.5):
  """Turns one bit of a file."""
  content = bytearray(path.read_bytes())
  content[int(at * (len(content) - 1))] ^= 1
  path.write_bytes(content)


def spoil(folder):
  """Flips one byte in every file that holds arrays."""
  for path in data_files(folder):
    flip(path)


# What is kept.


def test_what_was_saved_is_restored(tmp_path):
  saved(tmp_path, {3: 1.5})
  assert_is_of(3, restored(tmp_path))


def test_a_folder_without_checkpoints_restores_nothing(tmp_path):
  assert restored(tmp_path) is None
  with pytest.raises(BadInput, match='there is no checkpoint in'):
    loaded(tmp_path, 'best')


@pytest.mark.parametrize(
  ('losses', 'latest', 'kept', 'best'),
  [
    ({1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: 1.5}, 1, [2, 5], 2),
    ({1: 0.5, 2: 1.0, 3: 2.0, 4: 2.5, 5: 1.5}, 2, [1, 4, 5], 1),
    ({1: 3.0, 2: 2.0, 3: 1.0}, 1, [3], 3),
    ({1: 2.0, 2: None, 3: 3.0, 4: None}, 1, [1, 4], 1),
    ({1: 2.0, 2: float('nan'), 3: float('inf')}, 1, [1, 3], 1),
    ({1: None, 2: None}, 1, [2], 2),  # never measured: the newest is taken
  ],
)
def test_the_latest_few_and_the_best_are_kept(
  tmp_path, losses, latest, kept, best
):
  saved(tmp_path, losses, latest)
  assert steps(tmp_path) == [str(step) for step in kept]
  assert loaded(tmp_path, 'best') == best
  assert loaded(tmp_path, 'latest') == max(losses)
  assert_is_of(max(losses), restored(tmp_path))


def test_the_best_is_kept_across_a_restart(tmp_path):
  saved(tmp_path, {1: 1.0, 2: 2.0}, latest=1)
  saved(tmp_path, {3: 3.0, 4: 4.0}, latest=1)
  assert steps(tmp_path) == ['1', '4']


@pytest.mark.parametrize('latest', [1, 2, 3])
def test_the_newest_is_never_pruned(tmp_path, latest):
  """Whatever the losses, and whatever the clock says, after every save."""
  losses = np.random.default_rng(latest).permutation(12).astype(float)
  clock = itertools.count(2e9, -60)  # set back by a minute at every look
  best, folder = None, tmp_path / 'checkpoints'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(time, 'time', lambda: next(clock))
    checkpoints = Checkpoints(folder, latest)
    for step, loss in enumerate(losses.tolist(), 1):
      checkpoints.save(step, state(step), position(step), loss)
      checkpoints._manager.wait_until_finished()
      checkpoints.check()
      best = step if best is None or loss < losses[best - 1] else best
      kept = {best, *range(max(1, step + 1 - latest), step + 1)}
      assert {int(name) for name in steps(tmp_path)} == kept
    checkpoints.close()
  assert_is_of(12, restored(tmp_path))
  assert loaded(tmp_path, 'best') == best


def test_what_a_kill_leaves_is_deleted(tmp_path):
  saved(tmp_path, {1: 1.0})
  folder = tmp_path / 'checkpoints'
  for name in ('2.orbax-checkpoint-tmp', '.pruned/0'):
    shutil.copytree(folder / '1', folder / name)
  assert_is_of(1, restored(tmp_path))
  assert steps(tmp_path) == ['1']


@pytest.mark.slow
def test_what_is_saved_may_be_overwritten_at_once(tmp_path):
  large = jnp.zeros(2**22)
  like = jax.ShapeDtypeStruct(large.shape, large.dtype, sharding=large.sharding)
  add = jax.jit(lambda leaf: leaf + 1, donate_argnums=0)
  checkpoints = Checkpoints(tmp_path / 'checkpoints', 2)
  for step in range(3):
    checkpoints.save(step, {'leaf': large}, {}, None)
    for _ in range(10):  # the same buffer is used again while it is written
      large = add(large)
  checkpoints.close()
  checkpoints = Checkpoints(tmp_path / 'checkpoints')
  step, found, _ = checkpoints.restore({'leaf': like})
  checkpoints.close()
  assert step == 2
  np.testing.assert_array_equal(found['leaf'], 20)


def test_a_position_may_go_on_changing_at_once(tmp_path):
  checkpoints = Checkpoints(tmp_path / 'checkpoints', 2)
  given = position(1)
  checkpoints.save(1, state(1), given, None)
  given['unread'].append({'loss': 7.0})
  checkpoints.close()
  step, _, data = restored(tmp_path)
  assert (step, data) == (1, position(1))


# What cannot be written.


@contextlib.contextmanager
def no_room(size):
  """No file may become larger than `size` bytes."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('how', ['check', 'save', 'close'])
def test_a_save_that_fails_is_said_and_costs_no_other(tmp_path, how):
  large = np.random.default_rng(0).normal(size=10_000)  # nothing to compress
  folder = tmp_path / 'checkpoints'
  saved(tmp_path, {1: 1.0}, latest=1)
  checkpoints = Checkpoints(folder, latest=1)
  with pytest.raises(OSError) as error, no_room(16_000):
    checkpoints.save(2, {'leaf': large}, {}, 0.5)
    if how == 'check':
      while True:
        checkpoints.check()
        time.sleep(0.01)
    if how == 'save':
      checkpoints.save(3, {'leaf': large}, {}, 0.5)
    checkpoints.close()
  assert (error.value.filename, error.value.strerror) == (
    str(folder),
    'no checkpoint was written (File too large); the newest is 1',
  )
  checkpoints.close()  # says it once
  assert steps(tmp_path) == ['1']
  assert_is_of(1, restored(tmp_path))


def test_the_reason_is_the_systems_where_there_is_one():
  full = OSError(errno.ENOSPC, 'whatever')
  try:
    raise RuntimeError('one of many') from full
  except RuntimeError as error:
    assert orbax.reason(error) == (errno.ENOSPC, 'No space left on device')
  told = ValueError("Failed\nto write [os_error_code='28']")
  assert orbax.reason(told) == (errno.ENOSPC, 'No space left on device')
  other = TypeError('first line\nsecond line')
  assert orbax.reason(other) == (errno.EIO, 'TypeError: first line')


# What is damaged.


@pytest.mark.parametrize('how', [0.0, 0.3, 0.5, 1.0, 'cut', 'empty', 'gone'])
def test_whatever_file_is_damaged_only_true_content_is_restored(
  tmp_path, caplog, how
):
  saved(tmp_path / 'whole', {1: 1.0, 2: 2.0})
  newest = tmp_path / 'whole' / 'checkpoints' / '2'
  found = set()
  for number, name in enumerate(files(newest)):
    run = tmp_path / f'{number}'
    shutil.copytree(tmp_path / 'whole', run)
    path = run / 'checkpoints' / '2' / name
    content = path.read_bytes()
    if how == 'gone':
      path.unlink()
    elif how == 'empty':
      path.write_bytes(b'')
    elif how == 'cut':
      path.write_bytes(content[: len(content) // 2])
    elif content:
      flip(path, how)
    caplog.clear()
    step, *rest = restored(run)
    assert_is_of(step, (step, *rest))
    if step == 2:  # that file holds nothing that matters
      assert not (run / 'damaged').exists()
      continue
    found.add(name)
    assert (step, steps(run), steps(run, 'damaged')) == (1, ['1'], ['2'])
    (warning,) = (
      record.getMessage()
      for record in caplog.records
      if record.name.startswith('shared_tfm')
    )
    assert str(run / 'checkpoints' / '2') in warning and '\n' not in warning
  data = {str(path.relative_to(newest)) for path in data_files(newest)}
  assert data & found
  assert {'note/metadata', 'metrics/metrics'} <= found


@pytest.mark.parametrize('part', ['state', 'note', 'metrics'])
def test_sound_files_of_another_checkpoint_are_noticed(tmp_path, caplog, part):
  """Nothing in these files is wrong but that they are not what was saved."""
  saved(tmp_path, {1: 1.0, 2: 2.0})
  older, newer = (tmp_path / 'checkpoints' / name for name in '12')
  shutil.rmtree(newer / part)
  shutil.copytree(older / part, newer / part)
  assert_is_of(1, restored(tmp_path))
  assert steps(tmp_path, 'damaged') == ['2']
  assert 'is not what was saved' in caplog.text


def test_a_loss_that_was_changed_does_not_make_the_best(tmp_path):
  saved(tmp_path, {1: 1.0, 2: 2.0})
  path = tmp_path / 'checkpoints' / '2' / 'metrics' / 'metrics'
  path.write_text(json.dumps({'loss': 0.5}))
  assert loaded(tmp_path, 'best') == 1
  saved(tmp_path, {3: 3.0}, latest=1)
  assert steps(tmp_path) == ['1', '3']
  assert steps(tmp_path, 'damaged') == ['2']


def test_an_empty_folder_is_no_checkpoint(tmp_path, caplog):
  saved(tmp_path, {1: 1.0})
  (tmp_path / 'checkpoints' / '2').mkdir()
  assert_is_of(1, restored(tmp_path))
  assert steps(tmp_path, 'damaged') == ['2']
  assert str(tmp_path / 'checkpoints' / '2') in caplog.text


def test_what_is_no_checkpoint_is_left_alone(tmp_path):
  saved(tmp_path, {1: 1.0})
  folder = tmp_path / 'checkpoints'
  (folder / 'README').write_text('mine')
  (folder / '7').write_text('a file')
  (folder / '3.orbax-checkpoint-tmp').mkdir()  # a save that was cut
  assert_is_of(1, restored(tmp_path))
  assert not (tmp_path / 'damaged').exists()
  assert (folder / 'README').read_text() == 'mine'
  assert (folder / '7').read_text() == 'a file'


def test_when_all_are_damaged_they_are_named_and_none_is_moved(tmp_path):
  """Whatever was wrong, a disk that was away say, the next start sees them."""
  saved(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0})
  for step in '123':
    spoil(tmp_path / 'checkpoints' / step)
  before = files(tmp_path / 'checkpoints')
  folder = tmp_path / 'checkpoints'
  for _ in range(2):
    with pytest.raises(BadInput) as error:
      restored(tmp_path)
    assert str(error.value) == (
      f'no checkpoint in {folder} can be used; damaged: 3, 2, 1'
    )
  assert files(folder) == before
  assert not (tmp_path / 'damaged').exists()


def test_the_same_step_may_be_damaged_twice(tmp_path):
  saved(tmp_path, {1: 1.0})
  for _ in range(2):
    saved(tmp_path, {2: 2.0})
    spoil(tmp_path / 'checkpoints' / '2')
    assert_is_of(1, restored(tmp_path))
  assert steps(tmp_path, 'damaged') == ['2', '2+']
  for name in ('2', '2+'):
    assert data_files(tmp_path / 'damaged' / name)


def test_if_the_best_is_damaged_the_next_best_is_loaded(tmp_path):
  saved(tmp_path, {1: 2.0, 2: 1.0, 3: 4.0, 4: None}, latest=4)
  spoil(tmp_path / 'checkpoints' / '2')
  assert loaded(tmp_path, 'best') == 1
  spoil(tmp_path / 'checkpoints' / '1')
  spoil(tmp_path / 'checkpoints' / '3')
  assert loaded(tmp_path, 'best') == 4


def test_who_only_reads_changes_nothing(tmp_path, caplog):
  """Else a reader could take away what a run that goes on is writing."""
  saved(tmp_path, {1: 2.0, 2: 1.0, 3: 4.0})
  spoil(tmp_path / 'checkpoints' / '2')
  (tmp_path / 'checkpoints' / '4').mkdir()
  (tmp_path / 'checkpoints' / '5.orbax-checkpoint-tmp').mkdir()
  before = files(tmp_path), sorted(tmp_path.rglob('*'))
  assert loaded(tmp_path, 'latest') == 3
  assert loaded(tmp_path, 'best') == 3
  assert (files(tmp_path), sorted(tmp_path.rglob('*'))) == before
  for step in '24':
    assert f'{tmp_path / "checkpoints" / step} is damaged' in caplog.text


def test_what_is_pruned_while_it_is_read_is_not_damaged(tmp_path, caplog):
  saved(tmp_path, {1: 1.0, 2: 2.0})
  checkpoints, read = Checkpoints(tmp_path / 'checkpoints'), []

  def pruned(step, like):
    read.append(step)
    if step == 2:
      shutil.rmtree(tmp_path / 'checkpoints' / '2')
    return Checkpoints._read(checkpoints, step, like)

  checkpoints._read = pruned
  assert checkpoints.load('latest', LIKE)['step'] == 1
  assert (read, checkpoints.damaged, caplog.text) == ([2, 1], [], '')


def test_saving_goes_on_after_damage(tmp_path):
  saved(tmp_path, {1: 1.0, 2: 2.0})
  spoil(tmp_path / 'checkpoints' / '2')
  checkpoints = Checkpoints(tmp_path / 'checkpoints', 2)
  assert checkpoints.restore(LIKE)[0] == 1
  checkpoints.save(2, state(2), position(2), 0.5)
  checkpoints.close()
  assert_is_of(2, restored(tmp_path))
  assert loaded(tmp_path, 'best') == 2


# The hash.


@pytest.mark.parametrize(
  'other',
  [
    {'a': np.float32([1, 2]), 'b': np.int32(4)},
    {'a': np.float32([[1, 2]]), 'b': np.int32(3)},
    {'a': np.int32([1, 2]), 'b': np.int32(3)},
    {'a': np.float32([1, -2]), 'b': np.int32(3)},
    {'a': np.float32([2, 1]), 'b': np.int32(3)},
    {'a': np.float32([1, 2]), 'c': np.int32(3)},
    {'a': np.float32([1, 2])},
  ],
)
def test_the_hash_knows_values_shapes_dtypes_and_names(other):
  one = {'a': np.float32([1, 2]), 'b': np.int32(3)}
  assert content_hash(one, {}) == content_hash(dict(one), {})
  assert content_hash(one, {}) != content_hash(other, {})
  assert content_hash(one, {}) != content_hash(one, {'next': 1})


def test_one_bit_changes_the_hash():
  one = {'a': np.zeros(1000, np.float32)}
  bit = {'a': one['a'].copy()}
  bit['a'].view(np.uint8)[2345] ^= 1
  assert content_hash(one, {}) != content_hash(bit, {})


def test_a_fingerprint_is_what_it_was():
  """Checkpoints of earlier versions hold it; see fingerprint.py."""
  assert fingerprint(state(7)) == 'dc4ee4d8852c7a4b17474bc5d861b72a'
  assert fingerprint({}) == '0' * 32
  assert (
    fingerprint({'none': jnp.zeros((0, 3))})
    == '7a1ee82a6633b574621023c658a74c05'
  )
