"""Memory that a step has freed: does the next one have it without new pages?"""

import ctypes
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from shared_tfm import config as configs
from shared_tfm.train.programs import Programs

TOP = pathlib.Path(__file__).parents[1]
KEEP = 'from shared_tfm import heap; heap.keep()\n'
# The temporaries are 64 MiB, and batches are copied as they come.
STEPS = """
import resource, sys
import jax, jax.numpy as jnp

def faults():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

step = jax.jit(lambda x: x @ x.T @ x)
x, taken = jnp.ones((4096, 8)), []
for _ in range(8):
  before = faults()
  step(x).block_until_ready()
  taken.append(faults() - before)
print('', min(taken), file=sys.stderr)
"""
LARGE = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
before = libc.sbrk(0)
libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(3 << 30))))
print('', libc.sbrk(0) - before, file=sys.stderr)
"""
COMMAND = f"""
import sys
from shared_tfm import __main__
config = {str(TOP / 'configs/quickstart.py')!r}
assert not __main__.main([*sys.argv[1:], '--config', config])
"""
WORKER = """
from shared_tfm.report import worker
assert not worker.main()
"""
FEW = (
  '--config.train.num_steps=1',
  '--config.optimizer.warmup_steps=0',
  '--config.train.eval_batches=1',
)

pytestmark = pytest.mark.skipif(
  sys.platform != 'linux' or not hasattr(ctypes.CDLL(None), 'mallopt'),
  reason='glibc is asked',
)


def said(program, *flags, folder=None, **variables):
  """The number that a program says last."""
  kept = {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')}
  done = subprocess.run(
    [sys.executable, '-c', program, *flags],
    env=kept | {'PYTHONPATH': str(TOP)} | variables,
    input='\n',
    capture_output=True,
    text=True,
    check=True,
    cwd=folder,
  )
  return int(done.stderr.split()[-1])


@pytest.fixture(scope='module')
def anew():
  """Page faults of a step whose memory is not kept; few if pages are huge."""
  return said(STEPS)


def test_a_step_asks_the_system_for_no_page(anew):
  assert said(KEEP + STEPS) < anew / 4
  own = said(KEEP + STEPS, MALLOC_TRIM_THRESHOLD_='131072')
  assert own > anew / 4


def test_large_steps_are_kept_as_well():
  assert said(KEEP + LARGE) > 2.9 * 2**30


def test_a_step_need_not_wait_for_its_batch():
  """Else another thread would run it, whose memory is not kept."""
  programs = Programs(configs.cross({'model': {'num_layers': 1}}))
  values = np.ones(1 + (1 << 26), np.int8)[1:]  # as no device has it
  put = programs.put({'inputs': values.reshape(8, -1)})
  assert put['inputs'].is_ready()


@pytest.mark.slow
@pytest.mark.parametrize(
  'flags',
  [
    ('bench', '--steps=1'),
    ('train', *FEW, '--workdir=run'),
    ('compare', *FEW, '--workdir=run', '--sharing=all'),
  ],
)
def test_the_command_keeps_it(flags, anew, tmp_path):
  assert said(COMMAND + STEPS, *flags, folder=tmp_path) < anew / 4


def test_a_worker_of_a_comparison_keeps_it(anew):
  assert said(WORKER + STEPS) < anew / 4
