"""Batches that are made up, for what needs a task's shapes but not its data."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from shared_tfm.config import Config, Model

Batch = dict[str, np.ndarray]


def batch(config: Config, shapes: Mapping[str, Any], seed: int = 0) -> Batch:
  """A batch of random values that the config allows; nothing is padding.

  Args:
    config: as `config.cross` returns it.
    shapes: of one kind of batch; see `Task.batches`.
    seed: the only randomness.
  """
  random = np.random.default_rng(seed)
  return {
    name: _values(name, shape.shape, np.dtype(shape.dtype), config, random)
    for name, shape in sorted(shapes.items())
  }


def _values(
  name: str,
  shape: tuple[int, ...],
  dtype: np.dtype,
  config: Config,
  random: np.random.Generator,
) -> np.ndarray:
  if name == 'weights' or dtype.kind == 'b':  # masks: all of it counts
    return np.ones(shape, dtype)
  if name == 'row':
    return np.arange(*shape, dtype=dtype)
  if dtype.kind == 'f':  # pixels, and numbers to be told
    return random.standard_normal(shape, dtype)
  return random.integers(_below(name, config), size=shape, dtype=dtype)


def _below(name: str, config: Config) -> int:
  """What integers of a batch are below."""
  model = config.model
  limits = {
    'inputs': model.vocab_size,
    'source': model.vocab_size,
    'types': model.type_vocab_size,
    'order': 2,
    'targets': _targets(model, config.data.seq_len),
  }
  return limits[name]


def _targets(model: Model, length: int) -> int:
  """How many there are to tell from: positions, classes or tokens."""
  if model.head == 'spans':
    return length
  return model.num_classes if model.head == 'classes' else model.vocab_size
