"""How long a training step of each of several configs takes, on this machine.

They are timed by turns, so that whatever else the machine does meets all of
them. One has its state in memory at a time.
"""

import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from shared_tfm.config import Config
from shared_tfm.train import synthetic
from shared_tfm.train.programs import Programs

ROUNDS = 5
STEPS = 3  # of a turn, after one that is not counted


def seconds(configs: Sequence[Config]) -> list[float]:
  """The median seconds of a training step of each config.

  Where batches are of several kinds, the mean over these. No data is needed;
  evaluation and checkpoints are not in it.
  """
  every = [Programs(config) for config in configs]
  taken: list[list[list[float]]] = [[[] for _ in p.batches] for p in every]
  for _ in range(ROUNDS):
    for programs, kinds in zip(every, taken, strict=True):
      _turn(programs, kinds)
  return [statistics.fmean(map(statistics.median, kinds)) for kinds in taken]


def _turn(programs: Programs, kinds: list[list[float]]) -> None:
  """Adds the seconds of some steps on each kind of batch."""
  seed = programs.config.train.seed
  state = programs.init(jnp.uint32(seed))
  for shape, times in zip(programs.batches, kinds, strict=True):
    batch = programs.put(synthetic.batch(programs.config, shape, seed))
    for step in range(1 + STEPS):
      begin = time.perf_counter()
      state, _ = jax.block_until_ready(programs.train(state, batch))
      if step:
        times.append(time.perf_counter() - begin)
