"""Our side of a comparison: programs, made-up batches and training steps."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.turns import Run
from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.train import synthetic
from shared_tfm.train.programs import Programs

RATE = 1e-4


def programs(model: dict[str, Any], rows: int) -> Programs:
  """Of the text task of a model's family, with nothing but AdamW."""
  encoder = model.get('family') == 'encoder'
  config = {
    'model': model,
    'train': {'batch_size': rows},
    'optimizer': {'learning_rate': RATE, 'warmup_steps': 0, 'clip_norm': 0.0},
    'task': {'name': 'masked_lm' if encoder else 'language_model'},
  }
  return Programs(configs.cross(config))


def batch(made: Programs) -> Any:
  """A made-up batch of the only kind, on the devices."""
  (shapes,) = made.batches
  return made.put(synthetic.batch(made.config, shapes))


def step(made: Programs) -> Run:
  """The training step; its state is donated from call to call."""
  given, state = batch(made), made.init(jnp.uint32(0))
  train = made.train

  def run() -> None:
    nonlocal state
    state, _ = jax.block_until_ready(train(state, given))

  return run


def flops(made: Programs) -> int:
  """Model FLOPs of a training step, as `bench` counts them."""
  (shapes,) = made.batches
  rows, length = shapes['inputs'].shape
  per_token = accounting.flops_per_token(made.config.model, length)['train']
  return per_token * rows * length


@contextlib.contextmanager
def uncached() -> Iterator[None]:
  """JAX's persistent cache is not asked inside."""
  name = 'jax_enable_compilation_cache'
  kept = jax.config.values[name]
  jax.config.update(name, False)
  compilation_cache.reset_cache()  # what remembers whether there is one
  try:
    yield
  finally:
    jax.config.update(name, kept)
    compilation_cache.reset_cache()
