"""The scan over depth equals a plain loop over the owner table, and costs
neither memory nor compile time that sharing should save.
"""

import dataclasses
import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_tfm import config as configs
from shared_tfm.layers.context import Context
from shared_tfm.model import Transformer, build
from shared_tfm.model.stack import Stack
from shared_tfm.sharing import owners

LAYERS = 6
SPECS = (
  'none',
  'all',
  'sequence:3',
  'cycle:3',
  'cycle_rev:3',
  'sandwich',
  'middle_cycle:2',
  'middle_sequence:2',
  'recurrent:1/2x2/1',
  '0,1,0,2,1,2',
)
ASSIGNMENTS = {
  'alike': lambda spec: {'layer': spec},
  'apart': lambda spec: {'layer': spec, 'feed_forward': 'cycle:2'},
  'own norms': lambda spec: {'layer': spec, 'norm': 'none'},
}
QUICK = ('cycle:3',)
REMAT = (('none', 1), ('dots', 1), ('full', 1), ('none', 3), ('full', 2))
SOME_REMAT = [
  pytest.param(*case, marks=() if case[1] == 1 else pytest.mark.slow)
  for case in REMAT
]
# Float32's rounding. A row that is wrong is off by its own size. In bfloat16 a
# sum that is off by that much may be rounded the other way, on some processors:
# one such number moves a leaf by a part of 2**-8. Sums in bfloat16 would be off
# by all of it.
TOLERANCE = {'float32': 2e-5, 'bfloat16': 2**-11}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 8)))


def config_of(spec, assignment='alike', **model):
  sizes = {'num_layers': LAYERS, 'd_model': 16, 'num_heads': 2, 'max_len': 8}
  sharing = ASSIGNMENTS[assignment](spec)
  return configs.cross(
    {'model': {**sizes, 'vocab_size': 64, 'sharing': sharing, **model}}
  )


def tables_of(config):
  given = config.model.sharing.specs()
  return {
    name: owners(given.get(name, given['layer']), config.model.num_layers)
    for name in oracle.COMPONENTS
  }


@functools.cache
def variables_of(config):
  """Random weights: norms and biases too, so that a wrong row shows."""
  shapes = jax.eval_shape(build(config).init, jax.random.key(0), TOKENS)
  random = np.random.default_rng(2)

  def fill(path, leaf):
    if path[0].key == 'batch_stats':
      return np.full(leaf.shape, float(path[-1].key == 'var'), np.float32)
    near = float(path[-1].key == 'scale')
    values = near + 0.2 * random.normal(size=leaf.shape)
    return values.astype(np.float32)

  return jax.tree_util.tree_map_with_path(fill, nn.unbox(shapes))


def score(logits):
  """A number every logit has its own weight in."""
  weights = np.random.default_rng(1).normal(size=logits.shape)
  return jnp.sum(logits * weights.astype(np.float32)) / weights.size


@functools.cache
def plain_form(model):
  """The oracle's loss, logits and gradients; one program for every table."""

  def loss(params, state, tokens):
    logits, left = oracle.logits(model, params, state, tokens, train=True)
    return score(logits), (logits, left)

  return jax.jit(jax.grad(loss, has_aux=True))


def expected(config, variables):
  tables = tables_of(config)
  params = dict(variables['params'])
  params['stack'] = oracle.spread(params['stack']['rows'], tables)
  neutral = dataclasses.replace(
    config.model, sharing=configs.Sharing(), remat='none', remat_group=1
  )
  grads, (logits, left) = plain_form(neutral)(
    params, variables.get('batch_stats', {}), TOKENS
  )
  grads['stack'] = {'rows': oracle.gathered(grads['stack'], tables)}
  return logits, grads, left


def actual(config, variables):
  model = build(config, train=True)

  def loss(params, state):
    logits, after = model.apply(
      {'params': params, 'batch_stats': state}, TOKENS, mutable=['batch_stats']
    )
    return score(logits), (logits, after)

  params, state = variables['params'], variables.get('batch_stats', {})
  grads, (logits, after) = jax.jit(jax.grad(loss, has_aux=True))(params, state)
  return logits, grads, after


def assert_close(left, right, tolerance):
  """Every leaf of both trees agrees, relative to that leaf's own size."""
  paths, tree = jax.tree_util.tree_flatten_with_path(left)
  for (path, a), b in zip(paths, tree.flatten_up_to(right), strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    # A key's bias moves no score, so that its gradient is nothing but rounding.
    size = max(np.abs(b).max(), 1e-3)
    worst = np.abs(a - b).max() / size
    name = jax.tree_util.keystr(path)
    assert worst < tolerance, f'{name}: off by {worst} of its size {size}'


def combinations():
  """Each table under each policy, in each dtype, and as each assignment.

  Which dtype and assignment meet which policy goes round; quick are those of
  one table, and some tables once.
  """
  found = {}
  dtypes, turns = list(TOLERANCE), list(ASSIGNMENTS)
  for i, spec in enumerate(SPECS):
    marks = () if spec == 'cycle_rev:3' else pytest.mark.slow
    for k, remat in enumerate(REMAT):
      dtype = dtypes[(i + k) % len(dtypes)]
      turn = turns[(i + k) % len(turns)]
      found[spec, dtype, remat, turn] = marks
  for spec in QUICK:
    found[spec, 'float32', ('full', 1), 'alike'] = ()
  return [pytest.param(*case, marks=marks) for case, marks in found.items()]


@pytest.mark.parametrize('spec,dtype,remat,assignment', combinations())
def test_equals_plain_form(spec, dtype, remat, assignment):
  config = config_of(
    spec, assignment, dtype=dtype, remat=remat[0], remat_group=remat[1]
  )
  variables = variables_of(config_of(spec, assignment))
  logits, grads, _ = actual(config, variables)
  true_logits, true_grads, _ = expected(config, variables)
  assert_close(logits, true_logits, TOLERANCE[dtype])
  assert_close(grads, true_grads, TOLERANCE[dtype])


@pytest.mark.parametrize('norm', ['layernorm', 'batchnorm'])
def test_no_visit_is_run_to_initialise(norm):
  config = config_of('cycle:3', norm=norm)
  init = jax.make_jaxpr(build(config).init)(jax.random.key(0), TOKENS)
  assert 'scan[' not in str(init)
  run = jax.make_jaxpr(build(config).apply)(variables_of(config), TOKENS)
  assert 'scan[' in str(run)


MODELS = {
  'encoder': dict(
    family='encoder', norm_position='post', embed_norm=True, embed_dim=8
  ),
  'sandwich': dict(norm_position='sandwich', position='sinusoidal'),
  'llama': dict(
    norm='rmsnorm',
    activation='swiglu',
    position='rotary',
    use_bias=False,
    tie_embeddings=False,
    num_kv_heads=1,
  ),
  'relative': dict(
    position='relative',
    relative_buckets=6,
    relative_distance=5,
    num_kv_heads=1,
  ),
  'batchnorm': dict(norm='batchnorm', position='none', activation='relu'),
  'moeut': dict(
    activation='relu',
    norm_position='peri',
    position='rotary',
    rotary_fraction=0.5,
    tie_embeddings=False,
    head_bias=True,
    experts=dict(
      num_ff=6, ff_width=8, top_k=3, num_attention=4, attention_top_k=2
    ),
  ),
  'sut': dict(
    norm_position='post',
    num_kv_heads=1,
    experts=dict(
      style='sut',
      num_ff=6,
      ff_width=8,
      top_k=3,
      num_attention=4,
      attention_top_k=2,
    ),
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
  'name,group',
  [
    *((name, 1) for name in MODELS),
    *((name, 3) for name in ('batchnorm', 'relative', 'moeut')),
  ],
)
def test_every_kind_of_layer_equals_plain_form(name, group):
  config = config_of('cycle:3', 'apart', remat_group=group, **MODELS[name])
  variables = variables_of(config)
  logits, grads, _ = actual(config, variables)
  true_logits, true_grads, _ = expected(config, variables)
  assert_close(logits, true_logits, TOLERANCE['float32'])
  assert_close(grads, true_grads, TOLERANCE['float32'])


def assert_near(left, right):
  """Every leaf agrees but for rounding to 8 bits; a wrong row is off by 1."""
  paths, tree = jax.tree_util.tree_flatten_with_path(left)
  for (path, a), b in zip(paths, tree.flatten_up_to(right), strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    off, size = np.linalg.norm(a - b), max(np.linalg.norm(b), 1e-2)
    assert off < 0.2 * size, f'{jax.tree_util.keystr(path)}: {off / size}'


SEPARATE = {name: 'none' for name in ('layer', *oracle.COMPONENTS)}
any_table = st.lists(
  st.integers(0, LAYERS - 1), min_size=LAYERS, max_size=LAYERS
).map(lambda rows: tuple(list(dict.fromkeys(rows)).index(r) for r in rows))


@functools.cache
def program_of_any_table(dtype):
  """Gradients of a model whose tables are arguments: one program for all."""
  config = config_of('none', sharing=SEPARATE, dtype=dtype)
  model = dataclasses.replace(config.model, tables='state')

  def loss(params, owners):
    tables = {'stack': {'owners': owners}}
    logits = Transformer(model, train=True).apply(
      {'params': params, 'tables': tables}, TOKENS
    )
    return score(logits), logits

  return config, jax.jit(jax.grad(loss, has_aux=True))


def check_tables(tables, dtype, check):
  config, program = program_of_any_table(dtype)
  variables = variables_of(config_of('none', sharing=SEPARATE))
  owners = {
    name: jnp.array(tables.get(name, range(LAYERS)))[:, None]
    for name in SEPARATE
  }
  grads, logits = program(variables['params'], owners)
  params = dict(variables['params'])
  params['stack'] = oracle.spread(params['stack']['rows'], tables)
  neutral = dataclasses.replace(
    config.model, sharing=configs.Sharing(), remat='none', remat_group=1
  )
  true_grads, (true_logits, _) = plain_form(neutral)(params, {}, TOKENS)
  gathered = oracle.gathered(true_grads['stack'], tables)
  true_grads['stack'] = {
    'rows': jax.tree.map(
      lambda rows: np.pad(
        rows, [(0, LAYERS - len(rows))] + [(0, 0)] * (rows.ndim - 1)
      ),
      gathered,
    )
  }
  check(logits, true_logits)
  check(grads, true_grads)


@settings(deadline=None, max_examples=100)
@given(st.fixed_dictionaries({name: any_table for name in oracle.COMPONENTS}))
def test_any_tables_equal_plain_form(tables):
  """Values, and gradients: of rows that nobody reads they are nothing."""
  check_tables(
    tables, 'float32', functools.partial(assert_close, tolerance=2e-5)
  )


SUM = 'none+none@3+none@diagonal'


@functools.cache
def programs_of_any_sum():
  """A model of full rows, products and diagonals, and its plain form.

  The tables of all three levels are arguments of both programs.
  """
  config = config_of('none', sharing={'layer': SUM})
  model = dataclasses.replace(config.model, tables='state')

  def scan(params, owners):
    tables = {'stack': {'owners': {'layer': owners}}}
    logits = Transformer(model, train=True).apply(
      {'params': params, 'tables': tables}, TOKENS
    )
    return score(logits)

  def plain(params, owners):
    bank = params['stack']

    def weights(path, rows):
      """Every layer's own: each level's row, worked out one by one."""
      made = rows[owners[:, 0]]
      if path[-1].key != 'kernel':
        return made
      product, diagonal = bank['level_1'], bank['level_2']
      for key in path:
        product, diagonal = product[key.key], diagonal[key.key]
      on = jnp.eye(*made.shape[1:])
      width = min(made.shape[1:])
      layers = []
      for layer in range(LAYERS):
        _, r, d = owners[layer]
        values = diagonal['diagonal'][d]
        pad = made.shape[2] - width
        scaled = on * jnp.pad(values, (0, pad))[None]
        layers.append(made[layer] + product['a'][r] @ product['b'][r] + scaled)
      return jnp.stack(layers)

    spread = jax.tree_util.tree_map_with_path(weights, bank['rows'])
    neutral = dataclasses.replace(config.model, sharing=configs.Sharing())
    whole = {**params, 'stack': spread}
    return score(oracle.logits(neutral, whole, {}, TOKENS, train=True)[0])

  return config, *(jax.jit(jax.value_and_grad(f)) for f in (scan, plain))


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.tuples(any_table, any_table, any_table))
def test_any_sums_equal_plain_form(tables):
  """A table for each level of every weight: values and gradients."""
  config, scan, plain = programs_of_any_sum()
  params, owners = variables_of(config)['params'], jnp.array(tables).T
  value, grads = scan(params, owners)
  true_value, true_grads = plain(params, owners)
  np.testing.assert_allclose(value, true_value, rtol=1e-4, atol=1e-7)
  assert_close(grads, true_grads, TOLERANCE['float32'])


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(st.fixed_dictionaries({name: any_table for name in oracle.COMPONENTS}))
def test_any_tables_are_close_in_bfloat16(tables):
  check_tables(tables, 'bfloat16', assert_near)


@pytest.mark.slow
@pytest.mark.parametrize('group', (1, pytest.param(2, marks=pytest.mark.slow)))
def test_state_has_a_slot_per_visit(group):
  """One stored norm, six visits: six running means, each its own visit's."""
  config = config_of('all', norm='batchnorm', remat_group=group)
  variables = variables_of(config)
  _, _, after = actual(config, variables)
  _, _, left = expected(config, variables)
  kept = after['batch_stats']['stack']['layer']
  stacked = jax.tree.map(lambda *visits: np.stack(visits), *left)
  assert kept['norm']['attention']['mean'].shape == (LAYERS, 16)
  assert_close(kept, stacked, TOLERANCE['float32'])
  means = np.asarray(kept['norm']['attention']['mean'])
  assert all(
    np.abs(means[i] - means[j]).max() > 1e-4
    for i in range(LAYERS)
    for j in range(i)
  )


def test_parts_may_have_their_own_owners():
  """Every leaf has the rows of the nearest spec above it, and is read so."""
  shared = {'layer': 'all', 'attention': 'cycle:3', 'attention_key': 'none'}
  config = config_of('all', sharing=shared)
  rows = variables_of(config)['params']['stack']['rows']
  count = jax.tree.map(lambda leaf: leaf.shape[0], rows)
  assert count['attention']['key'] == {'kernel': 6, 'bias': 6}
  assert count['attention']['query'] == {'kernel': 3, 'bias': 3}
  assert count['feed_forward']['up'] == {'kernel': 1, 'bias': 1}
  _, grads, _ = actual(config, variables_of(config))
  keys = np.abs(grads['stack']['rows']['attention']['key']['kernel'])
  assert (keys.max(axis=(1, 2)) > 1e-6).all()


@pytest.mark.slow
def test_rows_start_different():
  """Each row has its own key, and the scale of a layer that shares nothing."""
  config = config_of('none')
  variables = nn.unbox(build(config).init(jax.random.key(0), TOKENS))
  rows = variables['params']['stack']['rows']
  for path, leaf in jax.tree_util.tree_flatten_with_path(rows)[0]:
    if path[-1].key != 'kernel':
      continue
    spread = np.asarray(leaf).reshape(LAYERS, -1)
    assert np.abs(np.corrcoef(spread) - np.eye(LAYERS)).max() < 0.3
    np.testing.assert_allclose(
      spread.std(axis=1), leaf.shape[1] ** -0.5, rtol=0.2
    )


@pytest.mark.parametrize('remat,group', REMAT)
def test_dropout_differs_at_every_visit(remat, group):
  """A layer that adds 1 before dropout: each visit then adds 2 or nothing.

  The count of visits that added something is binomial if their masks are
  independent; were two visits alike, its variance would be 2, not 1.5.
  """
  config = config_of('all', dropout=0.5, remat=remat, remat_group=group)
  rows = variables_of(config_of('all'))['params']['stack']['rows']
  rows = jax.tree.map(np.zeros_like, rows)
  rows['attention']['out']['bias'] += 1
  x_BLD = jnp.zeros((64, 8, 16))
  stack = Stack(config.model, train=True)
  ran = stack.apply(
    {'params': {'rows': rows}},
    x_BLD,
    Context(jnp.zeros((64, 8), jnp.int32)),
    rngs={'dropout': jax.random.key(0)},
  )
  count = np.asarray(ran.x_XBLD[0]) / 2
  assert set(np.unique(count)) == set(range(LAYERS + 1))
  assert abs(count.mean() - 3) < 0.1
  assert abs(count.var() - 1.5) < 0.15


def gradient_program(config, length=8):
  """The compiled gradient of a loss, from shapes alone."""
  tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
  model = build(config, train=True)
  variables = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))

  def loss(params, tokens):
    return jnp.mean(model.apply({'params': params}, tokens) ** 2)

  lowered = jax.jit(jax.grad(loss)).lower(variables['params'], tokens)
  rows = variables['params']['stack']['rows']
  one = sum(leaf.size // leaf.shape[0] for leaf in jax.tree.leaves(rows))
  return lowered, 4 * one


@pytest.mark.parametrize(
  'dtype', ('float32', pytest.param('bfloat16', marks=pytest.mark.slow))
)
@pytest.mark.parametrize('remat,group', SOME_REMAT)
def test_no_policy_keeps_a_copy_of_the_weights_per_layer(remat, group, dtype):
  """Twelve visits of one row: temporaries of a few rows, never of twelve.

  Activations are next to nothing here: 8 tokens.
  """
  config = config_of(
    'all',
    num_layers=12,
    d_model=256,
    dtype=dtype,
    remat=remat,
    remat_group=group,
  )
  lowered, layer_bytes = gradient_program(config)
  temporary = lowered.compile().memory_analysis().temp_size_in_bytes
  assert layer_bytes > 3e6
  assert temporary < 4 * layer_bytes


@pytest.mark.parametrize('dtype', ('float32', 'bfloat16'))
@pytest.mark.parametrize(
  'given,wide',
  [
    ({'norm': 'layernorm', 'activation': 'gelu', 'position': 'learned'}, 1),
    ({'norm': 'rmsnorm', 'activation': 'swiglu', 'position': 'rotary'}, 2),
    ({'norm': 'rmsnorm', 'activation': 'relu', 'position': 'sinusoidal'}, 1),
  ],
)
def test_none_keeps_no_arithmetic_on_elements(given, wide, dtype):
  """A visit keeps its input, q, k, v, what is mixed, both sublayers' products

  but the last, and statistics: no activation, norm or rotated query.
  """
  temporary = {}
  for visits in 12, 24:
    sizes = {'num_layers': visits, 'd_model': 64, 'd_ff': 256, 'max_len': 128}
    config = config_of('all', dtype=dtype, remat='none', **sizes, **given)
    lowered, _ = gradient_program(config, length=128)
    analysed = lowered.compile().memory_analysis()
    temporary[visits] = analysed.temp_size_in_bytes
  kept = (temporary[24] - temporary[12]) / 12
  one = 128 * 64 * jnp.dtype(dtype).itemsize
  assert (6 + 4 * wide) * one <= kept < (6 + 4 * wide + 0.5) * one


@pytest.mark.slow
@pytest.mark.parametrize('remat,group', REMAT)
def test_unshared_weights_are_not_copied_either(remat, group):
  """With every layer its own row, no policy holds the bank a second time,

  but for the group's own gradient, which is added to the bank's at its end.
  """
  config = config_of(
    'none', num_layers=12, d_model=256, remat=remat, remat_group=group
  )
  lowered, layer_bytes = gradient_program(config)
  temporary = lowered.compile().memory_analysis().temp_size_in_bytes
  assert temporary < (2 if group == 1 else 14) * layer_bytes


def test_a_narrow_bank_is_half_as_large():
  """A CPU would hold it as float32, rounded, and convert every row again."""
  config = config_of('none', num_layers=12, d_model=256, dtype='bfloat16')
  lowered, layer_bytes = gradient_program(config)
  temporary = lowered.compile().memory_analysis().temp_size_in_bytes
  assert temporary < (6 + 2) * layer_bytes


@pytest.mark.parametrize('remat,group', SOME_REMAT)
def test_the_program_does_not_grow_with_depth(remat, group):
  def size(depth):
    config = config_of(
      'cycle:3', num_layers=depth, remat=remat, remat_group=group
    )
    return len(gradient_program(config)[0].as_text())

  assert size(48) < 1.01 * size(12)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow) if name != 'llama' else name
    for name in MODELS
  ],
)
def test_a_decoder_sees_only_what_came_before(name):
  """By gradient: what a position is scored by does not depend on later ones."""
  config = config_of('cycle:3', **MODELS[name])
  model, variables = build(config), variables_of(config)

  def from_embeddings(nudge_LE, position):
    def run(whole):
      table_LE = whole.embedding.token(TOKENS[:1]) + nudge_LE[None]
      x_LD = table_LE
      if config.model.embed_dim != config.model.d_model:
        x_LD = whole.embedding.project(x_LD)
      positions = jnp.arange(8)[None]
      ran = whole.stack(x_LD, Context(positions))
      return ran.x_XBLD[0, 0, position].sum()

    return model.apply(variables, method=run)

  slope = jax.jit(jax.grad(from_embeddings))
  for position in (0, 3):
    nudge = jnp.zeros((8, config.model.embed_dim))
    grad = np.asarray(slope(nudge, position))
    reached = np.abs(grad).max(axis=-1) > 0
    future = np.arange(8) > position
    if config.model.family == 'decoder':
      assert not reached[future].any() and reached[~future].all()
    else:
      assert reached.all()


@pytest.mark.parametrize('name', ('encoder', 'batchnorm'))
def test_padding_changes_nothing(name):
  """Neither what stands at padded positions nor how much of it there is."""
  family = {**MODELS[name], 'family': 'encoder'}
  config = config_of('all', **family)
  variables = variables_of(config)
  mask = jnp.arange(8)[None] < jnp.array([[5], [8]])
  other = jnp.where(mask, TOKENS, (TOKENS + 7) % 64)
  for train in (False, True):
    model = build(config, train)
    one, _ = model.apply(variables, TOKENS, mask, mutable=['batch_stats'])
    two, _ = model.apply(variables, other, mask, mutable=['batch_stats'])
    np.testing.assert_array_equal(one[mask], two[mask])
    assert np.abs(one[~mask] - two[~mask]).max() > 1e-3


def test_every_parameter_has_axis_names():
  """A bank's leading axis is 'owner'; the rest are the layer's own names."""
  for model in MODELS.values():
    config = config_of('cycle:3', **model)
    boxes = jax.eval_shape(build(config).init, jax.random.key(0), TOKENS)
    leaves = jax.tree_util.tree_leaves_with_path(
      boxes['params'], is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )
    for path, box in leaves:
      assert isinstance(box, nn.LogicallyPartitioned), path
      assert len(box.names) == box.value.ndim, path
      in_bank = path[0].key == 'stack'
      assert (box.names[0] == 'owner') == in_bank, path


@pytest.mark.parametrize('assignment', ASSIGNMENTS)
def test_a_bank_of_other_rows_is_refused(assignment):
  """What is read beyond the last row would be that row, and nobody told."""
  given = variables_of(config_of('cycle:3', assignment))
  model = build(config_of('none', assignment))
  with pytest.raises(flax.errors.ScopeParamShapeError, match=r'\(3, '):
    model.apply(given, TOKENS)
