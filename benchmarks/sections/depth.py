"""Whether the time to a first step grows with depth."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import ours
from benchmarks.rows import Plan, Row, compared

SCHEMES = (
  'none',
  'all',
  'sequence:3',
  'cycle:3',
  'cycle_rev:3',
  'cycle:3+none@4',  # a sum: rows in full, and an own product for each layer
)
MODEL = {'d_model': 32, 'num_heads': 2, 'max_len': 16, 'remat': 'full'}


def rows(plan: Plan) -> Iterator[Row]:
  """Seconds until a training step has run once, 96 visits over 12; at most 1.1.

  Tracing, compiling and one run of the step, in one process in which JAX has
  forgotten every program, its persistent cache off. 'Compiled' is the same
  without the run. The width is 32, so that little of it is the run; making the
  state is not in it.
  """
  few, many = (3, 6) if plan.quick else (12, 96)
  shallow, deep = f'{few} visits', f'{many} visits'
  with ours.uncached():
    _seconds(few, 'none')  # what is only ever done once
    for scheme in SCHEMES[:1] if plan.quick else SCHEMES:
      compiled: dict[str, list[float]] = {shallow: [], deep: []}
      stepped: dict[str, list[float]] = {shallow: [], deep: []}
      for _ in range(plan.few):
        for name, visits in (shallow, few), (deep, many):
          before, after = _seconds(visits, scheme)
          compiled[name].append(before)
          stepped[name].append(after)
      yield compared(f'{scheme}, first step', stepped, deep, shallow)
      yield compared(f'{scheme}, compiled', compiled, deep, shallow)


def _seconds(visits: int, scheme: str) -> tuple[float, float]:
  """Until the training step is compiled, and until it has run once."""
  model: dict[str, Any] = {**MODEL, 'num_layers': visits}
  made = ours.programs({**model, 'sharing': {'layer': scheme}}, 2)
  batch = ours.batch(made)
  # Zeros do for a state, whose program would have to be compiled as well.
  state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made.shapes)
  jax.clear_caches()
  begin = time.perf_counter()
  train = made.train
  compiled = time.perf_counter() - begin
  jax.block_until_ready(train(state, batch))
  return compiled, time.perf_counter() - begin
