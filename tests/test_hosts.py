"""Several processes as one run: the same losses, and what ends one of them."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from shared_tfm.errors import BadInput
from shared_tfm.train import hosts

ROOT = pathlib.Path(__file__).parent.parent
BOUND = 120  # seconds within which a process that is left behind has to end
CONFIG = """
import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.model = {
    'num_layers': 4,
    'd_model': 16,
    'num_heads': 2,
    'vocab_size': 260,
    'max_len': 16,
    'sharing': {'layer': 'cycle:2'},
  }
  config.train = {
    'num_steps': 240,
    'batch_size': 16,
    'eval_every': 120,
    'eval_batches': 2,
    'checkpoint_every': 20,
    'log_every': 20,
  }
  config.data = {'source': 'text', 'path': 'text.txt'}
  return config
"""


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'coordinator': 'a:1'}, 'all three'),
    ({'coordinator': 'a:1', 'num_processes': 2}, 'all three'),
    ({'num_processes': 2, 'process_id': 0}, 'all three'),
    ({'distributed': True, 'process_id': 0}, 'all three'),
    (
      {'coordinator': 'a:1', 'num_processes': 2, 'process_id': 2},
      'must be below --num_processes 2, got 2',
    ),
  ],
)
def test_flags_that_do_not_go_together(given, message):
  with pytest.raises(BadInput, match=message) as told:
    hosts.connect(**given)
  assert '\n' not in str(told.value)


def test_alone():
  hosts.connect()
  assert hosts.is_first() and not hosts.several()
  assert hosts.agreed(True) and not hosts.agreed(False)
  assert hosts.ending(1, [15]) and not hosts.ending(1, [])
  assert hosts.in_turn(lambda: 'made') == 'made'
  assert hosts.of_first(3) == 3
  with pytest.raises(FileNotFoundError):
    hosts.together(pathlib.Path('missing').read_text)


class Started:
  """The processes of one run, each with its virtual devices."""

  def __init__(self, folder, processes, devices, *flags, last=None):
    """Starts them in `folder`, or the last one in a folder of its own."""
    with socket.socket() as probe:
      probe.bind(('localhost', 0))
      port = probe.getsockname()[1]
    environment = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': str(ROOT),
      'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")}'
      f' --xla_force_host_platform_device_count={devices}',
    }
    command = [sys.executable, '-m', 'shared_tfm', 'train']
    command += ['--config=config.py', '--workdir=run', *flags]
    self.folder, self.running = folder, []
    for i in range(processes):
      joined = [f'--coordinator=localhost:{port}', f'--process_id={i}']
      joined.append(f'--num_processes={processes}')
      self.running.append(
        subprocess.Popen(
          command + joined * (processes > 1),
          cwd=last or folder if i == processes - 1 else folder,
          env=environment,
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
        )
      )

  def saved(self, after=0):
    """Waits for a checkpoint of a later step, which it returns."""
    begun = time.monotonic()
    while time.monotonic() - begun < 600:  # they may wait for each other
      found = [
        int(path.name)
        for path in (self.folder / 'run' / 'checkpoints').glob('*')
        if path.name.isdigit()
      ]
      if max(found, default=0) > after:
        return max(found)
      codes = [process.poll() for process in self.running]
      if any(code is not None for code in codes):
        self.end()
        raise AssertionError(f'ended with {codes} before it was saved')
      time.sleep(0.1)
    for process in self.running:
      process.kill()
    raise AssertionError('nothing was saved in ten minutes')

  def end(self, timeout=600):
    """Waits; the exit statuses, and what was said on standard error."""
    said = [process.communicate(timeout=timeout) for process in self.running]
    return [p.returncode for p in self.running], [err for _, err in said]


def losses(folder):
  lines = (folder / 'run' / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return {
    (line['kind'], line['step']): (line['loss'], line['tokens'])
    for line in found
    if line['kind'] in ('train', 'validation')
  }


@pytest.mark.slow
def test_what_one_of_two_cannot_read_ends_both_with_a_line(tmp_path):
  (tmp_path / 'other').mkdir()
  for folder in (tmp_path, tmp_path / 'other'):
    (folder / 'config.py').write_text(CONFIG)
  (tmp_path / 'text.txt').write_text('To be, or not to be. ' * 400)
  run = Started(tmp_path, 2, 1, '--config.mesh.data=2', last=tmp_path / 'other')
  codes, said = run.end(BOUND)
  assert codes == [2, 2]
  assert said[0].endswith('error: another process cannot go on, and says why\n')
  assert 'text.txt' in said[1].splitlines()[-1]
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_run_on_two_hosts_that_are_killed_and_moved(tmp_path):
  """One process dies; both are told to end; then fewer devices go on.

  Every loss on the way is that of a run on one device that nothing happened to.
  """
  folders = [tmp_path / 'many', tmp_path / 'one']
  for folder in folders:
    folder.mkdir()
    (folder / 'config.py').write_text(CONFIG)
    (folder / 'text.txt').write_text('To be, or not to be. ' * 400)
  many, one = folders
  eight = ('--config.mesh.data=4', '--config.mesh.fsdp=2')

  # A peer dies, whichever: the other ends by itself, with a message.
  first = 0
  for dead, left in ((1, 0), (0, 1)):
    run = Started(many, 2, 4, *eight)
    first = run.saved(first)
    run.running[dead].kill()
    begin = time.monotonic()
    codes, said = run.end(BOUND)
    assert time.monotonic() - begin < BOUND
    assert codes[dead] == -signal.SIGKILL and codes[left] not in (0, None)
    # By JAX's coordinator, or by gloo, whose half of a sum is missing.
    told = 'another task died', 'error', 'gloo::EnforceNotMet'
    assert any(words.lower() in said[left].lower() for words in told)

  # Both start again, and one of them is told to end: both do, saved.
  run = Started(many, 2, 4, *eight)
  second = run.saved(first)
  run.running[1].send_signal(signal.SIGTERM)
  codes, said = run.end()
  assert codes == [143, 143], said
  assert all('interrupted: SIGTERM after step' in err for err in said)

  # Two devices go on, and then one.
  run = Started(many, 1, 2, '--config.mesh.fsdp=2')
  run.saved(second + 20)
  run.running[0].send_signal(signal.SIGTERM)
  assert run.end()[0] == [143]
  assert Started(many, 1, 1).end()[0] == [0]

  assert Started(one, 1, 1).end()[0] == [0]
  expected, found = losses(one), losses(many)
  assert found.keys() == expected.keys() and ('train', 240) in found
  for key, (loss, tokens) in expected.items():
    assert found[key] == (pytest.approx(loss, rel=1e-3), tokens), key
  assert (many / 'run' / 'result.json').exists()
