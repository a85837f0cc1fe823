"""A config's compiled programs."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm.config import Config
from shared_tfm.data import Dataset
from shared_tfm.train import step as steps
from shared_tfm.train import visits


def programs(config: Config) -> 'Programs':
  """The programs of a config; runs that differ in their seed share them."""
  train = dataclasses.replace(config.train, seed=0)
  return _programs(dataclasses.replace(config, train=train))


@functools.lru_cache(maxsize=1)
def _programs(config: Config) -> 'Programs':
  return Programs(config)


class Programs:
  """What a run executes, each compiled when it is first asked for."""

  def __init__(self, config: Config):
    """Remembers the config, whose seed plays no part."""
    self.config = config

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
    step = jax.jit(steps.train_step(self.config), donate_argnums=0)
    return step.lower(self.shapes, steps.inputs(self.config)).compile()

  @functools.cached_property
  def evaluate(self) -> Any:
    """(state, batch, byte lengths) -> sums."""
    vocab = self.config.model.vocab_size
    lengths = jax.ShapeDtypeStruct((vocab,), jnp.int32)
    step = jax.jit(steps.eval_step(self.config))
    batch = steps.inputs(self.config)
    return step.lower(self.shapes, batch, lengths).compile()

  @functools.cached_property
  def cosines(self) -> Any:
    """(state, batch) -> cosines between visits' gradients, by component."""
    measure = jax.jit(visits.visit_cosines(self.config))
    return measure.lower(self.shapes, steps.inputs(self.config)).compile()

  @property
  def peak_bytes(self) -> int:
    """Memory of a training step: state, batch and temporaries."""
    memory = self.train.memory_analysis()
    return (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
    )


_SEED = jax.ShapeDtypeStruct((), jnp.uint32)


def evaluate(
  compiled: Programs, state: steps.State, dataset: Dataset, batches: int
) -> dict[str, float]:
  """Evaluates on the validation split.

  Args:
    compiled: the config's programs.
    state: any training state of that config.
    dataset: the data, with a fixed order of validation batches.
    batches: how many of them; 0 for all.

  Returns:
    'loss' in nats per token, 'perplexity', 'accuracy' (the share of targets
    that score highest) and 'bits_per_byte' of the text behind the targets.
  """
  lengths = jax.device_put(dataset.tokenizer.byte_lengths)
  sums = jax.device_get(
    [
      compiled.evaluate(state, jax.device_put(batch), lengths)
      for batch in dataset.validation(batches)
    ]
  )
  total = {name: sum(s[name].item() for s in sums) for name in sums[0]}
  loss = total['loss'] / total['weight']
  return {
    'loss': loss,
    'perplexity': math.exp(min(loss, 700)),
    'accuracy': total['correct'] / total['weight'],
    'bits_per_byte': total['loss'] / math.log(2) / total['bytes'],
    **({'loops': total['loops'] / total['weight']} if 'loops' in total else {}),
  }
