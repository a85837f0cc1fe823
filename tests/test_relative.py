"""Scores that gain by distance: T5's buckets, and one table for a stack."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_stack import assert_close

from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.layers.attention import Attention
from shared_tfm.layers.context import Context
from shared_tfm.layers.position import RelativeBias, bucket
from shared_tfm.model import build, routing

B, L, V = 2, 10, 24
TOKENS = np.random.default_rng(0).integers(V, size=(B, L))


def config_of(**model):
  sizes = {'num_layers': 4, 'd_model': 16, 'num_heads': 4, 'num_kv_heads': 2}
  sizes |= {'max_len': 16, 'vocab_size': V, 'position': 'relative'}
  sizes |= {'relative_buckets': 6, 'relative_distance': 5}
  return configs.cross({'model': {**sizes, **model}})


def variables_of(config, seed=0, **source):
  """Drawn large enough that distance matters."""
  init = jax.jit(build(config).init)
  variables = init(jax.random.key(seed), jnp.asarray(TOKENS), **source)
  return jax.tree.map(lambda leaf: 2 * leaf, nn.unbox(variables))


def test_the_buckets_as_a_literal():
  """Eight buckets up to distance 12, in both ways of counting."""
  ahead = jnp.arange(-14, 15)
  back = [7, 7, 7, 7, 7, 6, 6, 6, 5, 4, 4, 3, 2, 1]
  causal = bucket(ahead, 8, 12, causal=True)
  assert causal.tolist() == [*back, *[0] * 15]
  near = [1, 2, 2, 2, *[3] * 10]
  both = bucket(ahead, 8, 12, causal=False)
  assert both.tolist() == [*near[::-1], 0, *(4 + n for n in near)]


@pytest.mark.parametrize('buckets,farthest', ((32, 128), (16, 20), (5, 9)))
def test_the_buckets_are_by_their_formula(buckets, farthest):
  """As it is written, in double precision, but where that is a whole number."""
  alone = buckets // 2
  for far in range(200):
    expected = far
    if far >= alone:
      place = math.log(far / alone) / math.log(farthest / alone)
      place *= buckets - alone
      if abs(place - round(place)) < 1e-5:
        continue
      expected = min(alone + int(place), buckets - 1)
    assert bucket(jnp.array(-far), buckets, farthest, True) == expected


def test_what_a_score_gains_is_read_off_the_table():
  """Of attention whose queries are zero nothing but the bias decides."""
  model = config_of(num_heads=2, num_kv_heads=1).model
  relative, attention = RelativeBias(model), Attention(model)
  places = jnp.broadcast_to(jnp.arange(L), (1, L))
  table = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
  bias = relative.apply({'params': {'table': table}}, places, places)
  x = jnp.asarray(np.random.default_rng(2).normal(size=(1, L, 16)), jnp.float32)
  variables = attention.init(jax.random.key(0), x, Context(places))
  params = jax.tree.map(np.asarray, nn.unbox(variables)['params'])
  query = jax.tree.map(np.zeros_like, params['query'])
  variables = {'params': {**params, 'query': query}}
  found, _ = attention.apply(variables, x, Context(places, bias_BHLM=bias))

  value = np.asarray(x) @ params['value']['kernel'] + params['value']['bias']
  mixed = np.zeros((L, 2, 8))
  for head in range(2):
    for i in range(L):
      gained = [
        table[int(bucket(jnp.array(j - i), 6, 5, True)), head]
        for j in range(i + 1)
      ]
      weights = np.exp(gained) / np.exp(gained).sum()
      mixed[i, head] = weights @ np.asarray(value[0, : i + 1, :8])
  out = params['out']
  expected = mixed.reshape(L, 16) @ out['kernel'] + out['bias']
  np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_where_a_text_begins_is_no_matter_and_its_order_is():
  config = config_of(sharing={'layer': 'cycle:2'})
  variables, model = variables_of(config), build(config)

  @jax.jit
  def said(tokens, places):
    return model.apply(variables, tokens, positions_BL=places, method='hidden')

  places = jnp.broadcast_to(jnp.arange(L), (B, L))
  there = said(TOKENS, places)
  assert_close(said(TOKENS, places + 5), there, 1e-6)
  assert np.abs(said(TOKENS, 2 * places) - there).max() > 1e-2


@pytest.mark.slow
def test_an_encoder_tells_left_from_right():
  config = config_of(
    family='encoder', head='classes', num_classes=3, pool='mean'
  )
  variables = variables_of(config)
  call = jax.jit(build(config).apply)
  one, other = call(variables, TOKENS), call(variables, TOKENS[:, ::-1])
  assert np.abs(one - other).max() > 1e-2
  table = variables['params']['relative']['table']
  alike = {'relative': {'table': jnp.concatenate([table[:3], table[:3]])}}
  variables = {'params': {**variables['params'], **alike}}
  one, other = call(variables, TOKENS), call(variables, TOKENS[:, ::-1])
  assert_close(one, other, 1e-5)


@pytest.mark.parametrize('family', ('decoder', 'encoder_decoder'))
def test_one_table_for_a_stack_is_counted_once(family):
  config = config_of(family=family, sharing={'layer': 'all'})
  source = {'source_BS': TOKENS} if family == 'encoder_decoder' else {}
  shapes = jax.eval_shape(
    build(config).init, jax.random.key(0), TOKENS, **source
  )
  counts = accounting.parameters(config.model)
  held = sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
  assert counts['stored'] == held
  tables = 6 * 4 * (1 + (family == 'encoder_decoder'))
  outer = accounting.outer_parameters(config.model)
  assert sum(n for name, n in outer.items() if 'relative' in name) == tables
  assert counts['embedding'] == 16 * V + tables


@pytest.mark.slow
def test_every_visit_adds_to_the_gradient_of_the_table():
  """As much as single visits would, were the bias each one's own."""
  config = config_of(sharing={'layer': 'all'})
  variables, model = variables_of(config), build(config)

  @jax.jit
  @jax.grad
  def grad(params, places):
    hidden = model.apply(
      {'params': params}, TOKENS, positions_BL=places, method='hidden'
    )
    return jnp.sum(hidden**3)

  places = jnp.broadcast_to(jnp.arange(L), (B, L))
  alike = grad(variables['params'], None)['relative']['table']
  by_row = grad(variables['params'], places)['relative']['table']
  assert_close(alike, by_row, 1e-5)  # one bias for all rows, or each its own
  assert np.abs(alike).max(axis=1).min() > 0
  step = 1e-2 * np.asarray(alike / np.linalg.norm(alike))
  params = variables['params']

  def loss(sign):
    moved = {'table': params['relative']['table'] + sign * step}
    hidden = model.apply(
      {'params': {**params, 'relative': moved}}, TOKENS, method='hidden'
    )
    return float(jnp.sum(hidden**3))

  slope = (loss(1) - loss(-1)) / 2
  assert slope == pytest.approx(1e-2 * float(np.linalg.norm(alike)), rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize('padded', (False, True))
def test_tokens_that_a_loop_gathers_keep_their_distances(padded, monkeypatch):
  """Trained by gathering, as if all others were masked; see routing.py."""
  depth = {'rule': 'expert_choice', 'router_alpha': 0.5}
  config = config_of(sharing={'layer': 'all'}, depth=depth)
  variables, model = variables_of(config), build(config, train=True)
  mask = np.arange(L)[None] < np.array([[L], [6]]) if padded else None

  def said():
    return model.apply(variables, TOKENS, mask, method='hidden')

  gathered = jax.jit(said)()
  monkeypatch.setattr(routing, '_gathered', routing._masked)
  masked = jax.jit(lambda: said())()
  seen = np.ones((B, L), bool) if mask is None else mask
  assert_close(gathered[seen], masked[seen], 1e-4)
  assert np.abs(gathered - masked).max() > 0  # two programs
