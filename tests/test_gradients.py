"""Gradients of shared weights: how visits are joined, measured and weighed."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

from shared_tfm import config as configs
from shared_tfm.compress import left_out
from shared_tfm.config import shapes
from shared_tfm.config.rerun import rerun
from shared_tfm.errors import BadInput
from shared_tfm.layers.context import Context
from shared_tfm.layers.layer import Layer
from shared_tfm.model import Transformer, build
from shared_tfm.model.untied import spread, untied
from shared_tfm.train import by_visits, optimizer, visits
from shared_tfm.train import state as states

LAYERS, V, L = 4, 16, 6
SIZES = {
  'num_layers': LAYERS,
  'd_model': 16,
  'num_heads': 2,
  'max_len': L,
  'vocab_size': V,
}
HARD = {'layer': 'cycle:2', 'attention': '0,1,1,1+0,0,1,1', 'norm': 'none'}
TOKENS, TARGETS = jnp.asarray(
  np.random.default_rng(0).integers(0, V, (2, 2, L)), jnp.int32
)
BATCH = {
  'inputs': TOKENS,
  'targets': TARGETS,
  'weights': jnp.asarray(np.random.default_rng(1).random((2, L)), jnp.float32),
}


def crossed(sharing, optimizer=None, **model):
  fields = {**SIZES, 'sharing': sharing, **model}
  return configs.cross(
    {
      'model': fields,
      'optimizer': optimizer or {},
      'train': {'batch_size': 2},
    }
  )


def variables_of(config, **source):
  """Random weights, in which no row or level is like another."""
  shape = jax.eval_shape(
    build(config).init, jax.random.key(0), TOKENS, **source
  )
  random = np.random.default_rng(2)

  def fill(path, leaf):
    near = float(path[-1].key == 'scale')
    return (near + 0.2 * random.normal(size=leaf.shape)).astype(np.float32)

  found = jax.tree_util.tree_map_with_path(fill, nn.unbox(shape))
  if 'tables' in found:  # which are not those it would start with
    hard = shapes.components(crossed(HARD).model)
    owners = {name: np.array(c.owners, np.int32).T for name, c in hard.items()}
    found['tables'] = {'stack': {'owners': owners}}
  return found


def state_of(config, variables):
  others = {k: v for k, v in variables.items() if k != 'params'}
  key = jax.random.key_data(jax.random.key(3))
  zero = jnp.zeros((), jnp.int32)
  counts = {'step': zero, 'skipped': zero, 'streak': zero}
  return states.State(
    params=variables['params'],
    variables=others,
    opt_state=None,
    scale=None,
    key=key,
    **counts,
  )


def loss_of(logits):
  """A training step's loss, as a plain formula."""
  scores = jax.nn.log_softmax(logits)
  nats = -jnp.take_along_axis(scores, TARGETS[..., None], -1)[..., 0]
  return jnp.sum(nats * BATCH['weights']) / BATCH['weights'].size


@functools.cache
def plain_gradients():
  """Parameters of every layer -> their gradients: a Python loop over layers."""
  neutral = crossed({}).model
  return jax.jit(
    jax.grad(lambda p: loss_of(oracle.logits(neutral, p, {}, TOKENS)[0]))
  )


def hard(tables, **model):
  """A model under the tables of HARD, fixed or found in its state."""
  start = {'layer': 'none', 'attention': 'all+none', 'norm': 'all'}
  sharing = HARD if tables == 'fixed' else start
  return crossed(sharing, tables=tables, **model)


def levels_of(name):
  """(name in the bank, table) of every level of a component of HARD."""
  owners = shapes.component_of(crossed(HARD).model, name).owners
  return [
    (f'level_{i}' if i else 'rows', np.array(table))
    for i, table in enumerate(owners)
  ]


def per_layer(variables):
  """Gradients of single visits under HARD, by the oracle."""
  stored = variables['params']['stack']
  spread = {
    name: jax.tree.map(
      lambda *leaves: sum(leaves),
      *(
        jax.tree.map(lambda w, t=table: w[t], stored[group][name])
        for group, table in levels_of(name)
      ),
    )
    for name in oracle.COMPONENTS
  }
  return plain_gradients()({**variables['params'], 'stack': spread})['stack']


def joined(rule, table, rows, leaf):
  """What a rule makes of the gradients of single visits, for every row."""
  out = np.zeros((rows, *leaf.shape[1:]), np.float32)
  for row in set(table):
    terms = np.asarray(leaf, np.float64)[table == row]
    out[row] = {
      'sum': terms.sum(axis=0),
      'mean': terms.mean(axis=0),
      'owner': terms[0],
    }[rule]
  return out


def assert_close(left, right, rtol=2e-5):
  """Every leaf agrees, relative to its own size."""
  paths, tree = jax.tree_util.tree_flatten_with_path(left)
  for (path, a), b in zip(paths, tree.flatten_up_to(right), strict=True):
    # A key's bias moves no score: its gradient is nothing but rounding.
    size = max(float(np.abs(b).max()), 1e-3)
    worst = float(np.abs(np.asarray(a) - np.asarray(b)).max()) / size
    assert worst < rtol, f'{jax.tree_util.keystr(path)}: off by {worst}'


# The rule for a shared weight.


@pytest.mark.parametrize(
  ('rule', 'tables'),
  [
    ('sum', 'fixed'),
    pytest.param('mean', 'state', marks=pytest.mark.slow),
    pytest.param('owner', 'state', marks=pytest.mark.slow),
    pytest.param('mean', 'fixed', marks=pytest.mark.slow),
    pytest.param('owner', 'fixed', marks=pytest.mark.slow),
  ],
)
def test_a_row_gets_of_its_visits_what_the_rule_says(rule, tables):
  config = hard(tables, shared_gradient=rule)
  variables = variables_of(config)
  params = variables.pop('params')

  def loss(params):
    return loss_of(build(config).apply({'params': params, **variables}, TOKENS))

  actual = jax.jit(jax.grad(loss))(params)['stack']
  expected = per_layer({'params': params})
  for name in oracle.COMPONENTS:
    for group, table in levels_of(name):
      rows = len(jax.tree.leaves(params['stack'][group][name])[0])
      assert_close(
        actual[group][name],
        jax.tree.map(
          functools.partial(joined, rule, table, rows), expected[name]
        ),
      )


@pytest.mark.slow
def test_templates_get_the_mean_over_all_layers():
  both = [
    crossed({'layer': 'soft:2'}, shared_gradient=r) for r in ('sum', 'mean')
  ]
  params = variables_of(both[0])['params']
  total, mean = (
    jax.jit(
      jax.grad(lambda p, c=c: loss_of(build(c).apply({'params': p}, TOKENS)))
    )(params)
    for c in both
  )
  for name in ('query', 'out'):
    kernel = [
      g['stack']['rows']['attention'][name]['kernel'] for g in (total, mean)
    ]
    assert_close(kernel[1], kernel[0] / LAYERS)
    assert np.abs(kernel[0]).max() > 1e-4
  # A coefficient is one layer's own: there is nothing to take a mean of.
  assert_close(mean['stack']['mix'], total['stack']['mix'])


# Visit by visit.


@pytest.mark.slow
@pytest.mark.parametrize(
  'case',
  [
    pytest.param('hard', marks=pytest.mark.slow),
    pytest.param('soft', marks=pytest.mark.slow),
    'low rank',
    'within',
    pytest.param('loops', marks=pytest.mark.slow),
    pytest.param('two stacks', marks=pytest.mark.slow),
  ],
)
def test_the_untied_network_computes_the_same(case):
  sharing, model = {
    'hard': (HARD, {}),
    'soft': ({'layer': 'soft:2'}, {}),
    'low rank': (
      {'layer': 'all+none@2', 'attention_key': '=attention.query'},
      {},
    ),
    'within': (
      {
        'layer': 'all',
        'feed_forward': 'all|sequence:8',
        'kv_source': 'cycle:2',
      },
      {},
    ),
    'loops': (
      {'layer': 'cycle:2'},
      {'depth': {'injection': 'linear', 'rule': 'act'}},
    ),
    'two stacks': (
      {'layer': 'cycle:2', 'attention': 'all', 'across': 'attention'},
      {'family': 'encoder_decoder', 'num_decoder_layers': 2},
    ),
  }[case]
  config = crossed(sharing, **model)
  source = {'source_BS': TARGETS} if case == 'two stacks' else {}
  params = variables_of(config, **source)['params']
  own = spread(config.model, params, {})
  whole = Transformer(untied(config.model))
  shape = jax.eval_shape(whole.init, jax.random.key(0), TOKENS, **source)
  assert jax.tree.map(jnp.shape, own) == jax.tree.map(
    jnp.shape, nn.unbox(shape)['params']
  )
  one = jax.jit(build(config).apply)({'params': params}, TOKENS, **source)
  other = jax.jit(whole.apply)({'params': own}, TOKENS, **source)
  np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_cosines_of_two_stacks():
  config = crossed(
    {'layer': 'cycle:2', 'attention': 'all', 'across': 'attention'},
    family='encoder_decoder',
    num_decoder_layers=2,
  )
  data = dataclasses.replace(config.data, source='reverse')
  config = dataclasses.replace(config, data=data)
  state = state_of(config, variables_of(config, source_BS=TARGETS))
  one = {**BATCH, 'source': TARGETS, 'source_mask': TARGETS > 3}
  measured = jax.jit(visits.visit_cosines(config))(state, one)
  sizes = {name: len(matrix) for name, matrix in measured.items()}
  assert sizes['attention'] == sizes['cross_attention'] == 2
  assert sizes['encoder.attention'] == LAYERS
  for matrix in measured.values():
    np.testing.assert_allclose(np.diagonal(matrix), 1, rtol=1e-5)


@pytest.mark.parametrize(
  'tables', ['state', pytest.param('fixed', marks=pytest.mark.slow)]
)
def test_visit_gradients_are_those_of_single_layers(tables):
  config = hard(tables, shared_gradient='mean')
  variables = variables_of(config)
  state = state_of(config, variables)
  actual = jax.jit(visits.visit_gradients(config))(state, BATCH)
  expected = per_layer(variables)
  assert_close(actual['stack']['rows'], expected)


@pytest.mark.slow
def test_cosines_between_visits():
  config = crossed(HARD)
  variables = variables_of(config)
  state = state_of(config, variables)
  measured = jax.jit(visits.visit_cosines(config))(state, BATCH)
  assert set(measured) == {'attention', 'feed_forward', 'norm', 'layer'}
  gradients = per_layer(variables)
  for name in oracle.COMPONENTS:
    flat = np.concatenate(
      [
        np.asarray(leaf, np.float64).reshape(LAYERS, -1)
        for leaf in jax.tree.leaves(gradients[name])
      ],
      axis=1,
    )
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(measured[name], flat @ flat.T, atol=1e-5)
  # Here 'layer' is what has no table of its own: the feed-forward network.
  np.testing.assert_array_equal(measured['layer'], measured['feed_forward'])
  means = visits.mean_cosines(jax.device_get(measured))
  off = measured['norm'][np.triu_indices(LAYERS, 1)]
  assert means['norm'] == pytest.approx(float(np.mean(off)), rel=1e-4)


@pytest.mark.slow
def test_a_visit_without_a_gradient_has_no_direction():
  config = crossed({'layer': 'none', 'kv_source': 'sequence:2'})
  state = state_of(config, variables_of(config))
  measured = jax.jit(visits.visit_cosines(config))(state, BATCH)
  key = np.asarray(measured['attention.key'])
  assert key[1].tolist() == key[3].tolist() == [0] * LAYERS
  assert key[0, 0] == pytest.approx(1) and abs(key[0, 2]) > 1e-3


# Precision.


@pytest.mark.slow
@pytest.mark.parametrize('experts', [0, 4])
def test_bfloat16_gradients_are_accumulated_in_float32(experts):
  """64 visits of one row: no more than each term's own rounding is lost.

  The terms are what single visits of the same bfloat16 network get. Their sum
  in float64 is met to float32 accuracy; added up in bfloat16 it would miss.
  """
  count = 64
  config = crossed(
    {'layer': 'all'},
    num_layers=count,
    dtype='bfloat16',
    experts={'num_ff': experts, 'top_k': 2, 'ff_balance': 0.0},
  )
  variables = variables_of(config)
  state = state_of(config, variables)
  terms = jax.jit(visits.visit_gradients(config))(state, BATCH)
  model = build(config)

  def loss(params):
    return loss_of(model.apply({'params': params}, TOKENS))

  shared = jax.jit(jax.grad(loss))(variables['params'])
  for path in (('attention', 'value'), ('feed_forward', 'down')):
    term = terms['stack']['rows'][path[0]][path[1]]['kernel']
    row = shared['stack']['rows'][path[0]][path[1]]['kernel'][0]
    assert term.dtype == row.dtype == jnp.float32
    rounded = term.astype(jnp.bfloat16).astype(jnp.float32)
    assert (term != rounded).mean() > 0.8  # nor is any term
    exact = np.asarray(term, np.float64)
    scale = np.abs(exact).sum(axis=0)
    bound = count * np.finfo(np.float32).eps * scale
    assert (np.abs(row - exact.sum(axis=0)) <= bound).all()
    low = jnp.zeros(row.shape, jnp.bfloat16)
    for one in term:
      low = low + one.astype(jnp.bfloat16)
    missed = np.abs(np.asarray(low, np.float64) - exact.sum(axis=0)) > bound
    assert missed.mean() > 0.9


# Factors by the number of visits.

VISITS = {'sharing': {'layer': '0,0,0,1', 'norm': 'none'}, 'use_bias': False}
RATE, DECAY = 0.1, 0.5
NOT_ADAMW = ('lion', 'adafactor', 'muon')


def one_update(rule='adamw', gradient=1.0, **fields):
  """How far each leaf moves in one update by a constant gradient."""
  made = crossed(
    optimizer={
      'name': rule,
      'learning_rate': RATE,
      'schedule': 'constant',
      'weight_decay': DECAY,
      'clip_norm': 0.0,
      'eps': 0.0,
      **fields,
    },
    **VISITS,
  )
  params = variables_of(made)['params']
  gradients = jax.tree.map(lambda p: jnp.full_like(p, gradient), params)
  rule = optimizer.make(made)
  step, _ = jax.jit(rule.update)(gradients, rule.init(params), params)
  return params, step


def kernel(tree):
  return np.asarray(tree['stack']['rows']['attention']['query']['kernel'])


def test_the_rate_of_a_row_is_scaled_by_its_visits():
  params, plain = one_update()
  _, scaled = one_update(visit_rate_power=-0.5)
  factors = np.array([3**-0.5, 1.0], np.float32).reshape(2, 1, 1)
  exact = -RATE * (1 + DECAY * kernel(params)) * factors
  np.testing.assert_allclose(kernel(scaled), exact, rtol=1e-5, atol=1e-7)
  for name in ('attention', 'feed_forward'):  # norms are each read once
    norm = (
      plain['stack']['rows']['norm'][name],
      scaled['stack']['rows']['norm'][name],
    )
    jax.tree.map(np.testing.assert_array_equal, *norm)
  jax.tree.map(
    np.testing.assert_array_equal, plain['embedding'], scaled['embedding']
  )


@pytest.mark.parametrize(
  'name',
  [
    'adamw',
    *(pytest.param(n, marks=pytest.mark.slow) for n in NOT_ADAMW),
  ],
)
def test_the_decay_of_a_row_is_scaled_by_its_visits(name):
  params, plain = one_update(name, weight_decay=0.0)
  _, scaled = one_update(name, visit_decay_power=1.0)
  factors = np.array([3.0, 1.0], np.float32).reshape(2, 1, 1)
  exact = -RATE * DECAY * kernel(params) * factors
  np.testing.assert_allclose(
    kernel(scaled) - kernel(plain), exact, rtol=1e-4, atol=1e-6
  )
  scales = [
    step['stack']['rows']['norm']['attention']['scale']
    for step in (plain, scaled)
  ]
  np.testing.assert_array_equal(*scales)  # which do not decay at all


def test_lamb_decays_by_visits_inside_its_trust_ratio():
  params, step = one_update('lamb', visit_decay_power=1.0)
  for row, count in ((0, 3), (1, 1)):
    weight = kernel(params)[row]
    direction = 1 + DECAY * count * weight
    ratio = np.linalg.norm(weight) / np.linalg.norm(direction)
    np.testing.assert_allclose(
      kernel(step)[row], -RATE * ratio * direction, rtol=1e-4
    )


def test_visits_are_counted_level_by_level():
  config = crossed({'layer': 'all+none@2', 'norm': 'cycle:2'})
  params = variables_of(config)['params']
  rows = optax.tree.ones_like(params)
  scaled = by_visits.scale(config.model, 1.0)(rows)['stack']
  query = scaled['rows']['attention']['query']
  assert query['kernel'].min() == query['kernel'].max() == LAYERS
  product = scaled['level_1']['attention']['query']['kernel']
  assert all((leaf == 1).all() for leaf in product.values())
  assert (scaled['rows']['norm']['attention']['scale'] == 2).all()


@pytest.mark.parametrize('field', ['visit_rate_power', 'visit_decay_power'])
def test_factors_by_visits_need_a_fixed_table(field):
  with pytest.raises(BadInput, match='fixed table, got soft:2'):
    crossed({'layer': 'soft:2'}, {field: 1.0})
  with pytest.raises(BadInput, match='fixed table, got tables that change'):
    crossed({'layer': 'all'}, {field: 1.0}, tables='state')


# Residual scaling.


def smaller(params):
  """Output projections over the root of the number of sublayers."""
  return jax.tree_util.tree_map_with_path(
    lambda path, p: (
      p / (2 * LAYERS) ** 0.5 if path[-2].key in ('out', 'down') else p
    ),
    params,
  )


@pytest.mark.parametrize(
  'position', ['pre', pytest.param('post', marks=pytest.mark.slow)]
)
def test_sublayers_add_their_output_over_the_root_of_their_number(position):
  """The same as output projections that are smaller by sqrt(2N)."""
  model = crossed({}, norm_position=position).model
  scaled = dataclasses.replace(model, residual_scale='depth')
  x_BLD = jax.random.normal(jax.random.key(0), (2, L, 16))
  context = Context(jnp.broadcast_to(jnp.arange(L), (2, L)))
  params = nn.unbox(Layer(model).init(jax.random.key(1), x_BLD, context))
  small = smaller(params)
  deep = Layer(scaled).apply(params, x_BLD, context)[0]
  np.testing.assert_allclose(
    deep, Layer(model).apply(small, x_BLD, context)[0], rtol=1e-5, atol=1e-6
  )
  plain = Layer(model).apply(params, x_BLD, context)[0]
  assert np.abs(deep - plain).max() > 0.1


def without_two(model, params):
  return left_out.without(model, params, {}, [1, 2])[:2]


@pytest.mark.parametrize(
  'changed', [lambda m, p: (rerun(m, 5), p), without_two], ids=['more', 'fewer']
)
def test_visits_of_another_number_add_what_they_did_when_they_trained(changed):
  model = crossed({'layer': 'cycle:2'}).model
  params = variables_of(crossed({'layer': 'cycle:2'}))['params']
  scaled = dataclasses.replace(model, residual_scale='depth')
  other, given = changed(scaled, params)
  assert other.num_layers != LAYERS and other.residual_visits == LAYERS
  plain, small = changed(model, smaller(params))
  assert plain.residual_visits == 0
  np.testing.assert_allclose(
    Transformer(other).apply({'params': given}, TOKENS),
    Transformer(plain).apply({'params': small}, TOKENS),
    rtol=1e-5,
    atol=1e-5,
  )


def test_visits_that_scale_nothing():
  with pytest.raises(BadInput, match='residual_scale depth, got 3 and'):
    crossed({}, residual_visits=3)
