"""The policy of recomputation that memory allows."""

import dataclasses

import jax.numpy as jnp
import pytest
from test_stack import assert_close

from shared_tfm import config as configs
from shared_tfm.train import remat, synthetic
from shared_tfm.train.programs import Programs


def programs_of(**train):
  model = {
    'num_layers': 4,
    'd_model': 64,
    'num_heads': 2,
    'vocab_size': 64,
    'max_len': 64,
    'use_bias': False,  # Adam makes much of a gradient that is only rounding
    'sharing': {'layer': 'all'},
  }
  train = {'batch_size': 8, **train}
  return Programs(configs.cross({'model': model, 'train': train}))


def updated(programs):
  (shapes,) = programs.batches
  batch = programs.put(synthetic.batch(programs.config, shapes))
  state, metrics = programs.train(programs.init(jnp.uint32(0)), batch)
  return state.params, metrics['loss']


@pytest.mark.slow
def test_the_budget_chooses_and_changes_nothing():
  much, little = programs_of(), programs_of(memory_gb=1e-4)
  assert (much.remat, little.remat) == ('dots', 'full')
  assert little.peak_bytes < much.peak_bytes
  between = (little.peak_bytes + 1) / 2**30
  assert programs_of(memory_gb=between).remat == 'full'
  assert programs_of(memory_gb=(much.peak_bytes + 1) / 2**30).remat == 'dots'
  assert_close(updated(little), updated(much), 1e-3)


def test_a_policy_that_is_given_is_taken():
  given = programs_of(memory_gb=1e-4).config
  given = remat.under(given, 'none')
  assert Programs(given).remat == 'none'


@pytest.mark.parametrize(
  'platform,expected',
  [('cpu', ('dots', 'full')), ('gpu', ('none', 'dots', 'full'))],
)
def test_the_fastest_is_tried_first(platform, expected):
  assert remat.policies(programs_of().config, platform) == expected


@dataclasses.dataclass
class Device:
  platform: str
  bytes_limit: int | None

  def memory_stats(self):
    return self.bytes_limit and {'bytes_limit': self.bytes_limit}


def test_the_budget_is_what_the_device_has():
  config = programs_of().config
  assert remat.budget(config, Device('gpu', 1000)) == 900
  assert remat.budget(config, Device('gpu', None)) == 0
  assert 2**28 < remat.budget(config, Device('cpu', 1000)) < 2**50
