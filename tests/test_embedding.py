"""What goes into the layers: widths, positions and step signals."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.errors import BadInput
from shared_tfm.layers.context import Context
from shared_tfm.layers.embedding import Embedding, Head
from shared_tfm.layers.layer import Layer
from shared_tfm.layers.norm import Norm
from shared_tfm.layers.width import Resize
from shared_tfm.model import build
from shared_tfm.train import loop, optimizer

SIZES = {
  'num_layers': 4,
  'd_model': 16,
  'num_heads': 2,
  'd_ff': 24,
  'max_len': 8,
  'vocab_size': 32,
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 6)))
PLACES = jnp.broadcast_to(jnp.arange(6), (2, 6))
EVERY = {'positions_at': 'every_layer', 'step_signal': 'learned'}
SAFE = {'embed_project': 'safe', 'embed_dim': 8}
SANDWICH = {
  'core_width': 12,
  'core_ff': 20,
  'sharing': {'layer': 'sandwich', 'norm': 'none'},
}


def config_of(**model):
  return configs.cross({'model': {**SIZES, **model}})


def shapes_of(config):
  """Parameters in boxes, as shapes."""
  source = {}
  if config.model.family == 'encoder_decoder':
    source['source_BS'] = TOKENS
  init = functools.partial(build(config).init, **source)
  return jax.eval_shape(init, jax.random.key(0), TOKENS)['params']


def params_of(config):
  """Random weights: norms and biases too, so that a wrong row shows."""
  random = np.random.default_rng(2)

  def fill(path, leaf):
    near = float(path[-1].key == 'scale')
    values = near + 0.3 * random.normal(size=leaf.shape)
    return values.astype(np.float32)

  return jax.tree_util.tree_map_with_path(fill, nn.unbox(shapes_of(config)))


def size(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


BOTH = {'family': 'encoder_decoder', 'num_decoder_layers': 3}
MODELS = (
  {**EVERY, 'sharing': {'layer': 'all', 'step': 'none'}},
  {'positions_at': 'every_layer', 'sharing': {'position': 'cycle:2@2'}},
  {'positions_at': 'every_layer', 'position': 'sinusoidal'},
  {**SAFE, 'step_signal': 'sinusoidal'},
  {**SAFE, 'activation': 'swiglu', 'use_bias': False, 'family': 'encoder'},
  {**SAFE, 'tie_embeddings': False, 'norm': 'rmsnorm'},
  SANDWICH,
  {**SANDWICH, 'head_dim': 6, 'sharing': {'layer': '0,1,2,3+0,1,1,2@2'}},
  {**SANDWICH, **BOTH, **SAFE, **EVERY},
  {**BOTH, **SAFE, 'tie_source': False},
)


@pytest.mark.parametrize('model', MODELS, ids=str)
def test_counts_equal_the_tree(model):
  config = config_of(**model)
  boxes = shapes_of(config)
  params = nn.unbox(boxes)
  counts = accounting.parameters(config.model)
  banks = [n for n in params if n.endswith(('stack', 'encoder'))]
  banks += [n for n in params if n.endswith(('prelude', 'coda'))]
  assert counts['stored'] == size(params)
  assert counts['layers_stored'] == sum(size(params[name]) for name in banks)
  for path, box in jax.tree_util.tree_leaves_with_path(
    boxes, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  ):
    assert len(box.names) == box.value.ndim, path
    assert (box.names[0] == 'owner') == (path[0].key in banks), path
    assert optimizer.in_bank(path) == (path[0].key in banks), path


def test_subformer_counts():
  """Papers' encoder of 6 layers, 512 wide: 18.91M, and 9.46M as a sandwich."""
  sizes = {'num_layers': 6, 'd_model': 512, 'num_heads': 8, 'd_ff': 2048}
  counted = {
    spec: accounting.parameters(
      config_of(**sizes, sharing={'layer': spec, 'norm': 'none'}).model
    )['layers_stored']
    for spec in ('none', 'sandwich')
  }
  assert counted == {'none': 18_914_304, 'sandwich': 9_463_296}


# Positions and steps at every layer.


def score(hidden):
  """A number every entry has its own weight in."""
  weights = np.random.default_rng(1).normal(size=hidden.shape)
  return jnp.sum(hidden * weights.astype(np.float32)) / weights.size


def gradients(config, params):
  """Gradients and the last stream before the final norm's head."""

  def loss(params):
    hidden = build(config).apply({'params': params}, TOKENS, method='hidden')
    return score(hidden), hidden

  return jax.jit(jax.grad(loss, has_aux=True))(params)


def assert_close(left, right):
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(left),
    jax.tree.leaves(right),
    strict=True,
  ):
    a, b = np.asarray(a), np.asarray(b)
    worst = np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)
    assert worst < 3e-5, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_signals_at_every_layer_equal_plain_form():
  """A loop over bare layers, each given the stream plus its own signals."""
  sharing = {'layer': 'cycle:2', 'position': '0,1,1,0', 'step': 'none'}
  config = config_of(**EVERY, sharing=sharing)
  params = params_of(config)
  bare = Layer(config_of().model)

  def plain(params):
    rows = params['stack']['rows']
    x_BLD = params['embedding']['token']['embedding'][TOKENS]
    for i in range(4):
      table = rows['position']['embedding'][(0, 1, 1, 0)[i]]
      x_BLD += table[PLACES] + rows['step']['signal'][i][None, None]
      own = ('attention', 'feed_forward', 'norm')
      weights = jax.tree.map(
        lambda w, row=i % 2: w[row], {n: rows[n] for n in own}
      )
      x_BLD, _ = bare.apply({'params': weights}, x_BLD, Context(PLACES))
    hidden = Norm(config.model).apply({'params': params['norm']}, x_BLD)
    return score(hidden), hidden

  true_grads, true = jax.jit(jax.grad(plain, has_aux=True))(params)
  grads, hidden = gradients(config, params)
  assert 'position' not in params['embedding']
  assert_close(hidden, true)
  assert_close(grads, true_grads)


@pytest.mark.parametrize('visit', (0, 3))
def test_coordinates_of_the_universal_transformer(visit):
  """1807.03819, section 2.1: P^t adds sinusoids of place and step.

  P[i, 2j] = sin(i / 10000^(2j/d)) + sin(t / 10000^(2j/d)), cosines at 2j + 1;
  the features' order is ours: sines first. Steps count from 1.
  """
  signals = {'positions_at': 'every_layer', 'step_signal': 'sinusoidal'}
  config = config_of(position='sinusoidal', **signals)
  weights = jax.tree.map(lambda w: w[0], params_of(config)['stack']['rows'])
  x_BLD = np.random.default_rng(3).normal(size=(2, 6, 16)).astype(np.float32)
  index = jnp.asarray(visit)
  got, _ = Layer(config.model).apply(
    {'params': weights}, x_BLD, Context(PLACES, index=index)
  )
  rate = 10_000.0 ** (-2 * np.arange(8) / 16)
  place, step = np.arange(6)[:, None] * rate, (visit + 1) * rate
  added = np.concatenate(
    [np.sin(place) + np.sin(step), np.cos(place) + np.cos(step)], axis=1
  )
  expected, _ = Layer(config_of().model).apply(
    {'params': weights},
    x_BLD + added[None].astype(np.float32),
    Context(PLACES),
  )
  np.testing.assert_allclose(got, expected, atol=1e-4)


# Another width in the middle.


def test_scaled_token_vectors():
  """They are read times sqrt(E), and scored with as they are."""
  tokens, places = jnp.array([[3, 1, 4]]), jnp.array([[0, 1, 2]])
  plain, scaled = (
    Embedding(config_of(position='sinusoidal', embed_scale=scale).model)
    for scale in ('none', 'width')
  )
  params = plain.init(jax.random.key(0), tokens, places)
  table_VE = params['params']['token']['embedding'].value
  read = [e.apply(params, tokens, places) for e in (plain, scaled)]
  e = table_VE.shape[1]
  np.testing.assert_allclose(
    read[1] - read[0], (e**0.5 - 1) * table_VE[tokens], rtol=1e-4, atol=1e-5
  )
  x_BLE = jnp.ones((1, 1, e))
  score = [
    e.apply(params, method=lambda e: Head(e.model).scorer(e)(x_BLE))
    for e in (plain, scaled)
  ]
  np.testing.assert_array_equal(*score)


def test_gradients_of_a_token_are_added_up_in_float32():
  """A thousand of them, each 1: a sum in bfloat16 would end at 256."""
  model = configs.Model(
    vocab_size=8, d_model=4, embed_dim=4, max_len=1, dtype='bfloat16'
  )
  tokens = jnp.full((1000, 1), 3)
  embedding = Embedding(model)
  params = embedding.init(jax.random.key(0), tokens, jnp.zeros_like(tokens))
  params = nn.unbox(params)['params']

  def total(params):
    x = embedding.apply({'params': params}, tokens, jnp.zeros_like(tokens))
    assert x.dtype == jnp.bfloat16
    return jnp.sum(x.astype(jnp.float32))

  gradient = jax.grad(total)(params)
  for name, row in (('token', 3), ('position', 0)):
    found = gradient[name]['embedding']
    assert found.dtype == jnp.float32
    assert (found[row] == 1000).all() and found.sum() == 4000


@pytest.mark.slow
def test_another_width_in_the_middle_equals_plain_form():
  config = config_of(**SANDWICH, step_signal='sinusoidal')
  params = params_of(config)
  model = functools.partial(config_of, step_signal='sinusoidal')
  outer = Layer(model().model)
  inner = Layer(model(d_model=12, d_ff=20, head_dim=6).model)

  def norm(width, params, x):
    return Norm(config_of(d_model=width).model).apply({'params': params}, x)

  def resized(params, width, x):
    x = x @ params['linear']['kernel'] + params['linear']['bias'][None, None]
    return norm(width, params['norm'], x)

  def visit(layer, bank, row, norms, i, x):
    weights = jax.tree.map(lambda w: w[row], bank['rows'])
    norm_rows = {'norm': bank['rows']['norm']}
    weights |= jax.tree.map(lambda w: w[norms], norm_rows)
    context = Context(PLACES, index=jnp.asarray(i))
    return layer.apply({'params': weights}, x, context)[0]

  def plain(params):
    table = params['embedding']
    x = table['token']['embedding'][TOKENS]
    x += table['position']['embedding'][PLACES]
    x = visit(outer, params['prelude'], 0, 0, 0, x)
    x = resized(params['core_in'], 12, x)
    for i in range(2):
      x = visit(inner, params['stack'], 0, i, 1 + i, x)
    x = resized(params['core_out'], 16, x)
    x = visit(outer, params['coda'], 0, 0, 3, x)
    hidden = norm(16, params['norm'], x)
    return score(hidden), hidden

  true_grads, true = jax.jit(jax.grad(plain, has_aux=True))(params)
  grads, hidden = gradients(config, params)
  assert_close(hidden, true)
  assert_close(grads, true_grads)


def test_dropout_where_the_width_changes():
  """Half of the features are dropped there, and only in training."""
  config = config_of(core_dropout=0.5)
  resize = {
    train: Resize(config.model, width=64, train=train)
    for train in (False, True)
  }
  x_BLD = np.random.default_rng(3).normal(size=(8, 6, 16)).astype(np.float32)
  variables = nn.unbox(resize[False].init(jax.random.key(0), x_BLD))

  def run(train, seed):
    rngs = {'dropout': jax.random.key(seed)}
    return np.asarray(resize[train].apply(variables, x_BLD, rngs=rngs))

  np.testing.assert_array_equal(run(False, 0), run(False, 1))
  one, two = run(True, 0), run(True, 1)
  assert np.abs(one - two).max() > 1e-3
  # What is dropped is 0 before the norm: one value for half of a position.
  alike = [np.unique(row, return_counts=True)[1].max() for row in one[:, 0]]
  assert 20 < np.mean(alike) < 44


# Embeddings widened by a small layer.


def by_hand(params, x_LE, causal):
  """SAFE in NumPy, one sequence: its 2 heads are 4 wide."""

  def linear(p, x):
    return x @ p['kernel'] + p['bias']

  def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return (
      x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p['scale']
      + p['bias']
    )

  attention = params['attention']
  query, key, value = (
    linear(attention[part], x_LE).reshape(-1, 2, 4)
    for part in ('query', 'key', 'value')
  )
  scores = np.einsum('lhk,mhk->hlm', query, key) / 2
  if causal:
    scores = np.where(np.tril(np.ones_like(scores)), scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  mixed = np.einsum('hlm,mhk->lhk', weights, value).reshape(-1, 8)
  y_LE = norm(params['attention_norm'], x_LE + linear(attention['out'], mixed))
  inner = np.maximum(linear(params['feed_forward']['up'], y_LE), 0)
  wide_LD = linear(params['feed_forward']['down'], inner)
  return norm(params['feed_forward_norm'], wide_LD)


@pytest.mark.parametrize('family', ('decoder', 'encoder'))
def test_safe_equals_plain_form(family):
  config = config_of(**SAFE, family=family, activation='relu')
  params = params_of(config)
  mask = jnp.arange(6)[None] < jnp.array([[6], [4]])
  got = build(config).apply(
    {'params': params},
    TOKENS,
    PLACES,
    mask,
    method=lambda model, *args: model.embedding(*args),
  )
  tables = params['embedding']
  for row, length in ((0, 6), (1, 4)):
    x_LE = tables['token']['embedding'][TOKENS[row, :length]]
    x_LE = x_LE + tables['position']['embedding'][:length]
    expected = by_hand(tables['project'], x_LE, causal=family == 'decoder')
    np.testing.assert_allclose(got[row, :length], expected, atol=1e-4)


def test_safe_of_a_source_sees_all_of_it():
  """The source's small layer looks both ways, the target's only back."""
  config = config_of(**SAFE, **BOTH)
  params = params_of(config)

  table = params['embedding']['token']['embedding']

  @functools.partial(jax.jit, static_argnums=1)
  def reached(table, part):
    def third(table):
      token = {'token': {'embedding': table}}
      changed = {**params, 'embedding': {**params['embedding'], **token}}
      x_BLD = build(config).apply(
        {'params': changed},
        10 + jnp.arange(6)[None],
        PLACES[:1],
        method=lambda model, *args: getattr(model, part)(
          *args, table=model.embedding
        ),
      )
      return (x_BLD[0, 2] ** 3).sum()

    return jnp.abs(jax.grad(third)(table)).max(axis=1) > 0

  back, whole = np.arange(6) <= 2, np.full(6, True)
  np.testing.assert_array_equal(reached(table, 'embedding')[10:16], back)
  np.testing.assert_array_equal(reached(table, 'source')[10:16], whole)


ERRORS = (
  (
    {'positions_at': 'every_layer', 'position': 'rotary'},
    "'every_layer' is for learned and sinusoidal positions, got 'rotary'",
  ),
  (
    {'positions_at': 'every_layer', 'position': 'relative'},
    "'every_layer' is for learned and sinusoidal positions, got 'relative'",
  ),
  (
    {'position': 'relative', 'relative_buckets': 3},
    'relative positions need model.relative_buckets of at least 4, so that each'
    ' direction has two, got 3',
  ),
  (
    {'position': 'relative', 'relative_distance': 16},
    'need model.relative_distance above relative_buckets / 2 = 16, as far as'
    ' each distance has its own, got 16',
  ),
  ({'embed_project': 'safe'}, 'an embed_dim other than d_model, got 16'),
  ({**SAFE, 'embed_dim': 9}, 'needs embed_dim divisible by 2'),
  ({**SAFE, 'embed_dim': 6, 'position': 'rotary'}, 'divisible by 4'),
  ({**SANDWICH, 'core_width': 13}, 'must be divisible by num_heads 2'),
  (
    {**SANDWICH, 'sharing': {'layer': 'cycle:2'}},
    'rows of their own, as sandwich has; layer has cycle:2',
  ),
  (
    {**SANDWICH, 'sharing': {'layer': 'sandwich', 'norm': '0,1,1,1'}},
    'rows of their own, as sandwich has; norm has 0,1,1,1',
  ),
  (
    {**SANDWICH, 'sharing': {'layer': 'sandwich', 'attention': 'soft:2'}},
    'attention has soft:2',
  ),
  (
    {**SANDWICH, 'sharing': {'layer': 'sandwich', 'kv_source': 'all'}},
    "cannot go with model.sharing.kv_source 'all'",
  ),
  ({**SANDWICH, 'num_layers': 2, 'sharing': {}}, 'of at least 3, got 2'),
  ({**SANDWICH, 'd_ff': -1}, 'needs layers with a feed-forward network'),
  (
    {**SANDWICH, 'depth': {'injection': 'add'}},
    "needs a fixed depth, got model.depth.rule 'fixed'",
  ),
  ({'core_dropout': 1.0}, 'model.core_dropout must be below 1, got 1.0'),
)


@pytest.mark.parametrize('model,message', ERRORS, ids=lambda x: str(x)[:40])
def test_what_does_not_fit_is_said(model, message):
  with pytest.raises(BadInput) as error:
    config_of(**model)
  assert message in str(error.value)


@pytest.mark.slow
def test_flops_are_what_xla_counts():
  """Within 4 %, forward: three layers are three loops of one body each."""
  sizes = {'num_layers': 3, 'd_model': 512, 'd_ff': 1024, 'num_heads': 8}
  sizes |= {'core_width': 768, 'core_ff': 1024, 'max_len': 128}
  config = config_of(**{**SANDWICH, **SAFE, **sizes, 'embed_dim': 256})
  text = jax.ShapeDtypeStruct((1, 128), jnp.int32)
  model = build(config)
  params = jax.eval_shape(model.init, jax.random.key(0), text)
  compiled = jax.jit(model.apply).lower(nn.unbox(params), text).compile()
  flops = compiled.cost_analysis()['flops'] / 128
  counted = accounting.flops_per_token(config.model)['forward']
  assert abs(counted / flops - 1) < 0.04


@pytest.mark.slow
def test_subformer_learns(tmp_path):
  """A sandwich of another width between own ends, SAFE, tied output table."""
  sizes = {'d_model': 32, 'embed_dim': 16, 'core_width': 48, 'core_ff': 64}
  config = configs.cross(
    {
      'model': {**SIZES, **SANDWICH, **SAFE, **sizes, 'vocab_size': 258},
      'optimizer': {'learning_rate': 5e-3, 'warmup_steps': 20},
      'train': {
        'num_steps': 250,
        'batch_size': 64,
        'eval_every': 250,
        'eval_batches': 4,
        'checkpoint_every': 250,
      },
      'data': {'source': 'copy', 'difficulty': 3},
    }
  )
  result = loop.train(config, tmp_path)
  assert result['validation_accuracy'] > 0.95
