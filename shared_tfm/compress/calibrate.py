"""Ranges of activations, of some batches that a network reads."""

from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm import tasks
from shared_tfm.config import Config
from shared_tfm.data import Dataset
from shared_tfm.layers.ranges import RANGES
from shared_tfm.model import Transformer, build
from shared_tfm.train.programs import programs
from shared_tfm.train.state import State


def calibrated(
  config: Config, state: State, dataset: Dataset, batches: int
) -> State:
  """A state whose ranges are those of batches to train on, and nothing else.

  Args:
    config: of the network, with `model.quantise.activations`.
    state: its own.
    dataset: the data.
    batches: how many it reads.
  """
  model, put = build(config), programs(config).put

  def read(model: Transformer, batch: Any) -> None:
    model.outputs(**tasks.arguments(batch))

  @jax.jit
  def follow(variables: Any, batch: Any) -> Any:
    _, after = model.apply(variables, batch, method=read, mutable=[RANGES])
    return {**variables, **after}

  ranges = jax.tree.map(jnp.zeros_like, state.variables[RANGES])
  variables = {'params': state.params, **state.variables, RANGES: ranges}
  data = dataset.train(config.train.seed)
  for _ in range(batches):
    variables = follow(variables, put(next(data)))
  return state.replace(variables={**state.variables, RANGES: variables[RANGES]})
