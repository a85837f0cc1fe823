"""float16, and the scale without which its gradients would be 0 or inf."""

import itertools
import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import (
  apart,
  assert_same,
  batch,
  crossed,
  halves,
  moments,
  poisoned,
  program,
  uneven,
  walk,
)

from shared_tfm import accounting
from shared_tfm.errors import BadInput
from shared_tfm.layers.heads import _pooled
from shared_tfm.model import build
from shared_tfm.train import loss_scale
from shared_tfm.train import state as states

HALF = {'model__dtype': 'float16', 'optimizer__clip_norm': 1.0}


def scales(metrics):
  return [measured['loss_scale'] for measured in metrics]


# The scale itself.


@pytest.mark.parametrize(
  ('start', 'finite', 'values'),
  [
    (8, 'yyyyyyy', [8, 8, 16, 16, 16, 32, 32]),
    (8, 'yynyynyyy', [8, 8, 4, 4, 4, 2, 2, 2, 4]),
    (4, 'nnnnyyy', [2, 1, 1, 1, 1, 1, 2]),
    (2**39, 'yyyyyyyyy', [2**39] * 2 + [2**40] * 7),
  ],
)
def test_it_is_doubled_after_three_good_ones_and_halved_at_once(
  start, finite, values
):
  made = crossed(**HALF, train__loss_scale=start)
  scale, found = loss_scale.initial(made), []
  for letter in finite:
    scale = loss_scale.after(scale, jnp.array(letter == 'y'), every=3)
    found.append(float(scale.value))
  assert found == values


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float8'])
def test_other_dtypes_have_none(dtype):
  made = crossed(model__dtype=dtype)
  state = jax.eval_shape(lambda: states.initial(made, jnp.uint32(0)))
  assert state.scale is None
  assert 'loss_scale' not in walk(made, [batch(0)])[1][0]


@pytest.mark.parametrize(
  ('field', 'value', 'rule'),
  [
    ('loss_scale', 0, 'train.loss_scale must be at least 1, got 0'),
    ('loss_scale', 2**40, 'train.loss_scale must be below 1099511627776'),
    ('loss_scale_every', 0, 'train.loss_scale_every must be at least 1'),
    ('max_skipped', -1, 'train.max_skipped must be at least 0, got -1'),
  ],
)
def test_what_the_fields_may_hold(field, value, rule):
  with pytest.raises(BadInput) as error:
    crossed(**{f'train__{field}': value})
  assert str(error.value).startswith(rule)


# What it does to an update.


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 2])
def test_an_update_is_the_same_whatever_the_scale(count):
  """In float32 a power of 2 costs no bit: before clipping it is gone again."""
  made = crossed(optimizer__clip_norm=0.1, train__accumulate=count)
  run, state = program(made)
  one, large = (
    state.replace(scale=loss_scale.initial(crossed(**HALF, **given)))
    for given in ({'train__loss_scale': 1}, {'train__loss_scale': 2**10})
  )
  for read in (batch(0, uneven()), batch(1), poisoned(2, np.nan), batch(3)):
    one, left = run(one, read)
    large, right = run(large, read)
    assert (left.pop('loss_scale'), right.pop('loss_scale')) in (
      (1, 2**10),
      (1, 2**9),
    )
    assert_same(left, right)
  assert_same(large.params, one.params)
  assert_same(large.opt_state, one.opt_state)
  assert large.skipped == one.skipped == 1


@pytest.mark.slow
def test_small_gradients_are_kept():
  """Those of tokens of such small weight are nothing in float16 itself."""
  one = batch(0, np.full(uneven().shape, 1e-5))
  (exact,), _ = walk(crossed(), [one])
  found = []
  for scale in (1, 2**20):
    fields = {**HALF, 'optimizer__clip_norm': 0.0, 'train__loss_scale': scale}
    (state,), (measured,) = walk(crossed(**fields), [one])
    assert measured['skipped'] == 0
    found.append(apart(moments(state).mu, moments(exact).mu))
  assert found[0] > 0.05 > 0.01 > found[1]


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 4])
def test_training_in_float16_survives_overflow(count):
  """From a scale far too high, it comes to where float32 comes.

  At first whole steps overflow: float32 is given fewer.
  """
  parts = {'train__accumulate': count, 'optimizer__clip_norm': 1.0}
  made = crossed(**HALF | parts, train__loss_scale=2**32)
  _, metrics = walk(made, [batch(0)] * 48)
  skipped = int(metrics[-1]['skipped'])
  assert scales(metrics)[-1] == 2 ** (32 - skipped) < 2**22
  assert max(m['streak'] for m in metrics) > 10
  assert [m['streak'] for m in metrics[-20:]] == [0] * 20
  _, expected = walk(crossed(**parts), [batch(0)] * (48 - skipped // count))
  assert expected[-1]['loss'] < 0.3
  assert metrics[-1]['loss'] == pytest.approx(expected[-1]['loss'], abs=0.03)


@pytest.mark.slow
def test_a_scale_that_grows_too_far_comes_back():
  made = crossed(**HALF, train__loss_scale_every=2)
  _, metrics = walk(made, [batch(seed) for seed in range(40)])
  found = scales(metrics)
  assert max(found[:-6]) > 2**17 > 2**15 <= min(found)  # from 2**15 it grew
  falls = sum(b < a for a, b in itertools.pairwise(found))
  assert falls == metrics[-1]['skipped'] > 2


@pytest.mark.slow
def test_of_two_micro_batches_one_may_overflow():
  """The other is updated by, and unscaled by the scale that it was given."""
  fields = {'train__accumulate': 2, 'optimizer__clip_norm': 0.0}
  made, good = crossed(**HALF | fields), batch(0)
  (first,), (measured,) = walk(made, [halves(poisoned(1, np.inf), good)])
  (last,), _ = walk(made, [halves(good, poisoned(1, np.inf))])
  (exact,), _ = walk(
    crossed(**fields), [halves(batch(1, np.zeros(uneven().shape)), good)]
  )
  assert measured['loss_scale'] == 2**14 and measured['skipped'] == 1
  for found in (first, last):
    assert apart(moments(found).mu, moments(exact).mu) < 0.01


# The layers, and devices.

KINDS = {  # what has nothing to do with each other shares a network
  'encoder': {'family': 'encoder', 'embed_norm': True, 'embed_dim': 8},
  'grouped': {'num_kv_heads': 1, 'position': 'rotary', 'activation': 'swiglu'}
  | {'norm': 'rmsnorm', 'norm_position': 'post', 'tie_embeddings': False},
  'map': {'sharing__map_source': 'all', 'remat': 'full'},
  'kv': {'sharing__kv_source': 'all', 'norm': 'batchnorm'},
  'low rank': {'sharing__layer': 'all+none@2'},
  'soft': {'sharing__layer': 'soft:2'},
  'moeut': {'experts__num_ff': 4, 'experts__top_k': 2, 'norm': 'rmsnorm'},
  'switchhead': {'experts__num_attention': 4, 'experts__attention_top_k': 2},
  'act': {'depth__rule': 'act'},
  'all loops': {'depth__attention': 'all_loops'},
  'expert choice': {'depth__rule': 'expert_choice'},
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_layer_has_nearly_float32s_gradient(kind):
  fields = {f'model__{name}': value for name, value in KINDS[kind].items()}
  one = batch(0)
  if kind == 'encoder':
    one['mask'] = jnp.ones(one['inputs'].shape, bool)
  found = []
  for dtype in ('float32', 'float16', 'float8'):
    made = crossed(**fields, model__dtype=dtype)
    (state,), (measured,) = walk(made, [one])
    assert measured['skipped'] == 0
    found.append(moments(state).mu)
  exact, half, eight = found
  assert 0 < apart(half, exact) < 0.05
  assert 0 < apart(eight, exact) < 0.3


@pytest.mark.slow
def test_padding_is_attended_to_by_nobody():
  """In float16, too: what stands there changes no bit."""
  fields = {'family': 'encoder', 'vocab_size': 64, 'max_len': 8}
  made = crossed(
    model__dtype='float16', **{f'model__{k}': v for k, v in fields.items()}
  )
  model, (_, state) = build(made), program(made)
  inputs, mask = batch(0)['inputs'], np.ones((8, 8), bool)
  mask[:, 5:] = False
  other = jnp.where(mask, inputs, 3)
  said = [
    model.apply({'params': state.params}, read, mask_BL=jnp.asarray(mask))
    for read in (inputs, other)
  ]
  assert (inputs != other).any()
  np.testing.assert_array_equal(said[0][:, :5], said[1][:, :5])
  assert np.isfinite(said[0]).all()


CUTS = [
  {'mesh__data': 2, 'mesh__step': 'shard_map'},
  {'mesh__fsdp': 2, 'mesh__step': 'shard_map'},
  {'mesh__data': 2, 'mesh__step': 'jit', 'train__accumulate': 2},
  {'mesh__fsdp': 2, 'mesh__step': 'shard_map', 'train__accumulate': 2},
]


@pytest.mark.slow
def test_an_overflow_on_one_device_is_one_everywhere():
  """Two devices, a NaN in one's rows: dropped, halved, as by one device."""
  alone = [{}, {'train__accumulate': 2}]
  program = f"""
    import json, sys
    sys.path.insert(0, 'tests')
    import jax, numpy as np
    from test_step import batch, crossed, poisoned
    from shared_tfm.train import programs
    found = []
    for cuts in {alone + CUTS!r}:
      made = crossed(model__dtype='float16', data__source='copy', **cuts)
      compiled = programs.Programs(made)
      state, said = compiled.init(np.uint32(0)), []
      for one in (batch(0), poisoned(1, np.nan), batch(2), batch(3)):
        state, metrics = compiled.train(state, compiled.put(one))
        said.append([float(metrics[k]) for k in ('loss_scale', 'skipped')])
        said[-1].append(float(metrics['grad_norm']))
      found.append(said)
    print(json.dumps(found))
  """
  flags = os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=2'
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(program)],
    env={**os.environ, 'XLA_FLAGS': flags},
    capture_output=True,
    text=True,
    check=True,
  )
  whole, parts, *cut = np.array(json.loads(done.stdout))
  for cuts, two in zip(CUTS, cut, strict=True):
    assert two[:, 0].tolist() == [2**15, 2**14, 2**14, 2**14], cuts
    assert two[:, 1].tolist() == [0, 1, 1, 1], cuts
    one = parts if 'train__accumulate' in cuts else whole
    np.testing.assert_allclose(two, one, rtol=2e-2, err_msg=str(cuts))


def test_a_mean_is_not_summed_in_float16():
  """Its largest number is 65,504."""
  x_BLD = jnp.full((1, 1024, 2), 100.0, jnp.float16)
  assert (_pooled('mean', x_BLD, None) == 100).all()


def test_keys_and_values_take_two_bytes():
  made = crossed(model__dtype='float16')
  half, whole = (accounting.describe(each) for each in (made, crossed()))
  assert 2 * half['kv_bytes_per_token'] == whole['kv_bytes_per_token']
  assert half['weight_bytes'] == whole['weight_bytes']
