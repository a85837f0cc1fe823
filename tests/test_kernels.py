"""Fused attention is chosen where it can be, and equals the plain form."""

import functools
import re
from unittest import mock

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from shared_tfm import build, errors
from shared_tfm.__main__ import main
from shared_tfm.layers import dot_product, kernels

MODEL = {
  'num_layers': 2,
  'd_model': 32,
  'd_ff': 48,
  'num_heads': 2,
  'num_kv_heads': 1,
  'vocab_size': 64,
  'max_len': 128,
  'sharing': {'layer': 'all'},
}


def heads(length=128, count=2, width=8, dtype='bfloat16', seed=0):
  random = np.random.default_rng(seed)
  return jnp.asarray(random.normal(size=(2, length, count, width)), dtype)


def padding(*lengths):
  mask_BM = np.arange(128) < np.array(lengths)[:, None]
  return jnp.asarray(mask_BM[:, None, None])


@pytest.mark.parametrize(
  'is_causal,keys,mask',
  [
    (True, 1, None),
    pytest.param(True, 1, padding(90, 128), marks=pytest.mark.slow),
  ],
  ids=['causal', 'padding too'],
)
def test_splash_equals_the_plain_form(is_causal, keys, mask):
  given = (
    heads(seed=1, dtype='float32'),
    *(heads(count=keys, seed=seed, dtype='float32') for seed in (2, 3)),
  )
  weight = heads(seed=4, dtype='float32')

  def found(attend):
    def score(*qkv):
      mixed = attend(*qkv, mask, is_causal)
      return jnp.sum(mixed * weight), mixed

    return jax.jit(jax.grad(score, (0, 1, 2), has_aux=True))(*given)

  splash = found(functools.partial(kernels.splash, interpret=True))
  plain = found(functools.partial(dot_product.attend, kernel='xla'))
  for a, b in zip(*map(jax.tree.leaves, (splash, plain)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.slow
def test_a_model_is_the_same_by_splash(monkeypatch):
  """In the scan, under a policy of recomputation, in both passes."""
  model = build({'model': MODEL}, True)
  tokens = jax.random.randint(jax.random.key(1), (2, 128), 0, 64)
  variables = model.init(jax.random.key(0), tokens)

  def gradient():
    return jax.jit(
      jax.value_and_grad(lambda v: jnp.mean(model.apply(v, tokens) ** 2))
    )(variables)

  plain = gradient()
  ran = []

  def splash(*args):
    ran.append(args[0].shape)
    return kernels_splash(*args, interpret=True)

  kernels_splash = kernels.splash
  monkeypatch.setattr(kernels, 'platform', lambda: 'tpu')
  monkeypatch.setattr(kernels, 'splash', splash)
  fused = gradient()
  assert ran
  for a, b in zip(*map(jax.tree.leaves, (fused, plain)), strict=True):
    # A key's bias moves no score: its gradient is nothing but rounding.
    most = 2e-5 * max(float(jnp.abs(b).max()), 1e-3)
    np.testing.assert_allclose(a, b, atol=most)


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_a_gpu_gets_fused_attention_in_both_passes(remat, monkeypatch):
  """The program for CUDA, lowered where there is none: no scores are in it."""
  monkeypatch.setattr(kernels, 'platform', lambda: 'cuda')
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91000)
  tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32)

  def program(**changes):
    given = {**MODEL, 'dtype': 'bfloat16', 'remat': remat, **changes}
    model = build({'model': given}, True)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    traced = jax.jit(
      jax.grad(lambda v, tokens: jnp.mean(model.apply(v, tokens) ** 2))
    ).trace(variables, tokens)
    return traced.lower(lowering_platforms=('cuda',)).as_text()

  called = re.compile(r'__cudnn\$(fmha\w+)')
  fused, plain = program(), program(attention_kernel='xla')
  assert set(called.findall(fused)) == {
    'fmhaSoftmax',
    'fmhaSoftmaxBackward',
  }
  assert not called.findall(plain)
  scores = re.compile(r'128x128x(bf16|f32)>')
  assert scores.search(plain) and not scores.search(fused)


CASES = [
  ('cudnn', 'cuda', {}, {}, ''),
  ('cudnn', 'cuda', {}, {'is_causal': True}, ''),
  ('cudnn', 'cpu', {}, {}, "one of NVIDIA's GPUs, and this runs on cpu"),
  ('cudnn', 'rocm', {}, {}, "one of NVIDIA's GPUs, and this runs on rocm"),
  ('cudnn', 'cuda', {'dtype': 'float32'}, {}, 'float16, got float32'),
  ('cudnn', 'cuda', {'width': 12}, {}, 'head_dim of 8, 16, ... 128, got 12'),
  ('cudnn', 'cuda', {'width': 256}, {}, '128, got 256'),
  ('cudnn', 'cuda', {'length': 127}, {}, 'even lengths, got 127 queries'),
  ('cudnn', 'cuda', {}, {'mask': padding(128, 40)}, 'no masks'),
  ('splash', 'tpu', {}, {}, ''),
  ('splash', 'tpu', {'dtype': 'float32'}, {'mask': padding(1, 2)}, ''),
  ('splash', 'cuda', {}, {}, 'needs a TPU, and this runs on cuda'),
  ('splash', 'tpu', {'dtype': 'float16'}, {}, 'got float16'),
  ('splash', 'tpu', {'length': 96}, {}, 'multiples of 128, got 96 queries'),
  ('splash', 'tpu', {}, {'mask': jnp.ones((2, 1, 128, 128))}, 'got one of'),
  ('blocks', 'cpu', {}, {}, ''),
  ('blocks', 'cpu', {'length': 5}, {'is_causal': True}, ''),
  ('blocks', 'cpu', {'dtype': 'float32'}, {'mask': padding(1, 2)}, ''),
  ('blocks', 'cpu', {'dtype': 'float16'}, {}, 'got float16'),
  ('blocks', 'tpu', {}, {}, 'is for CPUs, and this runs on tpu'),
]


@pytest.mark.parametrize('name,on,sizes,call,reason', CASES)
def test_why_a_kernel_is_not_taken(name, on, sizes, call, reason):
  given = {'mask': None, 'is_causal': False, 'on': on, **call}
  made = heads(**sizes)
  found = kernels.reason(name, made, made, **given)
  assert reason in found and bool(reason) == bool(found)
  with mock.patch.object(kernels, 'platform', lambda: on):
    chosen = kernels.choose('auto', made, made, *list(given.values())[:2])
    assert (chosen == name) == (not reason)
    if reason:
      with pytest.raises(errors.BadInput, match=f'attention_kernel={name}'):
        kernels.choose(name, made, made, *list(given.values())[:2])


def test_blocks_are_of_whole_sequences_of_a_known_length():
  length = jax.export.symbolic_shape('L')[0]
  made = jax.ShapeDtypeStruct((2, length, 2, 8), 'float32')
  found = kernels.reason('blocks', made, made, None, True, 'cpu')
  assert found == 'needs a length that is known, got L'
  with mock.patch.object(kernels, '_ways', lambda name: 4):
    found = kernels.reason('blocks', heads(), heads(), None, True, 'cpu')
  assert found == 'needs whole sequences, and they are cut in 4'


def test_other_keys_than_queries_are_not_causal():
  long, short = heads(256), heads(128)
  for name, on in ('cudnn', 'cuda'), ('splash', 'tpu'), ('blocks', 'cpu'):
    assert not kernels.reason(name, short, long, None, False, on)
    found = kernels.reason(name, short, long, None, True, on)
    assert 'got 128 and 256' in found


def test_a_bias_of_scores_is_for_the_plain_form():
  bias = jnp.zeros((1, 2, 128, 128))
  for name, on in ('cudnn', 'cuda'), ('splash', 'tpu'), ('blocks', 'cpu'):
    found = kernels.reason(name, heads(), heads(), None, True, on, bias)
    assert 'bias of distances' in found


@pytest.mark.parametrize(
  'axis,name,on,kinds',
  [
    ('tensor', 'splash', 'tpu', 'AA'),
    ('tensor', 'splash', 'tpu', 'MA'),
    ('tensor', 'cudnn', 'cuda', 'MA'),
    ('data', 'splash', 'tpu', 'AA'),
    ('data', 'splash', 'tpu', 'MA'),
    ('data', 'cudnn', 'cuda', 'AA'),
  ],
)
def test_what_the_compiler_cuts(axis, name, on, kinds):
  """An axis of more than one device that is left to it, or to shard_map."""
  sizes = tuple(2 if each == axis else 1 for each in ('data', 'tensor'))
  kind = {'A': jax.sharding.AxisType.Auto, 'M': jax.sharding.AxisType.Manual}
  mesh = jax.sharding.AbstractMesh(
    sizes, ('data', 'tensor'), tuple(kind[k] for k in kinds)
  )
  with mock.patch.object(jax.sharding, 'get_abstract_mesh', lambda: mesh):
    found = kernels.reason(name, heads(), heads(), None, True, on)
  manual = kinds[axis == 'tensor'] == 'M'
  fits = manual or (name == 'cudnn' and 'M' not in kinds)
  assert bool(found) != fits
  assert fits or f'{axis} 2 left' in found


def test_a_kernel_that_is_not_here_is_one_line(capsys, tmp_path):
  words = ['bench', '--config=configs/quickstart.py', '--steps=1']
  assert main([*words, '--config.model.attention_kernel=cudnn']) == 2
  said = capsys.readouterr().err
  assert said == (
    "error: model.attention_kernel=cudnn needs one of NVIDIA's GPUs, and this"
    ' runs on cpu\n'
  )
