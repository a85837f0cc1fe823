"""Keys and values, and attention maps, that later layers reuse: the scan's
slots equal a plain loop that keeps everything; nothing is stored in vain.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stack import TOKENS, assert_close, score, variables_of

from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.model import build
from shared_tfm.sharing import owners
from shared_tfm.sharing.reuse import plan, sources

N, D, H, G, K, F = 6, 16, 4, 2, 4, 32
LACKING = {
  'kv_source': ('attention.key', 'attention.value'),
  'map_source': ('attention.query', 'attention.key'),
}


def config_of(**sharing):
  return configs.cross(
    {
      'model': {
        'num_layers': N,
        'd_model': D,
        'num_heads': H,
        'num_kv_heads': G,
        'd_ff': F,
        'max_len': 8,
        'vocab_size': 64,
        'position': 'rotary',
        'sharing': sharing,
      }
    }
  )


def layer_norm(x, w):
  x = x - x.mean(-1, keepdims=True)
  x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  return x * w['scale'][None, None] + w['bias'][None, None]


def dense(x, w):
  return x @ w['kernel'] + w['bias'][None, None]


def rotated(x_BLHK):
  """Positions as rotations of the complex numbers that halves make."""
  angle = np.arange(8)[:, None] * 10_000.0 ** -(np.arange(K // 2) / (K // 2))
  a, b = x_BLHK[..., : K // 2], x_BLHK[..., K // 2 :]
  z = (a + 1j * b) * np.exp(1j * angle).astype(np.complex64)[None, :, None]
  return jnp.concatenate([z.real, z.imag], -1)


def plain(params, kv_from, map_from):
  """Logits, by a loop in which every layer makes everything and then chooses.

  Args:
    params: 'stack' has one entry per layer, whatever the layer reuses.
    kv_from: for every layer the one whose keys and values it attends to.
    map_from: ... and the one whose attention weights it mixes by.
  """
  table = params['embedding']['token']['embedding']
  x = table[TOKENS]
  all_k, all_v, maps = [], [], []
  for i in range(N):
    w = jax.tree.map(lambda leaf, i=i: leaf[i], params['stack'])
    y = layer_norm(x, w['norm']['attention'])
    q = rotated(dense(y, w['attention']['query']).reshape(2, 8, H, K))
    all_k.append(rotated(dense(y, w['attention']['key']).reshape(2, 8, G, K)))
    all_v.append(dense(y, w['attention']['value']).reshape(2, 8, G, K))
    k = jnp.stack(all_k)[kv_from[i]][:, :, [0, 0, 1, 1]]
    v = jnp.stack(all_v)[kv_from[i]][:, :, [0, 0, 1, 1]]
    scores = jnp.einsum('blhk,bmhk->bhlm', q, k) / np.sqrt(K)
    seen = np.tril(np.ones((8, 8), bool))[None, None]
    maps.append(jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1))
    used = jnp.stack(maps)[map_from[i]]
    mixed = jnp.einsum('bhlm,bmhk->blhk', used, v).reshape(2, 8, D)
    x = x + dense(mixed, w['attention']['out'])
    y = layer_norm(x, w['norm']['feed_forward'])
    up = jax.nn.gelu(dense(y, w['feed_forward']['up']), approximate=False)
    x = x + dense(up, w['feed_forward']['down'])
  return layer_norm(x, params['norm']) @ table.T


@functools.cache
def plain_program():
  def loss(*args):
    logits = plain(*args)
    return score(logits), logits

  return jax.jit(jax.grad(loss, has_aux=True))


def rows_of(sharing, path):
  """For every layer the stored row of a tensor, -1 where it has none."""
  table = owners(sharing.get('layer', 'none'), N)
  for field, parts in LACKING.items():
    if field in sharing and path[:2] in [tuple(p.split('.')) for p in parts]:
      own = [s == i for i, s in enumerate(sources(owners(sharing[field], N)))]
      kept = sorted({table[i] for i in range(N) if own[i]})
      return [kept.index(table[i]) if own[i] else -1 for i in range(N)]
  return list(table)


def expected(sharing, variables):
  params = dict(variables['params'])
  rows = flatten_dict(params['stack']['rows'])
  blank = {path: np.zeros_like(leaf[:1]) for path, leaf in rows.items()}
  params['stack'] = unflatten_dict(
    {
      path: np.concatenate([leaf, blank[path]])[rows_of(sharing, path)]
      for path, leaf in rows.items()
    }
  )
  read = [
    np.array(sources(owners(sharing.get(field, 'none'), N)))
    for field in LACKING
  ]
  grads, logits = plain_program()(params, *read)
  found = {}
  for path, leaf in flatten_dict(grads['stack']).items():
    found[path] = np.zeros_like(rows[path])
    for layer, row in enumerate(rows_of(sharing, path)):
      if row >= 0:
        found[path][row] += leaf[layer]
      else:
        assert not np.any(leaf[layer])
  grads['stack'] = {'rows': unflatten_dict(found)}
  return logits, grads


def actual(config, variables):
  model = build(config, train=True)

  def loss(params):
    logits = model.apply({'params': params}, TOKENS)
    return score(logits), logits

  grads, logits = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
  return logits, grads


SHARINGS = {
  'CLA': {'kv_source': 'sequence:3'},
  'YOCO': {'kv_source': 'prefix:3'},
  'Gemma 3n': {'kv_source': '0,1,2,1,2,1'},
  'MoR': {'layer': 'cycle:3', 'kv_source': 'cycle:3'},
  'CLA, cycled': {'layer': 'cycle:2', 'kv_source': 'sequence:3'},
  'maps': {'map_source': 'sequence:3'},
  'maps of shared layers': {'layer': 'cycle:2', 'map_source': '0,1,0,1,2,2'},
}


@pytest.mark.slow
@pytest.mark.parametrize('name', SHARINGS)
def test_equals_plain_loop(name):
  """And no stored parameter is without a gradient."""
  config = config_of(**SHARINGS[name])
  variables = variables_of(config)
  logits, grads = actual(config, variables)
  true_logits, true_grads = expected(SHARINGS[name], variables)
  assert_close(logits, true_logits, 2e-5)
  assert_close(grads, true_grads, 2e-5)
  for path, leaf in flatten_dict(grads['stack']).items():
    assert (np.abs(leaf).reshape(len(leaf), -1).max(-1) > 0).all(), path


def stored(**sharing):
  shapes = jax.eval_shape(
    build(config_of(**sharing)).init, jax.random.key(0), TOKENS
  )
  return nn.unbox(shapes)['params']['stack']


@pytest.mark.parametrize(
  'sharing,rows',
  (
    ({'kv_source': 'sequence:3'}, (6, 3, 3)),
    ({'kv_source': 'none'}, (6, 6, 6)),
    ({'kv_source': 'prefix:1', 'attention_key': 'cycle:3'}, (6, 1, 1)),
    ({'layer': 'cycle:2', 'kv_source': 'sequence:3'}, (2, 1, 1)),
    ({'map_source': 'sequence:2'}, (2, 2, 6)),
    ({'layer': 'all', 'map_source': 'all'}, (1, 1, 1)),
  ),
  ids=str,
)
def test_layers_that_reuse_store_nothing_for_it(sharing, rows):
  found = stored(**sharing)
  attention = found['rows']['attention']
  names = ('query', 'key', 'value')
  assert tuple(len(attention[n]['kernel']) for n in names) == rows
  real = sum(leaf.size for leaf in jax.tree.leaves(found))
  counted = accounting.parameters(config_of(**sharing).model)
  assert counted['layers_stored'] == real


def test_levels_and_coefficients_of_reusing_layers():
  """Three layers make keys: three products, three rows of coefficients."""
  found = stored(
    kv_source='sequence:3',
    attention_key='all+none@2',
    attention_value='soft:2',
    attention_query='soft:5',
  )
  assert found['level_1']['attention']['key']['kernel']['a'].shape[0] == 3
  assert found['rows']['attention']['value']['bias'].shape[0] == 3
  assert found['mix']['attention.value'].shape == (3, 2)
  assert found['mix']['attention.query'].shape == (6, 5)


def test_counts():
  """What reusing layers do not do, they are not counted for."""

  def counted(**sharing):
    model = config_of(**sharing).model
    flops = accounting.flops_per_token(model)['forward']
    applied = accounting.parameters(model)['layers_applied']
    return flops, applied, accounting.kv_bytes_per_token(model)

  flops, applied, cache = counted()
  kv, q, scores = 2 * D * G * K, D * H * K, 8 * H * K
  assert cache == 4 * N * 2 * G * K
  assert counted(kv_source='sequence:3') == (
    flops - 2 * 3 * kv,
    applied - 3 * (kv + 2 * G * K),
    cache // 2,
  )
  assert counted(kv_source='prefix:1')[2] == cache // N
  assert counted(map_source='sequence:2') == (
    flops - 2 * 4 * (q + kv // 2 + scores),
    applied - 4 * (q + kv // 2 + H * K + G * K),
    cache - 4 * 4 * G * K,
  )
  tied = counted(kv_source='sequence:3', attention_key='=attention.value')
  assert tied == counted(kv_source='sequence:3')


def test_reusing_nothing_is_the_plain_network():
  config = config_of(kv_source='none')
  variables = variables_of(config)
  one = build(config).apply(variables, TOKENS)
  two = build(config_of()).apply(variables, TOKENS)
  np.testing.assert_array_equal(one, two)


PLANS = {
  # owners: (own, read, write, slots)
  '000111': ('100100', '000000', '011011', 1),
  '012222': ('111000', '000000', '110111', 1),
  '012121': ('111000', '000010', '201222', 2),
  '012012': ('111000', '000012', '012333', 3),
}


@pytest.mark.parametrize('table', PLANS)
def test_plans_as_literals(table):
  made = plan(tuple(map(int, table)))
  own, read, write, slots = PLANS[table]
  assert ''.join(str(int(o)) for o in made.own) == own
  assert ''.join(map(str, made.read)) == read
  assert ''.join(map(str, made.write)) == write
  assert made.slots == slots


@st.composite
def dense_tables(draw):
  raw = draw(st.lists(st.integers(0, 6), min_size=1, max_size=20))
  names = sorted(set(raw))
  return tuple(names.index(row) for row in raw)


@settings(deadline=None, max_examples=500)
@given(dense_tables())
def test_what_waits_is_never_overwritten(table):
  """Every layer finds what its source left, in as few slots as can be."""
  made = plan(table)
  kept = [None] * made.slots
  for layer, source in enumerate(sources(table)):
    assert made.own[layer] == (source == layer)
    if not made.own[layer]:
      assert kept[made.read[layer]] == source
    if made.write[layer] < made.slots:
      kept[made.write[layer]] = layer
  last = {row: i for i, row in enumerate(table)}
  waiting = [
    sum(table.index(row) <= i < last[row] for row in set(table))
    for i in range(len(table))
  ]
  assert made.slots == max(waiting)
