"""Memory that a step has freed: does the next one have it without new pages?"""

import os
import pathlib
import subprocess
import sys

import pytest

TOP = pathlib.Path(__file__).parents[1]
PAGES = 4096 * 4096 * 4 // 4096  # of the product's temporaries
STEPS = """
import resource
import jax, jax.numpy as jnp

step = jax.jit(lambda x: x @ x.T @ x)
x = jnp.ones((4096, 8))
faults = []
for _ in range(6):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  step(x).block_until_ready()
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""
KEEP = 'from shared_tfm import heap; heap.keep()\n'
COMMAND = f"""
import sys
from shared_tfm import __main__
config = {str(TOP / 'configs/quickstart.py')!r}
assert not __main__.main([*sys.argv[1:], '--config', config])
"""
FEW = (
  '--config.train.num_steps=1',
  '--config.optimizer.warmup_steps=0',
  '--config.train.eval_batches=1',
)


def fewest(program, *flags, folder=None):
  """Page faults of the step that has the fewest."""
  done = subprocess.run(
    [sys.executable, '-c', program, *flags],
    env=os.environ | {'PYTHONPATH': str(TOP)},
    capture_output=True,
    text=True,
    check=True,
    cwd=folder,
  )
  return int(done.stdout.split()[-1])


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc is asked')
def test_a_kept_step_asks_the_system_for_no_page():
  assert fewest(STEPS) > PAGES / 2
  assert fewest(KEEP + STEPS) < PAGES / 100


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='glibc is asked')
@pytest.mark.parametrize(
  'flags',
  [
    ('bench', '--steps=1'),
    ('train', *FEW, '--workdir=run'),
    ('compare', *FEW, '--workdir=run', '--sharing=all'),
  ],
)
def test_the_command_keeps_it(flags, tmp_path):
  assert fewest(COMMAND + STEPS, *flags, folder=tmp_path) < PAGES / 100
