"""What the literature says of looping, learned in seconds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm import config as configs
from shared_tfm.data import generators
from shared_tfm.train import state as states
from shared_tfm.train import step as steps

HOPS, LETTERS, LENGTH = 3, 4, 20
STEPS, BATCH, HELD_OUT = 400, 32, 512


def hopped(words, hops):
  """Where so many hops lead from every position of every word; -1: nowhere.

  One hop goes from a letter to where it stood last before, and there to its
  successor; p-hop composes p of them (Saunshi et al., 2502.17416, 2.1).
  """
  after = np.full(words.shape, -1)
  for j in range(words.shape[1]):
    for i in range(j):
      same = words[:, i] == words[:, j]
      after[:, j] = np.where(same, i + 1, after[:, j])
  at = after
  for _ in range(hops - 1):
    further = np.take_along_axis(after, np.maximum(at, 0), axis=1)
    at = np.where(at >= 0, further, -1)
  return at


def p_hop(random, count):
  """Words in which no letter follows itself; all answers there are count."""
  strides = random.integers(1, LETTERS, (count, LENGTH))
  words = np.cumsum(strides, axis=1) % LETTERS
  at = hopped(words, HOPS)
  answers = np.take_along_axis(words, np.maximum(at, 0), axis=1)
  return {
    'inputs': words.astype(np.int32),
    'targets': answers.astype(np.int32),
    'weights': (at >= 0).astype(np.float32),
  }


def accuracy(num_layers, sharing, seed=0):
  """On words that were not trained on; training is one compiled program."""
  config = configs.cross(
    {
      'model': {
        'num_layers': num_layers,
        'd_model': 32,
        'd_ff': 64,
        'num_heads': 2,
        'max_len': LENGTH,
        'vocab_size': LETTERS,
        'norm': 'rmsnorm',
        'activation': 'relu',
        'position': 'rotary',
        'sharing': {'layer': sharing},
      },
      'optimizer': {
        'name': 'muon',  # AdamW needs several times the steps
        'learning_rate': 0.03,
        'schedule': 'wsd',
        'warmup_steps': 20,
        'weight_decay': 0.0,
      },
      'train': {'num_steps': STEPS, 'batch_size': BATCH},
    }
  )

  def learned(seed, batches, held_out):
    state = states.initial(config, seed)
    state, _ = jax.lax.scan(steps.train_step(config), state, batches)
    sums, _ = steps.eval_step(config)(state, held_out)
    return sums['correct'] / sums['weight']

  random = np.random.default_rng(seed)
  batches = {
    name: a.reshape(STEPS, BATCH, LENGTH)
    for name, a in p_hop(random, STEPS * BATCH).items()
  }
  # So much work for one program that it is worth optimising a little.
  options = {'xla_backend_optimization_level': 1}
  program = jax.jit(learned, compiler_options=options)
  return float(program(jnp.uint32(seed), batches, p_hop(random, HELD_OUT)))


@pytest.mark.parametrize('hops', [1, 2, 3, 4])
def test_hops_are_those_of_the_task_p_hop(hops):
  for i in range(20):
    prompt, answer = generators.example('p_hop', hops, 0, 0, i)
    letters = prompt.removesuffix('=')
    words = np.array([[generators.ALPHABET.index(a) for a in letters]])
    assert letters[hopped(words, hops)[0, -1]] == answer


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
  assert shallow < looped - 0.4
