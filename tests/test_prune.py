"""Masks: what they are made of, when, and that nobody sees what they hide."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_adaptive
from flax.traverse_util import flatten_dict, unflatten_dict
from test_adaptive import batch, compilations, cut_as_whole, with_data
from test_encoder_decoder import params_of
from test_mesh import on_mesh
from test_stack import TOKENS

from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.config import pruning
from shared_tfm.errors import BadInput
from shared_tfm.model import build
from shared_tfm.sharing import masks
from shared_tfm.train import log, loop, prune, visits
from shared_tfm.train import programs as programs_of

text = test_adaptive.text
RANDOM = np.random.default_rng(0)


def crossed(method='magnitude', layer='cycle:2', model=None, train=None, **p):
  sizes = {'num_layers': 4, 'd_model': 16, 'num_heads': 2, 'max_len': 8}
  return configs.cross(
    {
      'model': {**sizes, 'sharing': {'layer': layer}, **(model or {})},
      'train': {
        'num_steps': 8,
        'batch_size': 4,
        'eval_every': 4,
        'eval_batches': 1,
        'checkpoint_every': 4,
        'log_every': 2,
        **(train or {}),
      },
      'prune': {'method': method, **p},
    }
  )


def started(config):
  compiled = programs_of.programs(config)
  return compiled, compiled.init(jnp.uint32(0))


def hidden(state):
  """What is masked, by path, as NumPy."""
  flat = flatten_dict(jax.device_get(state.variables['masks']))
  return {path: ~np.asarray(mask) for path, mask in flat.items()}


# What is masked.

SHAPES = {('stack', 'b'): (2, 4, 5), ('stack', 'up'): (3, 8, 6)}


def drawn():
  """Numbers of which some are equal."""
  flat = {p: RANDOM.integers(-9, 9, shape) for p, shape in SHAPES.items()}
  return {path: values.astype(np.float32) for path, values in flat.items()}


def lowest(scores, count):
  """Which are to be hidden: a loop, the first of equals first."""
  order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
  found = np.zeros(len(scores), bool)
  found[order[:count]] = True
  return found


def plain(scores, sparsity, scope, group):
  """Masks by loops."""
  if scope == 'global' and not group:
    flat = np.concatenate([s.ravel() for s in scores.values()])
    gone = lowest(flat, int(sparsity * len(flat)))
    ends = np.cumsum([s.size for s in scores.values()])[:-1]
    parts = np.split(gone, ends)
    return {
      path: ~part.reshape(scores[path].shape)
      for path, part in zip(scores, parts, strict=True)
    }
  found = {}
  for path, score in scores.items():
    keeps = np.ones(score.shape, bool)
    if group:
      rows, d_in, d_out = score.shape
      places = itertools.product(
        range(rows), range(0, d_in, group), [*range(d_out)]
      )
      for row, start, out in places:
        part = slice(start, start + group)
        gone = lowest(score[row, part, out], int(sparsity * group))
        keeps[row, part, out] = ~gone
    else:
      for row, each in enumerate(score):
        gone = lowest(each.ravel(), int(sparsity * each.size))
        keeps[row] = ~gone.reshape(each.shape)
    found[path] = keeps
  return found


OF = {
  'magnitude': lambda w, g, m: np.abs(w),
  'snip': lambda w, g, m: np.abs(w * g),
  'movement': lambda w, g, m: m,
}


@pytest.mark.parametrize('method', masks.SCORES)
@pytest.mark.parametrize(
  ('scope', 'given'), (('global', ''), ('tensor', ''), ('global', '1:4'))
)
def test_masks_are_those_that_loops_make(method, scope, given):
  weights, grads, moved = drawn(), drawn(), drawn()
  sparsity = 0.75 if given else 0.4
  p = configs.Prune(method=method, scope=scope, pattern=given)
  before = {path: RANDOM.random(w.shape) < 0.5 for path, w in weights.items()}
  group = 4 if given else 0
  trees = [unflatten_dict(t) for t in (before, weights, grads, moved)]
  found = masks.cut(
    *trees, prune._counts(p, trees[0], sparsity, group), method, group
  )
  scores = {
    path: OF[method](weights[path], grads[path], moved[path])
    for path in weights
  }
  expected = plain(scores, sparsity, scope, group)
  for path, mask in flatten_dict(found).items():
    np.testing.assert_array_equal(mask, expected[path])
  assert not np.array_equal(before[('stack', 'up')], mask)


def test_gradients_pass_a_mask_and_numbers_do_not():
  tree = {'a': jnp.array([1.0, np.inf, 3.0]), 'b': jnp.ones(2)}
  held = {'a': jnp.array([True, False, True])}
  found = masks.applied(tree, held)
  assert found['a'].tolist() == [1, 0, 3] and found['b'] is tree['b']
  slope = jax.grad(lambda t: masks.applied(t, held)['a'].sum() + t['b'][0])(
    tree
  )
  assert slope['a'].tolist() == [1, 1, 1] and slope['b'].tolist() == [1, 0]
  assert masks.applied(tree, {}) is tree


# When.


def test_the_cubic_schedule():
  p = crossed(
    schedule='cubic',
    sparsity=0.8,
    start=10,
    end=50,
    every=10,
    train={'num_steps': 100},
  ).prune
  assert [round(prune.curve(p, i), 6) for i in range(6)] == [
    0,
    0.4625,
    0.7,
    0.7875,
    0.8,
    0.8,
  ]


def test_when_masks_are_made():
  def due(**fields):
    pruner = prune.Pruner(crossed(train={'num_steps': 30}, **fields), None)
    return [step for step in range(30) if pruner.due(step)]

  assert due(method='none') == []
  assert due() == [0]
  assert due(start=7) == [7]
  cubic = {'schedule': 'cubic', 'start': 2, 'every': 5}
  assert due(**cubic, end=17) == [7, 12, 17]
  assert due(**cubic, end=15) == [7, 12, 15]
  assert due(**cubic) == [7, 12, 17, 22]  # to three quarters of the run
  assert due(schedule='adaptive', start=2, every=5, end=12) == [
    7,
    12,
    17,
    22,
    27,
  ]


def test_adaptive_sparsity_waits_for_the_loss():
  config = crossed(
    schedule='adaptive', sparsity=0.8, every=1, end=4, tolerance=0.1
  )
  _, state = started(config)
  pruner, asked = prune.Pruner(config, None), []
  for loss in (5.0, 6.0, 5.4, 5.9, 5.95, 9.0, 3.0, 1.0):
    known = {**state.variables['pruning'], 'loss': jnp.float32(loss)}
    state = state.replace(variables={**state.variables, 'pruning': known})
    state = pruner.apply(state, None)
    asked.append(round(float(state.variables['pruning']['sparsity']), 4))
  # Recovered: at most 1.1 times the loss before the last masks.
  assert asked == [0.4625, 0.4625, 0.7, 0.7875, 0.8, 0.8, 0.8, 0.8]
  assert pruner.done(state)
  config = dataclasses.replace(
    config, prune=dataclasses.replace(config.prune, tolerance=0.0)
  )
  _, state = started(config)
  assert not prune.Pruner(config, None).done(state)


# What the network sees.

KINDS = {
  'levels': {
    'layer': 'cycle:2+none@2+none@diagonal',
    'attention_key': '=attention.query',
  },
  'soft': {'layer': 'soft:2', 'attention': 'all|sequence:2'},
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_a_mask_computes_what_zeros_do(kind):
  config = crossed(model={'sharing': KINDS[kind]}, sparsity=0.6)
  state = prune.cut(config, started(config)[1], 0.6)
  fixed, params, others = prune.baked(config, state)
  tokens = batch(0)['inputs']

  def logits(config, params, **variables):
    model = build(config)
    return model.apply({'params': params, **variables}, tokens)

  masked = logits(config, state.params, **state.variables)
  np.testing.assert_array_equal(masked, logits(fixed, params, **others))
  assert np.abs(masked - logits(fixed, state.params)).max() > 1e-3
  # Each stored tensor by itself, and as many zeros as were counted.
  gone = hidden(state)
  count = sum(each.sum() for each in gone.values())
  assert count == pruning.removed(config)
  assert set(gone) == {p for p in gone if 'kernel' in p and 'diagonal' not in p}
  described = accounting.describe(config)['params']
  said = prune.concluded(config, state)
  assert said['non_zero_params'] == described['non_zero']
  assert said['non_zero_params'] == described['stored'] - count
  assert said['sparsity'] == pytest.approx(0.6, abs=1e-3)


@pytest.mark.slow
def test_both_stacks_of_a_model_are_masked():
  """The rows that a decoder borrows, too."""
  model = {
    'family': 'encoder_decoder',
    'sharing': {'layer': 'all', 'across': 'feed_forward'},
  }
  config = crossed(model=model, sparsity=0.9)
  config = dataclasses.replace(config, task=configs.Task(name='translation'))
  params = params_of(config)
  tree = {
    name: {
      'rows': masks.ones(params[name]['rows'], lambda p: p[-1] == 'kernel')
    }
    for name in ('encoder', 'stack')
  }
  counts = {masks.GLOBAL: jnp.int32(pruning.removed(config))}
  held = masks.cut(tree, params, None, None, counts, 'magnitude')
  assert 'feed_forward' not in held['stack']['rows']
  fixed = pruning.without(config)
  inputs = {'tokens_BL': TOKENS, 'source_BS': TOKENS[:, ::-1]}
  found = build(config).apply({'params': params, 'masks': held}, **inputs)
  zeros = {'params': masks.applied(params, held)}
  np.testing.assert_array_equal(found, build(fixed).apply(zeros, **inputs))
  assert pruning.removed(config) == sum(
    int((~mask).sum()) for mask in jax.tree.leaves(held)
  )


def test_only_some_parts_are_masked():
  config = crossed(only='feed_forward, attention.out', scope='tensor')
  state = prune.cut(config, started(config)[1], 0.5)
  gone = hidden(state)
  parts = {path[2:4] for path in gone}
  assert parts == {
    ('attention', 'out'),
    ('feed_forward', 'up'),
    ('feed_forward', 'down'),
  }
  for each in gone.values():
    assert (each.sum(axis=(1, 2)) == each[0].size // 2).all()
  assert sum(each.sum() for each in gone.values()) == pruning.removed(config)


@pytest.mark.slow
def test_two_of_every_four_inputs_are_kept():
  few = {'num_ff': 4, 'ff_width': 8, 'top_k': 2}
  config = crossed(pattern='2:4', model={'experts': few})
  assert config.prune.sparsity == 0.5
  state = prune.cut(config, started(config)[1], 0.5)
  gone = hidden(state)
  assert len(gone) == 6
  for path, each in gone.items():
    assert 'router' not in path
    *several, d_in, d_out = each.shape
    grouped = each.reshape(*several, d_in // 4, 4, d_out)
    assert (grouped.sum(axis=-2) == 2).all()
  # One of four, on the way there.
  for each in hidden(prune.cut(config, state, 0.4)).values():
    assert each.mean() == 0.25


# While it trains.


def row_kernel(tree):
  return np.asarray(tree['stack']['rows']['attention']['query']['kernel'])


@pytest.fixture(scope='module')
def snip():
  config = crossed('snip', layer='cycle:2', sparsity=0.7)
  return config, *started(config)


@pytest.mark.slow
def test_the_gradient_of_a_shared_row_is_that_of_all_its_visits(snip):
  """SNIP's scores: |w * g|, g added up over the layers of an unrolled model."""
  config, compiled, state = snip
  grads = compiled.gradient(state, batch(3))
  each = jax.jit(visits.visit_gradients(config))(state, batch(3))
  alone = row_kernel(each)
  assert len(alone) == 4
  summed = np.stack([alone[0] + alone[2], alone[1] + alone[3]])
  # There the mean is over the size of a batch, whose weights are all 1 here.
  np.testing.assert_allclose(row_kernel(grads), summed, rtol=1e-4, atol=1e-7)

  state = prune.Pruner(config, compiled).apply(state, batch(3))
  gone = hidden(state)
  scores = {
    path: np.abs(leaf * flatten_dict(jax.device_get(grads))[path])
    for path, leaf in flatten_dict(jax.device_get(state.params)).items()
    if path in gone
  }
  most = max(scores[path][gone[path]].max() for path in gone)
  least = min(scores[path][~gone[path]].min() for path in gone)
  assert most <= least
  assert sum(each.sum() for each in gone.values()) == pruning.removed(config)


def test_what_is_masked_rests(snip):
  """It has a gradient and is not moved, whatever the update rule remembers."""
  config, compiled, state = snip
  state, _ = compiled.train(state, batch(0))  # moments of all weights
  state = prune.cut(config, state, 0.7, compiled.gradient(state, batch(1)))
  gone = hidden(state)
  before = flatten_dict(jax.tree.map(np.array, jax.device_get(state.params)))
  full = flatten_dict(jax.device_get(compiled.gradient(state, batch(2))))
  for seed in range(3):
    state, metrics = compiled.train(state, batch(seed))
  after = flatten_dict(jax.device_get(state.params))
  for path, each in gone.items():
    np.testing.assert_array_equal(before[path][each], after[path][each])
    assert (before[path][~each] != after[path][~each]).mean() > 0.9
    assert np.abs(full[path][each]).max() > 0
  assert float(metrics['sparsity']) == np.float32(0.7)


@pytest.mark.slow
def test_movement_is_summed_and_weights_come_back():
  config = crossed(
    'movement', schedule='cubic', start=1, end=6, every=1, sparsity=0.8
  )
  compiled, state = started(config)
  pruner, total, back = prune.Pruner(config, compiled), 0, 0
  for step in range(7):
    given = batch(step)
    if pruner.due(step):
      before = hidden(state)
      state = pruner.apply(state, given)
      after = hidden(state)
      back += sum((before[path] & ~after[path]).sum() for path in after)
    weight = row_kernel(state.params).copy()
    total -= weight * row_kernel(compiled.gradient(state, given))
    state, _ = compiled.train(state, given)
  moved = state.variables['pruning']['moved']
  np.testing.assert_allclose(row_kernel(moved), total, rtol=1e-3, atol=1e-6)
  assert back > 0
  assert pruner.done(state)


def test_changing_the_sparsity_compiles_nothing():
  config = crossed(schedule='cubic', sparsity=0.9, start=0, end=6, every=1)
  compiled, state = started(config)
  program, pruner, seen = compiled.train, prune.Pruner(config, compiled), []

  def step():
    nonlocal state
    at = 1 + len(seen)
    assert pruner.due(at)
    state = jax.device_put(pruner.apply(state, batch(at)), compiled.where)
    state, metrics = program(state, batch(at))
    seen.append(float(metrics['sparsity']))

  masks.cut.clear_cache()
  assert compilations(step) > 0  # masks.cut, once
  size = masks.cut._cache_size()
  assert compilations(lambda: [step() for _ in range(3)]) == 0
  assert masks.cut._cache_size() == size and compiled.train is program
  assert seen == sorted(set(seen))


RUNS = {
  'movement': crossed(
    'movement',
    schedule='cubic',
    start=1,
    every=2,
    end=9,
    sparsity=0.8,
    model={'dropout': 0.1},
    train={'num_steps': 12},
  ),
  'adaptive': crossed(
    'snip',
    schedule='adaptive',
    every=2,
    end=6,
    tolerance=0.0,
    train={'num_steps': 12, 'accumulate': 2},
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', RUNS)
def test_a_run_that_was_cut_equals_one_that_was_not(name, text, tmp_path):
  config = with_data(RUNS[name], text)
  result, state = cut_as_whole(config, tmp_path)
  told = [
    line['sparsity']
    for line in log.read(tmp_path / 'cut')
    if line['kind'] == 'train'
  ]
  assert told == sorted(told) and told[0] < told[-1]
  assert result['sparsity'] == pytest.approx(told[-1], abs=1e-3)
  stored = accounting.parameters(config.model)['stored']
  gone = sum(each.sum() for each in hidden(state).values())
  assert result['non_zero_params'] == stored - gone
  if name == 'movement':
    # The best is one of those that have all their zeros.
    best = loop.load(tmp_path / 'cut', 'best')[1]
    assert int(best.step) == 12 and told[-1] == np.float32(0.8)


@pytest.mark.slow
def test_training_makes_up_for_what_is_masked(text, tmp_path):
  """Four fifths of the weights: at once and no more, or step by step."""

  def loss(name, **fields):
    train = {'num_steps': 80, 'eval_every': 80, 'checkpoint_every': 80}
    config = crossed(
      sparsity=0.8,
      every=4,
      end=60,
      train={**train, 'batch_size': 8, 'log_every': 10},
      **fields,
    )
    rate = dataclasses.replace(config.optimizer, learning_rate=5e-3)
    config = dataclasses.replace(config, optimizer=rate)
    result = loop.train(with_data(config, text), tmp_path / name)
    assert result.get('sparsity', 0.8) == pytest.approx(0.8, abs=1e-3)
    return result['validation_loss']

  dense = loss('dense', method='none')
  at_once = loss('once', start=79)
  cubic = loss('cubic', schedule='cubic', start=8)
  adaptive = loss('adaptive', schedule='adaptive', start=8)
  assert dense < cubic < at_once
  assert dense < adaptive < at_once
  assert cubic - dense < (at_once - dense) / 2


@pytest.mark.slow
def test_masks_are_cut_like_weights():
  """On 8 devices: values and masks are those of one, nothing more is sent."""
  for found in on_mesh('pruned'):
    here = f'{found["mesh"]} {found["step"]}'
    assert found['gradients'] < 2e-6, here
    assert found['params'] < 2e-5, here
    assert found['losses'] < 2e-6, here
    assert found['placed'], here
    assert found['masks'], here
    if found['step'] == 'auto' and set(found['mesh']) <= {'data', 'fsdp'}:
      assert found['looped'] == 0, here


# Bad input.


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'method': 'magnitud'}, "did you mean 'magnitude'"),
    ({'schedule': 'cubik'}, "did you mean 'cubic'"),
    ({'sparsity': 1.0}, 'prune.sparsity must be below 1, got 1.0'),
    ({'start': 8}, 'between 0 and train.num_steps - 1 = 7 .*, got 8'),
    ({'method': 'movement'}, 'must lie between 1 and .* movement, got 0'),
    (
      {'schedule': 'cubic', 'start': 3, 'end': 3},
      'prune.end must lie behind start 3 and before train.num_steps 8, got 3',
    ),
    ({'schedule': 'cubic', 'end': 8}, 'train.num_steps 8, got 8'),
    ({'pattern': '4:2'}, r"N:M, such as 2:4, .* got '4:2'"),
    ({'pattern': 'two'}, "got 'two'"),
    (
      {'pattern': '2:4', 'sparsity': 0.9},
      'prune.pattern 2:4 has a sparsity of 0.5, got prune.sparsity 0.9',
    ),
    (
      {'pattern': '2:4', 'layer': 'all+none@2'},
      'inputs divisible by 4, got 2 of stack.attention.query.kernel.b of level',
    ),
    ({'only': 'feed_forwards'}, "did you mean 'feed_forward'"),
    ({'only': 'norm'}, "unknown component in prune.only 'norm'"),
    ({'every': 0}, 'prune.every must be at least 1'),
  ],
)
def test_what_cannot_be_pruned_is_said(fields, message):
  with pytest.raises(BadInput, match=message) as told:
    crossed(**fields)
  assert '\n' not in str(told.value)


def test_tables_that_change_are_not_pruned():
  with pytest.raises(BadInput, match=r'adapt.method merge moves them'):
    configs.cross(
      {'adapt': {'method': 'merge'}, 'prune': {'method': 'magnitude'}}
    )
