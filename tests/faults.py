"""What can go wrong around a run, each made to happen, and what must follow.

Every fault gets a copy of a run that was cut in the middle. Whatever is done to
it, it is said in one line, and at the end the same command comes to the weights
and the log of the run that nobody disturbed.
"""

import contextlib
import io
import itertools
import logging
import os
import resource
import shutil
import signal
import subprocess
import time
import types

import torture
import tqdm

from shared_tfm import __main__ as command_line
from shared_tfm import config_file
from shared_tfm.errors import Interrupted
from shared_tfm.train import log, loop, programs, runs
from shared_tfm.train.checkpoint import Checkpoints, content_hash

SHORT = {
  'num_steps': 12,
  'checkpoint_every': 2,
  'eval_every': 4,
  'log_every': 3,
}
CUT = 9  # the step after which a signal ends the run that faults begin from
FAULTS = {}


class CannotBeMade(Exception):
  """This machine does not let us make the fault; it says why."""


def fault(function):
  """Registers a fault under its function's name, in words."""
  FAULTS[function.__name__.strip('_').replace('_', ' ')] = function
  return function


class Place:
  """A run that was cut, and the one that was not.

  Attributes:
    folder: of everything.
    whole: the run that nobody disturbed.
    statuses: of the commands that were run here.
  """

  def __init__(self, folder):
    """Trains both."""
    folder.mkdir(parents=True, exist_ok=True)
    self.folder, self.whole, self.half = (
      folder,
      folder / 'whole',
      folder / 'cut',
    )
    self.numbers, self.statuses = itertools.count(), []
    assert self.run(self.whole).status == 0
    made = config_file.load(str(folder / 'config.py'), [])
    with contextlib.suppress(Interrupted):
      loop.train(made, self.half, bar=_Cutting())
    assert torture.steps(self.half) == [8, 9]

  def copy(self, above=None):
    """A fresh copy of the run that was cut, in a folder of its own."""
    path = (above or self.folder) / f'run_{next(self.numbers)}'
    return shutil.copytree(self.half, path)

  def run(self, workdir, **train):
    """The command, in this process: its status, errors and warnings."""
    warnings, text = _Heard(), io.StringIO()
    logger = logging.getLogger('shared_tfm')
    logger.addHandler(warnings)
    try:
      words = torture.arguments(self.folder, workdir, **(SHORT | train))
      with contextlib.redirect_stderr(text), _silent():
        status = command_line.main(words)
    finally:
      logger.removeHandler(warnings)
    self.statuses.append(status)
    assert 'Traceback' not in text.getvalue(), text.getvalue()
    errors = [s for s in text.getvalue().split('\n') if s.startswith('error: ')]
    return types.SimpleNamespace(
      status=status, errors=errors, warnings=warnings.lines
    )

  def refused(self, workdir, *texts, **train):
    """Runs the command, which must say in one line what is wrong."""
    said = self.run(workdir, **train)
    assert said.status == 2 and len(said.errors) == 1, said
    for text in texts:
      assert text in said.errors[0], said

  def ends_alike(self, workdir, *texts, damaged=0):
    """Runs the command, which must come to the end it would have come to.

    Args:
      workdir: the run's folder.
      *texts: in one warning each, and there is no other.
      damaged: how many checkpoints are set aside.
    """
    said = self.run(workdir)
    assert said.status == 0, said
    assert len(said.warnings) == len(texts), said
    for text, warning in zip(texts, said.warnings, strict=True):
      assert text in warning and '\n' not in warning, said
    assert torture.same(workdir, self.whole, damaged) == ''
    assert not list(workdir.rglob('*.part')) + list(workdir.rglob('*-tmp*'))


class _Cutting(tqdm.tqdm):
  """A progress bar that ends the run by a signal."""

  def __init__(self):
    super().__init__(file=io.StringIO())

  def update(self, n=1):
    super().update(n)
    if self.n == CUT:
      os.kill(os.getpid(), signal.SIGTERM)


class _Heard(logging.Handler):
  """Collects warnings."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self.lines = []

  def emit(self, record):
    self.lines.append(record.getMessage())


@contextlib.contextmanager
def _silent():
  """Keeps a result off the screen."""
  with contextlib.redirect_stdout(io.StringIO()):
    yield


def _spoilt(place, spoil):
  """Spoils every file of the newest checkpoint in turn."""
  made = config_file.load(str(place.folder / 'config.py'), [])
  like = programs.programs(made).shapes

  def newest(workdir):
    checkpoints = Checkpoints(workdir / runs.CHECKPOINTS)
    step, state, position = checkpoints.restore(like)
    return step, content_hash(state, position), checkpoints.damaged

  older = place.copy()
  shutil.rmtree(older / 'checkpoints' / f'{CUT}')
  good = {newest(run)[:2] for run in (place.half, older)}
  assert {step for step, _ in good} == {8, CUT}
  folder, noticed = place.half / 'checkpoints' / f'{CUT}', []
  names = [p.relative_to(folder) for p in folder.rglob('*') if p.is_file()]
  for name in sorted(names):
    workdir = place.copy()
    path = workdir / 'checkpoints' / f'{CUT}' / name
    content = path.read_bytes()
    path.write_bytes(spoil(content))
    step, digest, damaged = newest(workdir)
    assert (step, digest) in good  # else what is wrong was taken for good
    assert damaged == ([CUT] if step == 8 else [])
    if damaged:
      noticed.append(workdir)
  assert len(noticed) >= 5
  for workdir in noticed[:: len(noticed) - 1]:
    place.ends_alike(workdir, f'checkpoints/{CUT} is damaged', damaged=1)


@fault
def a_flipped_byte_in_every_file_of_a_checkpoint(place):
  def flipped(content):
    content = bytearray(content)
    if content:
      content[len(content) // 2] ^= 1
    return content

  _spoilt(place, flipped)


@fault
def every_file_of_a_checkpoint_truncated(place):
  _spoilt(place, lambda content: content[: len(content) // 2])


@fault
def an_empty_step_folder(place):
  workdir = place.copy()
  (workdir / 'checkpoints' / '11').mkdir()
  place.ends_alike(workdir, 'checkpoints/11 is damaged', damaged=1)


@fault
def a_line_of_the_log_cut(place):
  workdir = place.copy()
  with (workdir / log.METRICS).open('a') as file:
    file.write('{"kind": "train", "st')
  place.ends_alike(workdir)


@fault
def a_line_of_the_log_damaged(place):
  workdir = place.copy()
  path = workdir / log.METRICS
  first, *rest = path.read_bytes().split(b'\n')
  path.write_bytes(b'\n'.join([b'\xff' + first, *rest]))
  said = place.run(workdir)
  assert said.status == 0
  assert said.warnings == [f'{path}: line 1 is damaged; left out']
  assert torture.timeless(workdir) == torture.timeless(place.whole)[1:]


@fault
def a_clock_that_jumps_back(place):
  workdir, now = place.copy(), time.time
  clock = itertools.count(1e9, -60)
  time.time = lambda: next(clock)
  try:
    place.ends_alike(workdir)
  finally:
    time.time = now
  times = [line['time'] for line in log.read(workdir)]
  assert times[-1] < times[0]


@fault
def a_file_that_may_not_grow(place):
  """No room for a checkpoint, by a limit that needs no special rights."""
  workdir = place.copy()
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
  try:
    place.refused(workdir, 'checkpoints: no checkpoint was written (File too')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert torture.steps(workdir)[-1] == CUT
  place.ends_alike(workdir)


@contextlib.contextmanager
def _mounted(folder):
  """A small disk of its own, where we may have one."""
  folder.mkdir()
  words = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)]
  try:
    made = subprocess.run(words, capture_output=True, text=True)
  except FileNotFoundError:
    raise CannotBeMade('there is no mount') from None
  if made.returncode:
    raise CannotBeMade(made.stderr.strip())
  try:
    yield folder
  finally:
    subprocess.run(['umount', str(folder)], check=True)


@fault
def a_full_disk(place):
  with _mounted(place.folder / 'disk') as disk:
    for room in (0, 4096, 8 * 4096, 20 * 4096):
      workdir = place.copy(disk)
      with (disk / 'fill').open('wb') as fill:
        left = os.statvfs(disk)
        fill.write(bytes(left.f_bavail * left.f_frsize - room))
      place.refused(workdir, 'No space left on device', str(workdir))
      assert torture.steps(workdir)[-1] >= CUT
      (disk / 'fill').unlink()
      place.ends_alike(workdir)
      shutil.rmtree(workdir)


@fault
def a_workdir_that_cannot_be_written(place):
  if os.getuid():  # root may write wherever the disk itself can be written
    workdir = place.copy()
    for path in (workdir, *workdir.rglob('*')):
      path.chmod(0o555 if path.is_dir() else 0o444)
    place.refused(workdir, 'Permission denied')
    for path in (workdir, *workdir.rglob('*')):
      path.chmod(0o755 if path.is_dir() else 0o644)
    return place.ends_alike(workdir)
  with _mounted(place.folder / 'read_only') as disk:
    workdir = place.copy(disk)
    again = ['mount', str(disk), '-o']
    subprocess.run([*again, 'remount,ro'], check=True)
    place.refused(workdir, 'Read-only file system', str(workdir))
    subprocess.run([*again, 'remount,rw'], check=True)
    place.ends_alike(workdir)


@fault
def a_second_run_in_the_same_folder(place):
  """It is refused, and the first goes on; killed, it leaves no lock."""
  workdir = place.folder / f'run_{next(place.numbers)}'
  endless = SHORT | {'num_steps': 10**6}
  process = torture.start(place.folder, workdir, **endless)
  try:
    torture.wait(process, lambda: torture.written(workdir))
    assert process.poll() is None, process.communicate()
    place.refused(
      workdir,
      f'error: workdir {workdir} is in use by process {process.pid} on ',
      **endless,
    )
    assert process.poll() is None
  finally:
    process.kill()
    process.communicate()
  with runs.claimed(workdir, runs.read_config(workdir)):
    pass


def all_of_them(folder, shown):
  """Makes every fault.

  Args:
    folder: made for it.
    shown: is told of each.

  Returns:
    How many were made, how many this machine cannot make, and what went wrong.
  """
  place, left_out, wrong = Place(folder), 0, []
  for name, make in FAULTS.items():
    try:
      make(place)
      said = 'nothing lost'
    except CannotBeMade as why:
      said, left_out = f'left out: {why}', left_out + 1
    except Exception as error:
      said = f'{type(error).__name__}: {error}'
      wrong.append(f'{name}: {said}')
    shown(f'{name}: {said}')
  return len(FAULTS) - left_out, left_out, wrong
