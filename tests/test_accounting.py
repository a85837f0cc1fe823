"""Counts from the config alone equal the real thing."""

import functools
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.config import sides
from shared_tfm.model import build

MODELS = (
  {},
  {'tables': 'state', 'sharing': {'layer': 'all', 'attention': 'cycle:2'}},
  {'family': 'encoder', 'norm_position': 'post', 'embed_norm': True},
  {'embed_dim': 16, 'type_vocab_size': 3},
  {'embed_dim': 16, 'tie_embeddings': False},
  {'family': 'encoder', 'embed_dim': 16, 'tie_embeddings': False},
  {'norm_position': 'sandwich', 'position': 'sinusoidal', 'head_dim': 24},
  {'norm': 'rmsnorm', 'activation': 'swiglu', 'position': 'rotary'},
  {'norm': 'batchnorm', 'use_bias': False, 'num_kv_heads': 1, 'd_ff': 40},
  {'sharing': {'layer': 'cycle:2', 'attention_key': 'all', 'norm': 'none'}},
  {
    'activation': 'geglu',
    'sharing': {'layer': 'all', 'feed_forward_gate': 'sandwich'},
  },
  {'sharing': {'layer': 'all'}, 'depth': {'rule': 'act', 'norm': True}},
  {'sharing': {'layer': 'all'}, 'depth': {'rule': 'stick_breaking'}},
  {'sharing': {'layer': 'cycle:2'}, 'depth': {'rule': 'token_choice'}},
  {
    'norm': 'rmsnorm',
    'sharing': {'layer': 'cycle:2'},
    'depth': {'rule': 'exits', 'injection': 'linear', 'norm': True},
  },
  {
    'activation': 'swiglu',
    'norm_position': 'peri',
    'tie_embeddings': False,
    'head_bias': True,
    'sharing': {'layer': 'cycle:2', 'feed_forward_router': 'none'},
    'experts': {'num_ff': 9, 'num_attention': 3},
  },
  {
    'num_kv_heads': 1,
    'sharing': {'layer': 'cycle:2', 'attention_router': 'all'},
    'experts': {'style': 'sut', 'num_ff': 9, 'num_attention': 3},
  },
)


def real_tree(config):
  """The shapes of a model's parameters."""
  tokens = jnp.zeros((1, 4), jnp.int32)
  source = config.model.family == 'encoder_decoder'
  init = functools.partial(
    build(config).init, **({'source_BS': tokens} if source else {})
  )
  return nn.unbox(jax.eval_shape(init, jax.random.key(0), tokens))['params']


def size(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def check(config):
  params = real_tree(config)
  counts = accounting.parameters(config.model)
  assert counts['stored'] == size(params)
  stacks = sides.stacks(config.model)
  stored = sum(size(params[name]) for name in stacks)
  assert counts['layers_stored'] == stored
  embedding = size(params['embedding']) + size(params.get('source', {}))
  head = params.get('head', {})
  embedding += size(head.get('table', {}))
  if config.model.family != 'encoder':
    embedding += size(head.get('project', {}))
  assert counts['embedding'] == embedding
  assert counts['non_embedding'] == size(params) - embedding
  layers = sum(
    stack.num_layers * leaf.size // leaf.shape[0]
    for name, stack in stacks.items()
    for leaf in jax.tree.leaves(params[name])
  )
  assert counts['layers_applied'] == layers
  assert counts['applied'] == size(params) - stored + layers


@pytest.mark.parametrize('model', MODELS, ids=str)
def test_counts_equal_the_tree(model):
  sizes = {'d_model': 32, 'num_layers': 4, 'num_heads': 2}
  check(configs.cross({'model': {**sizes, **model}}))


def test_albert_counts():
  """ALBERT base, E 128, all shared, as its code counts, without the pooler.

  Ours has a masked-LM head besides: D E + E, a norm 2E, and a bias V.
  """
  v, d, e = 30_000, 768, 128
  config = configs.cross(
    {
      'model': {
        'family': 'encoder',
        'num_layers': 12,
        'd_model': d,
        'num_heads': 12,
        'embed_dim': e,
        'vocab_size': v,
        'max_len': 512,
        'type_vocab_size': 2,
        'norm_position': 'post',
        'embed_norm': True,
        'sharing': {'layer': 'all'},
      }
    }
  )
  head = d * e + e + 2 * e + v
  assert accounting.parameters(config.model)['stored'] - head == 11_092_992


def test_mobilellm_counts():
  """MobileLLM-125M: 124,635,456 by its published config, and LS as many."""
  model = {
    'num_layers': 30,
    'd_model': 576,
    'num_heads': 9,
    'num_kv_heads': 3,
    'd_ff': 1536,
    'vocab_size': 32_000,
    'max_len': 2048,
    'activation': 'swiglu',
    'norm': 'rmsnorm',
    'position': 'rotary',
    'use_bias': False,
  }
  plain = configs.cross({'model': model}).model
  shared = configs.cross(
    {'model': {**model, 'num_layers': 60, 'sharing': {'layer': 'sequence:30'}}}
  ).model
  counts = accounting.parameters(shared)
  assert accounting.parameters(plain)['stored'] == 124_635_456
  assert counts['stored'] == 124_635_456
  assert counts['layers_applied'] == 2 * counts['layers_stored']


FLOP_MODELS = (
  {},
  {'activation': 'swiglu', 'norm': 'rmsnorm', 'num_kv_heads': 2},
  {'family': 'encoder', 'embed_dim': 128, 'norm_position': 'post'},
  {'embed_dim': 128, 'position': 'rotary'},
)


@pytest.mark.slow
@pytest.mark.parametrize('model', FLOP_MODELS, ids=str)
def test_flops_are_what_xla_counts(model):
  """Within 3 %, forward and training, on an unrolled model.

  XLA counts a loop's body once, hence the plain form; and it counts the
  elementwise work that the formula leaves out.
  """
  length = 128
  config = configs.cross(
    {
      'model': {
        'num_layers': 3,
        'd_model': 512,
        'num_heads': 8,
        'max_len': length,
        'vocab_size': 1024,
        'sharing': {'layer': 'all'},
        **model,
      }
    }
  )
  params = real_tree(config)
  params['stack'] = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape[1:]), leaf.dtype),
    params['stack']['rows'],
  )
  tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)

  def forward(params, tokens):
    return oracle.logits(config.model, params, {}, tokens)[0]

  def loss(params, tokens):
    return forward(params, tokens).mean()

  counted = accounting.flops_per_token(config.model)
  for name, program in (('forward', forward), ('train', jax.grad(loss))):
    compiled = jax.jit(program).lower(params, tokens).compile()
    flops = compiled.cost_analysis()['flops'] / length
    assert abs(counted[name] / flops - 1) < 0.03, name


def test_kv_bytes():
  """CLA's baseline (2405.12981): 20 layers of 128-wide heads, MQA: 10,240."""
  model = {
    'num_layers': 20,
    'd_model': 2048,
    'num_heads': 16,
    'num_kv_heads': 1,
    'head_dim': 128,
    'dtype': 'bfloat16',
  }
  config = configs.cross({'model': model})
  assert accounting.kv_bytes_per_token(config.model) == 10_240
  shared = configs.cross({'model': {**model, 'sharing': {'layer': 'all'}}})
  assert accounting.kv_bytes_per_token(shared.model) == 10_240


def test_description_is_json():
  config = configs.cross(
    {
      'model': {
        'num_layers': 6,
        'sharing': {'layer': 'cycle_rev:3', 'attention_key': 'all'},
      }
    }
  )
  described = json.loads(json.dumps(accounting.describe(config)))
  assert set(described) == {
    'owners',
    'params',
    'sharing_ratio',
    'flops_per_token',
    'kv_bytes_per_token',
    'weight_bytes',
  }
  assert described['owners'] == {
    'attention': [0, 1, 2, 2, 1, 0],
    'feed_forward': [0, 1, 2, 2, 1, 0],
    'norm': [0, 1, 2, 2, 1, 0],
    'attention.key': [0, 0, 0, 0, 0, 0],
  }
  assert set(described['params']) == {
    'stored',
    'applied',
    'embedding',
    'non_embedding',
  }
  assert described['weight_bytes'] == 4 * described['params']['stored']
  assert np.isclose(described['sharing_ratio'], 2.0, atol=0.2)


def test_norms_are_described_by_what_they_store():
  """Vectors have no products and templates: rows of tables alone."""
  sharing = {
    'layer': 'cycle:3+none@8',
    'norm_attention': 'soft:2',
    'norm_feed_forward': 'none@2+all+all@3',
    'feed_forward': 'soft:3',
  }
  model = {'num_layers': 6, 'sharing': sharing}
  crossed = configs.cross({'model': model})
  described = accounting.describe(crossed)
  assert accounting.specs(crossed.model) == {
    'attention': 'cycle:3+none@8',
    'feed_forward': 'soft:3',
    'norm': 'cycle:3',
    'norm.attention': 'none',
    'norm.feed_forward': 'all',
  }
  assert described['owners'] == {
    'attention': [0, 1, 2, 0, 1, 2],
    'feed_forward': [None] * 6,
    'norm': [0, 1, 2, 0, 1, 2],
    'norm.attention': [0, 1, 2, 3, 4, 5],
    'norm.feed_forward': [0] * 6,
  }
