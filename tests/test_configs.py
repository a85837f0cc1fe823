"""Every config builds, and its training step can be traced; nothing is run."""

import functools
import importlib.util
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from shared_tfm import accounting, config_file, tasks
from shared_tfm.train import state as states
from shared_tfm.train import step as steps

TOP = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((TOP / 'configs').glob('*.py'))
FURTHER = [
  f'{TOP}/configs/{name}'
  for name in (
    'glue.py:mnli',  # three classes
    'glue_albert_base.py:stsb',  # a number
    'translation_wmt14.py:universal',
  )
]


@pytest.mark.slow
@pytest.mark.parametrize(
  'path', [*map(str, CONFIGS), *FURTHER], ids=lambda path: path.split('/')[-1]
)
def test_a_step_of_it_can_be_traced(path):
  """On shapes alone, so that no size is too large; the state keeps its own."""
  config = config_file.load(path, [])
  assert accounting.describe(config)['params']['stored'] > 0
  seed = jax.ShapeDtypeStruct((), jnp.uint32)
  state = jax.eval_shape(functools.partial(states.initial, config), seed)
  held = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
  assert held == accounting.parameters(config.model)['stored']
  batches = tasks.make(config).batches()  # those between differ in length alone
  for batch in {id(each): each for each in (batches[0], batches[-1])}.values():
    after, metrics = jax.eval_shape(steps.train_step(config), state, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert {leaf.shape for leaf in flatten_dict(metrics).values()} == {()}
    jax.eval_shape(steps.eval_step(config), state, batch)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_it_says_what_to_expect_at_what_cost_by_which_command(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  parts = ('Expected: ', 'Cost: ', 'Command: ')
  places = [module.__doc__.find(f'\n{part}') for part in parts]
  assert -1 not in places and places == sorted(places)
  command = rf'--config=configs/{path.name}\b|make {path.stem}\b'
  assert re.search(command, module.__doc__)
