"""A config's compiled programs."""

import collections
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm import tasks
from shared_tfm.config import Config
from shared_tfm.data import Dataset
from shared_tfm.train import step as steps
from shared_tfm.train import visits


def programs(config: Config) -> 'Programs':
  """The programs of a config; runs that start otherwise share them."""
  train = dataclasses.replace(config.train, seed=0, init_from='')
  return _programs(dataclasses.replace(config, train=train))


@functools.lru_cache(maxsize=1)
def _programs(config: Config) -> 'Programs':
  return Programs(config)


class Shaped:
  """One program for each kind of batch."""

  def __init__(self, function: Any, shapes: Any, batches: Any, **options: Any):
    """Compiles.

    Args:
      function: (state, batch) -> anything.
      shapes: of the state.
      batches: the shapes of each kind.
      **options: of `jax.jit`.
    """
    jitted = jax.jit(function, **options)
    self.compiled = {
      _kind(batch): jitted.lower(shapes, batch).compile() for batch in batches
    }

  def __call__(self, state: Any, batch: Any) -> Any:
    """Runs the program that fits the batch."""
    return self.compiled[_kind(batch)](state, batch)


def _kind(batch: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
  return tuple(batch[name].shape for name in sorted(batch))


class Programs:
  """What a run executes, each compiled when it is first asked for."""

  def __init__(self, config: Config):
    """Remembers the config, whose seed plays no part."""
    self.config = config
    self.task = tasks.make(config)

  @functools.cached_property
  def shapes(self) -> Any:
    """The state's shapes, dtypes and shardings."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here),
      jax.eval_shape(functools.partial(steps.initial, self.config), _SEED),
    )

  @functools.cached_property
  def init(self) -> Any:
    """(seed) -> state."""
    init = functools.partial(steps.initial, self.config)
    return jax.jit(init).lower(_SEED).compile()

  @functools.cached_property
  def train(self) -> Any:
    """(state, batch) -> (state, metrics); the state is donated."""
    step = steps.train_step(self.config)
    return Shaped(step, self.shapes, self.task.batches(), donate_argnums=0)

  @functools.cached_property
  def evaluate(self) -> Any:
    """(state, batch) -> sums, and what was said of each row."""
    step = steps.eval_step(self.config)
    return Shaped(step, self.shapes, self.task.batches())

  @functools.cached_property
  def cosines(self) -> Any:
    """(state, batch) -> cosines between visits' gradients, by component."""
    measure = visits.visit_cosines(self.config)
    return Shaped(measure, self.shapes, self.task.batches())

  @property
  def peak_bytes(self) -> int:
    """Memory of the largest training step: state, batch and temporaries."""
    found = [p.memory_analysis() for p in self.train.compiled.values()]
    return max(
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
      for memory in found
    )


_SEED = jax.ShapeDtypeStruct((), jnp.uint32)


def evaluate(
  compiled: Programs,
  state: steps.State,
  dataset: Dataset,
  batches: int,
  split: str = 'validation',
) -> dict[str, float]:
  """Evaluates on a split.

  Args:
    compiled: the config's programs.
    state: any training state of that config.
    dataset: the data, with a fixed order of batches.
    batches: how many of them; 0 for all.
    split: of the data.

  Returns:
    What the task measures, 'loss' among it.
  """
  task, totals = compiled.task, collections.defaultdict[str, float](float)
  pending, rows = [], []
  for batch in dataset.evaluation(split, batches):
    pending.append(compiled.evaluate(state, jax.device_put(batch)))
    rows.append(batch.get('row'))
    for name, value in task.count(batch, dataset).items():
      totals[name] += value
  predictions = []
  for (sums, said), row_B in zip(jax.device_get(pending), rows, strict=True):
    for name, value in sums.items():
      totals[name] += value.item()
    if row_B is not None:
      predictions += tasks.predicted(said, row_B)
  return task.metrics(totals, predictions, dataset, split)
