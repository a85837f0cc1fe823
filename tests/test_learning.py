"""What the literature says of looping, learned in seconds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm import config as configs
from shared_tfm.train import step as steps

LENGTH, STEPS = 16, 300


def induction(random, count):
  """One induction hop, at every position that has an answer.

  The answer is the letter that followed the last earlier occurrence of the
  letter at hand; no letter follows itself. (2502.17416, section 3, p = 1.)
  """
  words = np.cumsum(random.integers(1, 4, (count, LENGTH)), axis=1) % 4
  after = np.full((count, LENGTH), -1)
  for j in range(LENGTH):
    for i in range(j):
      same = words[:, i] == words[:, j]
      after[:, j] = np.where(same, i + 1, after[:, j])
  answers = np.take_along_axis(words, np.maximum(after, 0), axis=1)
  return {
    'inputs': jnp.asarray(words, jnp.int32),
    'targets': jnp.asarray(answers, jnp.int32),
    'weights': jnp.asarray(after >= 0, jnp.float32),
  }


def accuracy(num_layers, sharing):
  config = configs.cross(
    {
      'model': {
        'num_layers': num_layers,
        'd_model': 32,
        'num_heads': 2,
        'max_len': LENGTH,
        'vocab_size': 4,
        'norm': 'rmsnorm',
        'activation': 'relu',
        'position': 'rotary',
        'sharing': {'layer': sharing},
      },
      'optimizer': {
        'learning_rate': 5e-3,
        'warmup_steps': 20,
        'weight_decay': 0.0,
      },
      'train': {'num_steps': STEPS},
    }
  )
  state = jax.jit(functools.partial(steps.initial, config))(jnp.uint32(0))
  step = jax.jit(steps.train_step(config), donate_argnums=0)
  random = np.random.default_rng(0)
  for _ in range(STEPS):
    state, _ = step(state, induction(random, 64))
  batch = induction(np.random.default_rng(1), 512)
  sums, _ = jax.jit(steps.eval_step(config))(state, batch)
  return float(sums['correct'] / sums['weight'])


@pytest.mark.slow
def test_one_layer_looped_six_times_matches_six_layers_and_beats_one():
  """Saunshi et al. (2502.17416): p-hop needs depth, not parameters."""
  looped, deep, shallow = (
    accuracy(6, 'all'),
    accuracy(6, 'none'),
    accuracy(1, 'none'),
  )
  assert deep > 0.97
  assert looped > deep - 0.03
  assert shallow < looped - 0.1
