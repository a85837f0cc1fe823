"""Attention by blocks of queries equals the plain form, and keeps less."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_stack import assert_close

from shared_tfm import build
from shared_tfm.layers import blocks, dot_product

CAUSAL, WHOLE = True, False


def heads(seed, length, count, dtype='float32', width=4):
  random = np.random.default_rng(seed)
  return jnp.asarray(random.normal(size=(2, length, count, width)), dtype)


def padding(keys):
  """One sequence is half as long as the other."""
  mask_BM = np.arange(keys) < np.array([[keys // 2], [keys]])
  return mask_BM[:, None, None]


def pairs(length, keys):
  """Who sees whom, another thing for every head of four; all see the first."""
  mask = np.random.default_rng(9).random((2, 4, length, keys)) < 0.5
  mask[..., 0] = True
  return mask


def found(attend, q, k, v, weight):
  """What a function of queries, keys and values makes, and its gradients."""

  def score(*qkv):
    mixed = attend(*qkv)
    return jnp.sum(mixed.astype(jnp.float32) * weight), mixed

  return jax.jit(jax.grad(score, (0, 1, 2), has_aux=True))(q, k, v)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
  'is_causal,length,keys,groups,mask',
  [
    (WHOLE, 128, 128, 4, None),
    (CAUSAL, 128, 128, 4, None),
    (CAUSAL, 300, 300, 2, None),
    (CAUSAL, 300, 300, 1, padding(300)),
    (WHOLE, 140, 140, 2, pairs(140, 140)),
    (CAUSAL, 140, 140, 4, pairs(140, 140)[:1, :1]),
    (WHOLE, 200, 90, 2, padding(90)),
    (WHOLE, 1, 90, 4, None),
    (CAUSAL, 5, 5, 1, None),
  ],
)
def test_it_equals_the_plain_form(dtype, is_causal, length, keys, groups, mask):
  given = (
    heads(1, length, 4, dtype),
    *(heads(seed, keys, groups, dtype) for seed in (2, 3)),
  )
  weight = heads(4, length, 4)
  own = found(lambda *qkv: blocks.attend(*qkv, mask, is_causal), *given, weight)
  assert [a.dtype for a in jax.tree.leaves(own)] == [dtype] * 4
  wide = [a.astype(jnp.float32) for a in given]
  plain = found(
    functools.partial(
      dot_product.attend, mask=mask, is_causal=is_causal, kernel='xla'
    ),
    *wide,
    weight,
  )
  own = jax.tree.map(lambda a: a.astype(jnp.float32), own)
  assert_close(own, plain, 1e-5 if dtype == 'float32' else 0.02)


def test_padding_in_front():
  """Its own queries see nothing, and what they make is not looked at."""
  mask = np.arange(130)[None, None, None] >= np.array([[[[3]]], [[[0]]]])
  given = [heads(seed, 130, 2) for seed in range(3)]
  weight = heads(4, 130, 2).at[0, :3].set(0)
  own, plain = (
    found(
      functools.partial(
        dot_product.attend, mask=mask, is_causal=True, kernel=kernel
      ),
      *given,
      weight,
    )
    for kernel in ('blocks', 'xla')
  )
  assert_close(own[0], plain[0], 1e-5)
  assert_close(own[1][:, 3:], plain[1][:, 3:], 1e-5)


def test_who_sees_nothing_has_no_gradient():
  """For scores that are not seen are numbers put there."""
  q, k, v = (heads(seed, 130, 2) for seed in range(3))
  mask = np.ones((2, 1, 130, 130), bool)
  mask[:, :, 7] = False
  grads, _ = found(
    lambda *qkv: blocks.attend(*qkv, mask), q, k, v, heads(4, 130, 2)
  )
  assert not grads[0][:, 7].any() and grads[0][:, 8].all()


def test_long_sequences_have_no_more_blocks():
  length = blocks.QUERIES * blocks.BLOCKS + 5
  q, k, v = (jnp.zeros((1, length, 1, 4)) for _ in range(3))
  text = str(jax.make_jaxpr(lambda *qkv: blocks.attend(*qkv))(q, k, v))
  assert text.count('dot_general') == 2 * blocks.BLOCKS


def test_no_scores_are_kept_for_the_backward_pass():
  q, k, v = (heads(seed, 512, 2) for seed in range(3))
  _, back = jax.vjp(functools.partial(blocks.attend, is_causal=True), q, k, v)
  assert sum(a.size for a in jax.tree.leaves(back)) == q.size + k.size + v.size


def test_what_is_held_meanwhile():
  q = jax.ShapeDtypeStruct((1, 1024, 2, 8), 'float32')

  def temporary(kernel):
    attend = functools.partial(
      dot_product.attend, is_causal=True, kernel=kernel
    )
    made = jax.grad(lambda *qkv: attend(*qkv).sum(), (0, 1, 2))
    compiled = jax.jit(made).lower(q, q, q).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary('blocks') < 0.8 * temporary('xla')


@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_a_model_is_the_same(remat):
  """In the scan, under a policy of recomputation, in both passes."""
  tokens = jax.random.randint(jax.random.key(1), (2, 150), 0, 64)

  def gradient(kernel):
    model = build(
      {
        'model': {
          'num_layers': 2,
          'd_model': 32,
          'd_ff': 48,
          'num_heads': 4,
          'num_kv_heads': 2,
          'vocab_size': 64,
          'max_len': 150,
          'remat': remat,
          'attention_kernel': kernel,
          'sharing': {'layer': 'all'},
        }
      },
      True,
    )
    variables = model.init(jax.random.key(0), tokens)
    return jax.jit(
      jax.value_and_grad(lambda v: jnp.mean(model.apply(v, tokens) ** 2))
    )(variables)

  assert_close(gradient('blocks'), gradient('xla'), 1e-5)
