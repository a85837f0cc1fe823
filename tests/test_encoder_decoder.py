"""Two stacks: an encoder that reads a source, a decoder that writes."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.errors import BadInput
from shared_tfm.infer import sampling
from shared_tfm.layers.context import Context
from shared_tfm.layers.embedding import Embedding
from shared_tfm.layers.layer import Layer
from shared_tfm.layers.norm import Norm
from shared_tfm.model import build
from shared_tfm.report import overview
from shared_tfm.tasks import prepare
from shared_tfm.train import loop, optimizer

RANDOM = np.random.default_rng(0)
SOURCE = jnp.asarray(RANDOM.integers(0, 32, (2, 6)))
TARGET = jnp.asarray(RANDOM.integers(0, 32, (2, 5)))
MASK = jnp.arange(6)[None] < jnp.array([[4], [6]])
DECODER = 'num_decoder_layers'
SIZES = {
  'family': 'encoder_decoder',
  'num_layers': 4,
  'num_decoder_layers': 2,
  'd_model': 16,
  'num_heads': 2,
  'd_ff': 24,
  'max_len': 8,
  'vocab_size': 32,
}


def config_of(**model):
  return configs.cross({'model': {**SIZES, **model}})


@functools.cache
def shapes_of(config):
  """A model's parameters in boxes, as shapes."""
  init = build(config).init
  return jax.eval_shape(
    functools.partial(init, source_BS=SOURCE), jax.random.key(0), TARGET
  )['params']


def params_of(config):
  """Random weights: norms and biases too, so that a wrong row shows."""
  random = np.random.default_rng(2)

  def fill(path, leaf):
    near = float(path[-1].key == 'scale')
    values = near + 0.2 * random.normal(size=leaf.shape)
    return values.astype(np.float32)

  return jax.tree_util.tree_map_with_path(fill, nn.unbox(shapes_of(config)))


def size(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def spread(params, tables):
  """The parameters with one entry for each layer instead of banks."""
  whole = {k: v for k, v in params.items() if k not in tables}
  for side, table in tables.items():
    whole[side] = {}
    for name, (bank, rows) in table.items():
      *above, last = name.split('.')
      tree, inside = params[bank]['rows'], whole[side]
      for part in above:
        tree, inside = tree[part], inside.setdefault(part, {})
      inside[last] = jax.tree.map(lambda w, r=rows: w[np.array(r)], tree[last])
  return whole


def gathered(per_layer, params, tables, rule='sum'):
  """Gradients per layer as gradients per row, by the rule for its visits."""
  whole = {k: v for k, v in per_layer.items() if k not in tables}
  whole |= jax.tree.map(np.zeros_like, {k: params[k] for k in tables})
  counts = {}
  for side, table in tables.items():
    for name, (bank, rows) in table.items():
      tree, inside = whole[bank]['rows'], per_layer[side]
      for part in name.split('.'):
        tree, inside = tree[part], inside[part]
      for i, row in enumerate(rows):
        counts[bank, name, row] = counts.get((bank, name, row), 0) + 1
        if rule == 'owner' and counts[bank, name, row] > 1:
          continue
        jax.tree.map(lambda t, g, i=i, r=row: add(t, r, g[i]), tree, inside)
  if rule == 'mean':
    for (bank, name, row), count in counts.items():
      tree = whole[bank]['rows']
      for part in name.split('.'):
        tree = tree[part]
      jax.tree.map(lambda t, r=row, n=count: divide(t, r, n), tree)
  return whole


def add(rows, row, value):
  rows[row] += value


def divide(rows, row, count):
  rows[row] /= count


@functools.cache
def plain():
  """Gradients and logits by two Python loops; one program for every table."""
  model = config_of().model
  encoder = {**SIZES, 'family': 'encoder', 'num_decoder_layers': 0}
  layers = {
    'encoder': Layer(configs.cross({'model': encoder}).model),
    'stack': Layer(model),
  }

  def run(side, weights, x_BLD, context):
    for i in range(SIZES['num_layers' if side == 'encoder' else DECODER]):
      mine = jax.tree.map(lambda w, i=i: w[i], weights)
      x_BLD, _ = layers[side].apply({'params': mine}, x_BLD, context)
    return x_BLD

  def loss(params, mask):
    def embedded(name, tokens):
      own = {'token': params['embedding']['token'], **params[name]}
      positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
      embedding = Embedding(model)
      return positions, embedding.apply({'params': own}, tokens, positions)

    def normed(name, x_BLD):
      return Norm(model).apply({'params': params[name]}, x_BLD)

    places, x_BLD = embedded('source', SOURCE)
    x_BLD = run('encoder', params['encoder'], x_BLD, Context(places, mask))
    memory = normed('encoder_norm', x_BLD)
    places, x_BLD = embedded('embedding', TARGET)
    context = Context(places, None, memory, mask)
    x_BLD = run('stack', params['stack'], x_BLD, context)
    table = params['embedding']['token']['embedding']
    logits = normed('norm', x_BLD) @ table.T
    return score(logits), logits

  return jax.jit(jax.grad(loss, has_aux=True))


def own(rows, *names):
  return {
    'encoder': {name: ('encoder', rows[0]) for name in names},
    'stack': {name: ('stack', rows[1]) for name in names},
  }


def merged(*tables, **cross):
  """Tables by side; what only a decoder has is given by keyword."""
  found = {
    side: {name: at for t in tables for name, at in t[side].items()}
    for side in ('encoder', 'stack')
  }
  for name, rows in cross.items():
    found['stack'][name.replace('__', '.')] = ('stack', rows)
  return found


def joint(rows, *names):
  return {
    'encoder': {name: ('encoder', rows[:4]) for name in names},
    'stack': {name: ('encoder', rows[4:]) for name in names},
  }


NONE = ((0, 1, 2, 3), (0, 1))
CYCLE = ((0, 1, 0, 1), (0, 1))
CASES = {
  'own': (
    {'sharing': {'layer': 'none'}},
    merged(
      own(NONE, 'attention', 'feed_forward', 'norm'), cross_attention=(0, 1)
    ),
  ),
  'sides apart': (
    {
      'sharing': {'layer': 'cycle:2', 'norm': 'none'},
      'sharing_decoder': {'attention': 'all', 'norm_cross_attention': 'all'},
      'remat': 'full',
    },
    merged(
      own(((0, 1, 0, 1), (0, 0)), 'attention'),
      own(CYCLE, 'feed_forward'),
      own(NONE, 'norm.attention', 'norm.feed_forward'),
      cross_attention=(0, 1),
      norm__cross_attention=(0, 0),
    ),
  ),
  'one wide': (
    {'sharing': {'feed_forward': 'all', 'across': 'feed_forward'}},
    merged(
      own(NONE, 'attention', 'norm'),
      joint((0,) * 6, 'feed_forward'),
      cross_attention=(0, 1),
    ),
  ),
  'norms across': (
    {
      'sharing': {
        'layer': 'cycle:2',
        'attention': '0,1,1,2,3,3',
        'norm': 'sequence:3',
        'across': 'attention, norm',
      }
    },
    merged(
      joint((0, 1, 1, 2, 3, 3), 'attention'),
      own(CYCLE, 'feed_forward'),
      joint((0, 0, 1, 1, 2, 2), 'norm.attention', 'norm.feed_forward'),
      cross_attention=(0, 1),
      norm__cross_attention=(0, 0),
    ),
  ),
}


def score(logits):
  """A number every logit has its own weight in."""
  weights = np.random.default_rng(1).normal(size=logits.shape)
  return jnp.sum(logits * weights.astype(np.float32)) / weights.size


def product(config, params):
  """Gradients and logits."""

  def loss(params):
    logits = build(config).apply(
      {'params': params}, TARGET, source_BS=SOURCE, source_mask_BS=MASK
    )
    return score(logits), logits

  return jax.jit(jax.grad(loss, has_aux=True))(params)


def assert_close(left, right):
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(left),
    jax.tree.leaves(right),
    strict=True,
  ):
    a, b = np.asarray(a), np.asarray(b)
    worst = np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)
    assert worst < 2e-5, jax.tree_util.keystr(path)


RULES = [
  *(
    pytest.param(case, rule, marks=pytest.mark.slow)
    for case, rule in (
      ('sides apart', 'sum'),
      ('own', 'sum'),
      ('one wide', 'sum'),
      ('norms across', 'owner'),
      ('norms across', 'sum'),
      ('norms across', 'mean'),
    )
  ),
]


@pytest.mark.parametrize('case,rule', RULES)
def test_equals_plain_form(case, rule):
  """Values and gradients, and the tree has every row exactly once.

  The visits of a row are those of both sides: the mean is over all of them,
  and the first of all is the owner's.
  """
  model, tables = CASES[case]
  config = config_of(**model, shared_gradient=rule)
  params = params_of(config)
  per_layer = spread(params, tables)
  grads, logits = product(config, params)
  true_grads, true_logits = plain()(per_layer, MASK)
  assert_close(logits, true_logits)
  true_grads = jax.tree.map(np.array, true_grads)
  assert_close(grads, gathered(true_grads, params, tables, rule))
  rows = {}
  for side in tables.values():
    for name, (bank, read) in side.items():
      rows[bank, name] = max(1 + max(read), rows.get((bank, name), 0))
  for bank in tables:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params[bank]):
      name = '.'.join(key.key for key in path[1:])
      (count,) = {
        n
        for (where, above), n in rows.items()
        if where == bank and name.startswith(f'{above}.')
      }
      assert len(leaf) == count, path


@pytest.mark.slow
def test_levels_and_templates_run_over_both_sides():
  """Products and mixed templates of a joint table: stored once, all trained."""
  config = config_of(
    sharing={
      'attention': 'soft:3',
      'feed_forward': 'all+none@2',
      'across': 'attention,feed_forward',
    }
  )
  params = params_of(config)
  assert params['encoder']['mix']['attention'].shape == (6, 3)
  up = params['encoder']['level_1']['feed_forward']['up']['kernel']
  assert up['a'].shape == (6, 16, 2) and up['b'].shape == (6, 2, 24)
  assert 'mix' not in params['stack']
  assert set(params['stack']['rows']) == {'cross_attention', 'norm'}
  assert accounting.parameters(config.model)['stored'] == size(params)
  grads, _ = product(config, params)
  for leaf in (
    grads['encoder']['mix']['attention'],
    grads['encoder']['level_1']['feed_forward']['up']['kernel']['a'],
  ):
    assert (np.abs(leaf).reshape(6, -1).max(axis=1) > 1e-6).all()


def test_a_whole_layer_across_is_drawn(capsys):
  config = configs.cross(
    {
      'model': {
        'family': 'encoder_decoder',
        'num_layers': 2,
        'sharing': {'layer': 'all', 'across': 'layer'},
      }
    }
  )
  drawn = overview.render(config, accounting.describe(config))
  assert re.search(r'encoder, then decoder\nlayer +0 +1 +2 +3\n', drawn)
  assert re.search(r'layer +0 +0 +0 +0 +all +1 row, each read 4 times', drawn)


def test_a_spec_for_what_no_layer_has_is_refused():
  for family, name in (('decoder', 'cross_attention'), ('decoder', 'step')):
    fields = {'family': family, 'sharing': {name: 'all'}}
    with pytest.raises(BadInput, match=f'a spec for {name}, which no layer'):
      configs.cross({'model': fields})


@pytest.mark.slow
def test_who_sees_what():
  """By gradient: all of the source, and of the target what came before."""
  config = config_of(position='rotary', norm_position='post')
  model, params = build(config), params_of(config)

  def from_table(table, place):
    token = {'embedding': table}
    changed = {**params, 'embedding': {'token': token}}
    hidden = model.apply(
      {'params': changed},
      6 + jnp.arange(5)[None],
      source_BS=jnp.arange(6)[None],
      method='hidden',
    )
    return (hidden[0, place] ** 3).sum()

  table = params['embedding']['token']['embedding']
  grad = jax.jit(jax.grad(from_table))
  for place in (0, 2, 4):
    reached = np.abs(grad(table, place)).max(axis=1) > 0
    np.testing.assert_array_equal(reached, np.arange(32) <= 6 + place)


@pytest.mark.slow
def test_padding_of_a_source_changes_nothing():
  """Neither what stands there nor how much of it there is."""
  config = config_of(norm='batchnorm', num_layers=2)
  model = build(config, train=True)
  state = nn.unbox(
    jax.eval_shape(
      lambda: model.init(jax.random.key(0), TARGET, source_BS=SOURCE)
    )
  )['batch_stats']
  variables = {
    'params': params_of(config),
    'batch_stats': jax.tree.map(lambda s: jnp.zeros(s.shape), state),
  }

  @jax.jit
  def run(source, mask):
    return model.apply(
      variables,
      TARGET,
      source_BS=source,
      source_mask_BS=mask,
      mutable=['batch_stats'],
    )[0]

  mask = jnp.broadcast_to(jnp.arange(6) < 4, (2, 6))
  other = jnp.where(mask, SOURCE, (SOURCE + 7) % 32)
  one = run(SOURCE, mask)
  np.testing.assert_array_equal(one, run(other, mask))
  np.testing.assert_allclose(one, run(SOURCE[:, :4], mask[:, :4]), atol=2e-5)
  assert np.abs(one - run(SOURCE, mask | True)).max() > 1e-3


MODELS = (
  {},
  {'tie_source': False, 'tie_embeddings': False, 'norm_position': 'post'},
  {'embed_dim': 8, 'embed_norm': True, 'norm_position': 'sandwich'},
  {'d_ff_encoder': 40, 'd_ff_decoder': -1, 'sharing': {'feed_forward': 'all'}},
  {'d_ff': -1, 'norm': 'rmsnorm', 'num_kv_heads': 1},
  {
    'sharing': {'layer': 'cycle:2', 'norm': 'all', 'across': 'layer'},
    'activation': 'swiglu',
    'position': 'sinusoidal',
  },
  {
    'sharing': {
      'layer': 'cycle:2@3+none@2',
      'kv_source': 'sequence:1',
      'across': 'attention',
    },
    'use_bias': False,
  },
)


@pytest.mark.parametrize('model', MODELS, ids=str)
def test_counts_equal_the_tree(model):
  config = config_of(**model)
  boxes = shapes_of(config)
  params = nn.unbox(boxes)
  counts = accounting.parameters(config.model)
  banks = size(params['encoder']) + size(params['stack'])
  assert counts['stored'] == size(params)
  assert counts['layers_stored'] == banks
  embedding = size(params['embedding']) + size(params.get('source', {}))
  embedding += size(params.get('head', {}))
  assert counts['embedding'] == embedding
  for path, box in jax.tree_util.tree_leaves_with_path(
    boxes, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  ):
    in_bank = box.names[0] == 'owner'
    assert optimizer.in_bank(path) == in_bank, path
    assert in_bank == (path[0].key in ('encoder', 'stack')), path


TAKASE = {
  'family': 'encoder_decoder',
  'num_layers': 6,
  'd_model': 512,
  'num_heads': 8,
  'd_ff': 2048,
  'vocab_size': 32_768,
  'max_len': 1024,
  'position': 'sinusoidal',
  'norm_position': 'post',
}
BIG = {**TAKASE, 'd_model': 1024, 'num_heads': 16, 'd_ff': 4096}


def stored(model, **changed):
  config = configs.cross({'model': {**model, **changed}})
  return accounting.parameters(config.model)['stored']


def test_takase_counts():
  """2104.06022, Table 1: 61M, 63M and 210M with one table three ways."""
  assert stored(TAKASE) == 60_915_712
  assert stored(BIG, sharing={'layer': 'all'}) == 62_947_328
  assert stored(BIG) == 209_911_808
  for spec in ('sequence:6', 'cycle:6', 'cycle_rev:6'):
    deep = stored(TAKASE, num_layers=18, sharing={'layer': spec})
    assert deep == stored(TAKASE)


ALL = {'feed_forward': 'all'}
ONE_WIDE = (  # 2309.01826, Tables 2 and 3: millions of parameters
  (186, {'sharing': ALL, 'sharing_decoder': {'feed_forward': 'none'}}),
  (186, {'sharing_decoder': ALL}),
  (144, {'sharing': ALL}),
  (136, {'sharing': {**ALL, 'across': 'feed_forward'}}),
  (178, {'d_ff_encoder': -1}),
  (178, {'d_ff_decoder': -1}),
  (127, {'d_ff': -1}),
  (136, {'sharing': ALL, 'd_ff_decoder': -1}),
  (177, {'sharing': ALL, 'd_ff_decoder': -1, 'd_ff_encoder': 24_576}),
  (228, {'sharing': ALL, 'd_ff_decoder': -1, 'd_ff_encoder': 49_152}),
  (328, {'sharing': ALL, 'd_ff_decoder': -1, 'd_ff_encoder': 98_304}),
)


@pytest.mark.parametrize('millions,model', ONE_WIDE, ids=str)
def test_one_wide_ffn_differences(millions, model):
  """From the paper's full model, 228M; both of its numbers are rounded."""
  difference = (stored(BIG, **model) - stored(BIG)) / 1e6
  assert abs(difference - (millions - 228)) < 1


@pytest.mark.slow
def test_flops_are_what_xla_counts():
  """Within 4 %, forward, of the plain form: one token of each text."""
  length = 128
  big = {**SIZES, 'd_model': 256, 'd_ff': 1024, 'num_heads': 4}
  big |= {'max_len': length, 'num_layers': 2, 'vocab_size': 512}
  config = configs.cross({'model': big})
  text = jax.ShapeDtypeStruct((1, length), jnp.int32)
  model = build(config)
  params = nn.unbox(
    jax.eval_shape(
      lambda t: model.init(jax.random.key(0), t, source_BS=t), text
    )
  )

  def forward(params, text):
    return model.apply(params, text, source_BS=text)

  # XLA counts a loop's body once, so each depth is counted as a difference.
  def counted(**changed):
    config = configs.cross({'model': {**big, **changed}})
    return accounting.flops_per_token(config.model, length)['forward']

  compiled = jax.jit(forward).lower(params, text).compile()
  flops = compiled.cost_analysis()['flops'] / length
  once = counted(num_layers=1, num_decoder_layers=1)
  assert abs(once / flops - 1) < 0.04
  deeper = counted(num_layers=3, num_decoder_layers=5) - once
  encoder = counted(num_layers=2, num_decoder_layers=1) - once
  decoder = counted(num_layers=1, num_decoder_layers=2) - once
  assert deeper == 2 * encoder + 4 * decoder


def test_drawing():
  config = config_of(
    sharing={
      'layer': 'cycle:2',
      'feed_forward': '0,0,1,1,2,0',
      'across': 'feed_forward',
      'kv_source': 'sequence:1',
    },
    sharing_decoder={'attention': 'all'},
  )
  described = accounting.describe(config)
  assert described['owners'] == {
    'encoder.attention': [0, 1, 0, 1],
    'encoder.feed_forward': [0, 0, 1, 1],
    'encoder.norm': [0, 1, 0, 1],
    'encoder.kv_source': [0, 0, 0, 0],
    'attention': [0, 0],
    'cross_attention': [0, 1],
    'feed_forward': [2, 0],
    'norm': [0, 1],
    'kv_source': [0, 0],
  }
  drawn = overview.render(config, described).partition('\n\nstored')[0]
  assert (
    drawn
    == """\
encoder
layer      0  1  2  3
attention  0  1  0  1  cycle:2     2 rows, each read 2 times
norm       0  1  0  1  cycle:2     2 rows, each read 2 times
kv_source  0  0  0  0  sequence:1  1 row, each read 4 times

decoder
layer            0  1
attention        0  0  all         1 row, each read 2 times
cross_attention  0  1  cycle:2     2 rows, each read 1 time
norm             0  1  cycle:2     2 rows, each read 1 time
kv_source        0  0  sequence:1  1 row, each read 2 times

encoder, then decoder
layer         0  1  2  3  4  5
feed_forward  0  0  1  1  2  0  0,0,1,1,2,0  3 rows, each read 1-3 times"""
  )


ERRORS = (
  (
    {'family': 'decoder', 'num_decoder_layers': 2},
    "model.num_decoder_layers is for family 'encoder_decoder', got 2",
  ),
  (
    {'family': 'encoder', 'num_decoder_layers': 0, 'sharing': {'across': 'x'}},
    "model.sharing.across is for family 'encoder_decoder'",
  ),
  (
    {
      'family': 'decoder',
      'num_decoder_layers': 0,
      'sharing_decoder': {'norm': 'all'},
    },
    "model.sharing_decoder is for family 'encoder_decoder'",
  ),
  ({'type_vocab_size': 2}, 'no segment types, got model.type_vocab_size 2'),
  ({'d_ff_decoder': -2}, 'model.d_ff_decoder must be at least -1, got -2'),
  ({'depth': {'rule': 'ponder'}}, "'stick_breaking', got 'ponder'"),
  ({'remat_group': 4}, 'must divide num_layers 2, got 4'),
  (
    {'sharing': {'across': 'feedforward'}},
    "unknown model.sharing.across 'feedforward'; did you mean 'feed_forward'?",
  ),
  (
    {'sharing': {'across': 'cross_attention'}},
    "unknown model.sharing.across 'cross_attention'",
  ),
  (
    {'sharing_decoder': {'across': 'norm'}},
    "model.sharing_decoder has none, got 'norm'",
  ),
  (
    {
      'sharing': {'across': 'norm,attention'},
      'sharing_decoder': {'attention_key': 'all'},
    },
    'got model.sharing_decoder.attention_key too',
  ),
  (
    {'sharing': {'across': 'feed_forward'}, 'd_ff_decoder': -1},
    'one width, got d_ff_encoder 24, d_ff_decoder -1',
  ),
  (
    {'sharing': {'across': 'attention', 'attention': 'cycle:4'}},
    'model.sharing.attention: cycle:4 needs num_layers divisible by 4, got 6',
  ),
  (
    {'sharing_decoder': {'norm': 'cycle:3'}},
    'cycle:3 needs num_layers divisible by 3, got 2',
  ),
)


@pytest.mark.parametrize('model,message', ERRORS, ids=lambda x: str(x)[:40])
def test_what_does_not_fit_is_said(model, message):
  with pytest.raises(BadInput) as error:
    config_of(**model)
  assert message in str(error.value)


def test_schemes_of_a_comparison():
  config = config_of(sharing_decoder={'norm': 'all'})
  scheme = 'cycle:2 feed_forward=all across=feed_forward decoder.attention=all'
  model = configs.with_sharing(config, scheme).model
  assert model.sharing.specs() == {'layer': 'cycle:2', 'feed_forward': 'all'}
  assert model.sharing.across == 'feed_forward'
  assert model.sharing_decoder.specs() == {'attention': 'all'}
  with pytest.raises(BadInput, match="unknown component 'atention'"):
    configs.with_sharing(config, 'all decoder.atention=all')


def test_generating_from_a_source_is_no_continuation():
  with pytest.raises(BadInput, match='needs a decoder, got an encoder_decoder'):
    sampling.generate(config_of(), {}, np.array([1]), 2)


def test_a_row_without_any_source_stays_finite():
  """The last validation batch is filled up with such rows, of weight 0."""
  config = config_of()
  logits = build(config).apply(
    {'params': params_of(config)},
    TARGET,
    source_BS=SOURCE,
    source_mask_BS=jnp.zeros((2, 6), bool),
  )
  assert jnp.isfinite(logits).all()


def test_a_source_for_who_reads_one():
  with pytest.raises(BadInput, match='needs one'):
    build(config_of()).init(jax.random.key(0), TARGET)
  decoder = {**SIZES, 'family': 'decoder', 'num_decoder_layers': 0}
  with pytest.raises(BadInput, match='family decoder'):
    build({'model': decoder}).init(jax.random.key(0), TARGET, source_BS=SOURCE)


@pytest.mark.parametrize(
  'rule', ('act', pytest.param('stick_breaking', marks=pytest.mark.slow))
)
def test_both_sides_halt_by_themselves(rule):
  """A halting unit and a loss for each side, as in the published models."""
  config = config_of(sharing={'layer': 'all'}, depth={'rule': rule})
  params = params_of(config)
  outputs = build(config, train=True).apply(
    {'params': params}, TARGET, source_BS=SOURCE, method='outputs'
  )
  assert set(outputs.losses) == {'ponder', 'encoder_ponder'}
  assert 1 <= outputs.metrics['encoder_loops'] <= 4
  assert 1 <= outputs.metrics['loops'] <= 2


def training(source, **data):
  """One Wide FFN's SharedEncDec on a task."""
  sizes = {'num_layers': 2, 'd_model': 32, 'd_ff': 64, 'max_len': 8}
  sharing = {'feed_forward': 'all', 'across': 'feed_forward'}
  model = {**SIZES, **sizes, 'vocab_size': 258, 'sharing': sharing}
  return configs.cross(
    {
      'model': model,
      'optimizer': {'learning_rate': 5e-3, 'warmup_steps': 20},
      'train': {
        'num_steps': 200,
        'batch_size': 64,
        'eval_every': 200,
        'eval_batches': 4,
        'checkpoint_every': 200,
      },
      'data': {'source': source, 'difficulty': 3, **data},
    }
  )


def test_examples_have_the_prompt_apart(tmp_path):
  data = prepare(training('addition', difficulty=1), tmp_path)
  batch = next(data.train(0))
  text = data.tokenizer.decode
  for row in range(3):
    source, mask = batch['source'][row], batch['source_mask'][row]
    inputs, targets = batch['inputs'][row], batch['targets'][row]
    weights = batch['weights'][row] > 0
    left, right = text(source[mask]).rstrip('=').split('+')
    assert text(source[mask]).endswith('=') and not mask[-1]
    *answer, end = targets[weights]
    assert int(text(np.array(answer))) == int(left) + int(right)
    assert end == data.tokenizer.eos == inputs[0]
    np.testing.assert_array_equal(inputs[1:], targets[:-1])
  # A prompt of 8 and an answer of 5 with its eos fit 8 places.
  prepare(training('addition', difficulty=3), tmp_path)
  with pytest.raises(BadInput, match='it takes at least 10'):
    prepare(training('addition', difficulty=4), tmp_path)
  with pytest.raises(BadInput, match='learns no text by itself'):
    prepare(training('local'), tmp_path)


@pytest.mark.slow
def test_learns(tmp_path):
  result = loop.train(training('reverse'), tmp_path)
  assert result['validation_accuracy'] > 0.95
