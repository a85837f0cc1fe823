"""How fast a config trains on the devices at hand, without its data.

The programs, the mesh and the state are those of a run; the batch is made up,
and lies on the devices before the clock starts. A step ends when all it returns
is there.
"""

import collections
import contextlib
import dataclasses
import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm import accounting
from shared_tfm.config import Config
from shared_tfm.errors import need
from shared_tfm.train import costly, rate, synthetic
from shared_tfm.train.programs import Programs

WARM = 2  # steps that are not counted
TRACED = 3  # steps that are profiled
HIT = '/jax/compilation_cache/cache_hits'
MISSED = '/jax/compilation_cache/cache_misses'


@dataclasses.dataclass(frozen=True)
class Step:
  """Training steps on one kind of batch.

  Attributes:
    batch: the shape of each of its arrays.
    rows: its examples.
    tokens: of these, or patches; of an encoder-decoder those of the target.
    median: seconds of a step; so are `fastest` and `slowest`.
    rows_per_second: by the median, as all that follows.
    tokens_per_second: so too.
    flops: of a step, as `accounting` counts them: recomputation is not.
    flops_per_second: of all devices together.
    utilisation: of the rate of products (PaLM, 2204.02311, appendix B).
    loss: of the last step; None where it is not finite.
  """

  batch: dict[str, tuple[int, ...]]
  rows: int
  tokens: int
  median: float
  fastest: float
  slowest: float
  rows_per_second: float
  tokens_per_second: float
  flops: int
  flops_per_second: float
  utilisation: float
  loss: float | None


@dataclasses.dataclass(frozen=True)
class Traced:
  """Profiled steps on the first kind of batch.

  Attributes:
    folder: where the profile is.
    steps: how many.
    seconds: that all of them took.
    operations: what took this time, the most costly first.
  """

  folder: str
  steps: int
  seconds: float
  operations: list[costly.Row]


@dataclasses.dataclass(frozen=True)
class Bench:
  """What was measured.

  Attributes:
    device: its 'platform' and 'kind', the 'count' that the mesh takes, and the
      'cores' of the host.
    versions: of what it ran on.
    dtype: of the computation.
    remat: the policy of the training step.
    steps: timed, of each kind.
    kinds: of batches, the longest first.
    product: the best rate of matrix products between these steps.
    stored_bytes: of the parameters, all devices together.
    peak_bytes: of each device, by the compiler, for the largest step.
    device_peak_bytes: what the first device had in use; None where it does not
      say.
    tried: how many policies were compiled before that one was taken.
    compile_seconds: for the training step of every kind, under that policy.
    cached: whether JAX's persistent cache had all of these that it keeps.
    traced: where a profile was asked for.
  """

  device: dict[str, Any]
  versions: dict[str, str]
  dtype: str
  remat: str
  steps: int
  kinds: list[Step]
  product: rate.Best
  stored_bytes: int
  peak_bytes: int
  device_peak_bytes: int | None
  tried: int
  compile_seconds: float
  cached: bool
  traced: Traced | None


def bench(config: Config, steps: int, trace: Path | None = None) -> Bench:
  """Times the training steps of a config, in one process.

  Every step of every kind of batch takes turns with matrix products, so that
  whatever else the machine does meets both.

  Args:
    config: as `config.cross` returns it.
    steps: how many to time.
    trace: a folder for a profile of a few further steps.

  Raises:
    BadInput: there are no steps to time, the folder is none, or the mesh
      cannot be had here.
  """
  need(steps >= 1, f'steps must be at least 1, got {steps}')
  need(
    trace is None or not trace.exists() or trace.is_dir(),
    f'trace {trace} is no folder',
  )
  programs = Programs(config)
  shapes = sorted(programs.batches, key=lambda b: -b['inputs'].shape[1])
  if trace:
    trace.mkdir(parents=True, exist_ok=True)

  # Programs, a state and batches, as a run has them.
  with _told() as events:
    step = programs.train
  counts = collections.Counter(e for e, when in events if when >= step.began)
  state = programs.init(jnp.uint32(config.train.seed))
  batches = [
    programs.put(synthetic.batch(config, shape, config.train.seed))
    for shape in shapes
  ]
  losses = [math.nan] * len(batches)

  def timed(kind: int) -> float:
    nonlocal state
    begin = time.perf_counter()
    state, metrics = jax.block_until_ready(step(state, batches[kind]))
    taken = time.perf_counter() - begin
    losses[kind] = float(metrics['loss'])
    return taken

  # What is timed.
  for kind in [*range(len(batches))] * WARM:
    timed(kind)
  first = programs.mesh.devices.flat[0]
  memory = first.memory_stats() or {}  # before products take theirs
  products = rate.Products(programs.mesh, config.model.dtype)
  seconds: list[list[float]] = [[] for _ in batches]
  for _ in range(steps):
    for kind, taken in enumerate(seconds):
      taken.append(timed(kind))
      products.run()

  traced = None
  if trace:
    with _profile(trace):
      walls = [timed(0) for _ in range(TRACED)]
    text = step.of(batches[0]).as_text()
    operations = costly.table(trace, text, sum(walls))
    traced = Traced(str(trace), TRACED, sum(walls), operations)

  return Bench(
    device={
      'platform': first.platform,
      'kind': first.device_kind,
      'count': programs.mesh.size,
      'cores': _cores(),
    },
    versions={
      'python': platform.python_version(),
      **{name: importlib.metadata.version(name) for name in ('jax', 'flax')},
    },
    dtype=config.model.dtype,
    remat=programs.remat,
    steps=steps,
    kinds=[
      _step(programs, batch, taken, loss, products.best.flops_per_second)
      for batch, taken, loss in zip(batches, seconds, losses, strict=True)
    ],
    product=products.best,
    stored_bytes=accounting.describe(config)['weight_bytes'],
    peak_bytes=programs.peak_bytes,
    device_peak_bytes=memory.get('peak_bytes_in_use'),
    tried=programs.tried,
    compile_seconds=step.seconds,
    cached=counts[HIT] > 0 == counts[MISSED],
    traced=traced,
  )


def _step(
  programs: Programs, batch: Any, seconds: list[float], loss: float, best: float
) -> Step:
  """What follows from the times."""
  rows = len(batch['inputs'])
  tokens = int(programs.task.tokens(batch))
  per_token = accounting.flops_per_token(programs.config.model, tokens // rows)[
    'train'
  ]
  median = statistics.median(seconds)
  return Step(
    batch={name: array.shape for name, array in batch.items()},
    rows=rows,
    tokens=tokens,
    median=median,
    fastest=min(seconds),
    slowest=max(seconds),
    rows_per_second=rows / median,
    tokens_per_second=tokens / median,
    flops=per_token * tokens,
    flops_per_second=per_token * tokens / median,
    utilisation=per_token * tokens / median / best,
    loss=loss if math.isfinite(loss) else None,
  )


@contextlib.contextmanager
def _told() -> Iterator[list[tuple[str, float]]]:
  """What JAX tells of inside, by name, and when."""
  events: list[tuple[str, float]] = []

  def listen(event: str, **_: Any) -> None:
    events.append((event, time.perf_counter()))

  jax.monitoring.register_event_listener(listen)
  try:
    yield events
  finally:
    jax.monitoring.unregister_event_listener(listen)


def _profile(folder: Path) -> Any:
  """Profiles what is done inside; calls of Python would only fill the file."""
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  return jax.profiler.trace(folder, profiler_options=options)


def _cores() -> int:
  """Those that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
