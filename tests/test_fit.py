"""Banks made from weights that exist: donors' layers, and soft sharing."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from test_any_specs import sharings
from test_stack import TOKENS, assert_close, variables_of
from test_sums import N, Plain, config_of, flat, stored_shapes

from shared_tfm import config as configs
from shared_tfm.config import shapes
from shared_tfm.errors import BadInput
from shared_tfm.model import build
from shared_tfm.model.storage import layout
from shared_tfm.sharing import owners
from shared_tfm.sharing.fit import STARTS, fit, freeze, unrolled


def random_layers(config, seed=0):
  """Every tensor of every layer, a donor's."""
  random = np.random.default_rng(seed)
  return unflatten_dict(
    {
      tuple(path.split('.')): random.normal(size=(N, *tensor.shape))
      for path, tensor in shapes.layer(config.model).items()
    }
  )


def fitted(config, layers, **options):
  found = shapes.components(config.model)
  return fit(layers, found, layout(config.model), **options)


def error(config, layers, *within, **options):
  """The squared error of a fit, of the tensors whose path starts so."""
  bank = fitted(config, layers, **options)
  made = flat(Plain(config.model).weights(bank))
  wanted = flat(layers)
  return sum(
    ((made[p] - wanted[p]) ** 2).sum()
    for p in made
    if p[: len(within)] == within
  )


@pytest.mark.parametrize('start', STARTS)
def test_levels_at_full_rank_reproduce_the_donor(start):
  """Vectors have no products: each layer of the donor keeps its own."""
  own = 'cycle:3+none@99'
  donor = config_of({'layer': 'none'}, use_bias=False)
  heir = config_of(
    {'attention': own, 'feed_forward': own, 'layer': 'none'}, use_bias=False
  )
  variables = variables_of(donor)
  layers = variables['params']['stack']['rows']
  params = {**variables['params'], 'stack': fitted(heir, layers, start=start)}
  expected = build(donor).apply(variables, TOKENS)
  assert_close(build(heir).apply({'params': params}, TOKENS), expected, 1e-5)


def test_a_bank_has_the_shapes_of_the_models():
  """Of every kind of level, and with parts that some layers lack."""
  config = config_of(
    {
      'layer': 'all+none@3+none@diagonal',
      'attention_query': 'soft:9',
      'attention_out': 'cycle:2|sequence:2',
      'attention_key': '=attention.value',
      'kv_source': 'sequence:3',
    }
  )
  bank = fitted(config, random_layers(config))
  made = {path: leaf.shape for path, leaf in flatten_dict(bank).items()}
  assert made == stored_shapes(config.model)
  assert {leaf.dtype for leaf in jax.tree.leaves(bank)} == {np.dtype('f4')}


def test_starts_as_published():
  """Relaxed Recursive Transformers, section 2.2: 6 layers to 3, cycled."""
  config = config_of({'layer': 'cycle:3'})
  layers = random_layers(config)
  wanted = layers['feed_forward']['up']['kernel']
  picked = {'stepwise': (0, 2, 5), 'lower': (0, 1, 2), 'upper': (3, 4, 5)}
  for start, rows in picked.items():
    bank = fitted(config, layers, start=start)
    np.testing.assert_allclose(
      bank['rows']['feed_forward']['up']['kernel'],
      wanted[np.array(rows)],
      rtol=1e-6,
    )
  means = (wanted[:3] + wanted[3:]) / 2
  bank = fitted(config, layers)
  np.testing.assert_allclose(
    bank['rows']['feed_forward']['up']['kernel'], means, atol=1e-6
  )
  errors = {start: error(config, layers, start=start) for start in STARTS}
  assert min(errors, key=errors.get) == 'average'


@pytest.mark.parametrize('start', STARTS)
def test_more_rank_is_less_error(start):
  """By what Eckart and Young say: the singular values that are left out."""
  errors = []
  plain = config_of({'layer': 'cycle:3'})
  layers = random_layers(plain)
  where = ('feed_forward', 'up', 'kernel')
  errors = [error(plain, layers, *where, start=start)]
  tied = fitted(plain, layers, start=start)['rows']['feed_forward']['up']
  table = np.array(owners('cycle:3', N))
  rest = layers['feed_forward']['up']['kernel'] - tied['kernel'][table]
  values = np.linalg.svd(rest, compute_uv=False) ** 2
  for rank in (1, 2, 4, 8, 15, 16):
    config = config_of({'layer': f'cycle:3+none@{rank}'})
    errors.append(error(config, layers, *where, start=start))
    np.testing.assert_allclose(
      errors[-1], values[:, rank:].sum(), rtol=1e-4, atol=1e-6
    )
  assert errors == sorted(errors, reverse=True)


def test_products_that_add_nothing():
  """But can learn: only the second factor is zero."""
  config = config_of({'layer': 'cycle:3+none@4'})
  layers = random_layers(config)
  bank = fitted(config, layers, products='zero')
  factors = bank['level_1']['attention']['query']['kernel']
  assert not factors['b'].any()
  assert 0.7 < factors['a'].std() * 4 < 1.3
  plain = error(config_of({'layer': 'cycle:3'}), layers)
  np.testing.assert_allclose(error(config, layers, products='zero'), plain)


@pytest.mark.parametrize('templates', (1, 3, 6, 8))
def test_templates_are_the_leading_directions(templates):
  """One set of coefficients for all matrices of a component, jointly fitted."""
  config = config_of({'attention': f'soft:{templates}'})
  layers = random_layers(config)
  bank = fitted(config, layers)
  matrices = [part['kernel'] for part in layers['attention'].values()]
  joint = np.concatenate([m.reshape(N, -1) for m in matrices], axis=1)
  values = np.linalg.svd(joint, compute_uv=False) ** 2
  np.testing.assert_allclose(
    error(config, layers, 'attention'),
    values[templates:].sum(),
    rtol=1e-4,
    atol=1e-6,
  )
  mix = bank['mix']['attention']
  assert mix.shape == (N, templates)
  assert abs((mix[:, :N] ** 2).sum(axis=1).mean() - 1) < 1e-4
  assert (np.abs(mix).max(axis=0) > 0).all()


LOSSLESS = st.sampled_from(
  (
    'none',
    'cycle:2',
    '0,1,0,2,1,2',
    'sequence:3@3',
    'none@99',
    'all@diagonal',
    'soft:2',
    'soft:7',
  )
)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(LOSSLESS, LOSSLESS, st.sampled_from(('', '|all', '|sequence:2')))
def test_what_a_spec_can_say_is_found_again(attention, feed_forward, units):
  """Weights that some bank of one level makes are fitted without error."""
  sharing = {
    'attention': attention + units,
    'attention_key': '=attention.query',
    'feed_forward': feed_forward + units,
    'feed_forward_down': feed_forward,
  }
  config = config_of(sharing)
  random = np.random.default_rng(0)
  bank = unflatten_dict(
    {
      path: random.normal(size=shape)
      for path, shape in stored_shapes(config.model).items()
    }
  )
  layers = Plain(config.model).weights(bank)
  size = sum((leaf**2).sum() for leaf in flat(layers).values())
  assert error(config, layers) < 1e-9 * size


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(sharings(), st.integers(0, 99))
def test_every_level_brings_weights_nearer(sharing, seed):
  """A sum is never worse than its first term, whatever the specs."""

  def first(spec):
    levels, bar, units = spec.partition('|')
    return levels.partition('+')[0] + bar + units

  config = config_of(sharing)
  shorter = config_of({name: first(spec) for name, spec in sharing.items()})
  layers = random_layers(config, seed)
  where = [('attention', p, 'kernel') for p in ('query', 'key', 'value', 'out')]
  where += [('feed_forward', p, 'kernel') for p in ('up', 'down')]
  for path in where:
    less = error(shorter, layers, *path)
    assert error(config, layers, *path) < less * 1.0001 + 1e-6


def test_unrolled_weights_are_those_of_plain_loops():
  """Shared to dense, for every kind of level at once."""
  config = config_of(
    {
      'layer': 'cycle:3+none@2+none@diagonal',
      'attention': 'soft:2|sequence:2',
      'attention_key': '=attention.query',
    }
  )
  bank = variables_of(config)['params']['stack']
  made = unrolled(bank, shapes.components(config.model), layout(config.model))
  assert_close(made, Plain(config.model).weights(bank), 1e-6)


@pytest.mark.parametrize(
  'option,message',
  (
    (
      {'start': 'stepwize'},
      "unknown start 'stepwize'; did you mean 'stepwise'?",
    ),
    (
      {'products': 'pca'},
      "unknown kind of products 'pca'; known: svd, zero",
    ),
  ),
)
def test_unknown_ways_to_fit(option, message):
  config = config_of({'layer': 'all'})
  with pytest.raises(BadInput) as raised:
    fitted(config, random_layers(config), **option)
  assert str(raised.value) == message


def test_freezing_finds_the_nearest_table():
  """Numbered in the order of first use; templates nobody reads are dropped."""
  mix = np.array(
    [[0.1, 0.9, 0.2], [0, 1, 0], [0.6, -0.9, 0.5], [-0.9, 0.8, 0.1]]
  )
  spec, rows = freeze(mix)
  assert spec == '0,0,1,0'
  np.testing.assert_allclose(rows[0], mix[[0, 1, 3]].mean(axis=0))
  np.testing.assert_allclose(rows[1], mix[2])
  spec, rows = freeze(np.eye(4)[[2, 0, 2, 3]])
  assert spec == '0,1,0,2'
  np.testing.assert_array_equal(rows, np.eye(4)[[2, 0, 3]])


def test_frozen_logits_are_near_and_exact_at_one_hot():
  """Soft queries, keys, values and outputs (MASA), made into four tables."""
  names = [f'attention_{part}' for part in ('query', 'key', 'value', 'out')]
  soft = config_of(dict.fromkeys(names, 'soft:3'), use_bias=False)
  params = variables_of(soft)['params']
  random = np.random.default_rng(0)
  hot = {n: np.eye(3)[random.integers(0, 3, N)] for n in params['stack']['mix']}

  def distance(noise):
    mix = {
      name: (one + noise * random.normal(size=one.shape)).astype(np.float32)
      for name, one in hot.items()
    }
    bank = {**params['stack'], 'mix': mix}
    true = build(soft).apply({'params': {**params, 'stack': bank}}, TOKENS)
    specs, rows = {}, flatten_dict(bank['rows'])
    for name, one in mix.items():
      specs[configs.SHARING_FIELDS[name]], made = freeze(one)
      path = (*name.split('.'), 'kernel')
      rows[path] = np.tensordot(made, rows[path], axes=1)
    stack = {'rows': unflatten_dict(rows)}
    hard = build(config_of(specs, use_bias=False))
    logits = hard.apply({'params': {**params, 'stack': stack}}, TOKENS)
    return np.abs(logits - true).max() / np.abs(true).max()

  exact, near, far = distance(0), distance(0.01), distance(0.1)
  assert exact < 1e-6 < near < 0.05
  assert near < far
