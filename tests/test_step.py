"""The training step: one update, micro-batches, batches that must not count."""

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shared_tfm import config
from shared_tfm.model import build
from shared_tfm.train import loss_scale, optimizer
from shared_tfm.train import state as states
from shared_tfm.train import step as steps

V, L, B = 16, 8, 8
BASE = {
  'model.num_layers': 2,
  'model.d_model': 16,
  'model.num_heads': 2,
  'model.vocab_size': V,
  'model.max_len': L,
  'model.use_bias': False,  # a bias of keys has no gradient but rounding
  'model.sharing.layer': 'all',
  'model.sharing.norm': 'none',
  'optimizer.learning_rate': 1e-2,
  'optimizer.clip_norm': 0.0,
  'train.batch_size': B,
}
B1 = 0.9  # the default


def crossed(**fields):
  """A config of BASE and `fields`, whose '__' stand for dots."""
  given = {name.replace('__', '.'): value for name, value in fields.items()}
  flat = {tuple(k.split('.')): v for k, v in (BASE | given).items()}
  return config.cross(flax.traverse_util.unflatten_dict(flat))


@functools.cache
def program(made):
  """The compiled step of a config, and its first state."""
  state = first(crossed_as(made, dtype='float32', accumulate=1))
  state = state.replace(scale=loss_scale.initial(made))
  return jax.jit(steps.train_step(made)), state


@functools.cache
def first(made):
  """The state of seed 0, which no dtype changes but for its scale."""
  return jax.jit(functools.partial(states.initial, made))(jnp.uint32(0))


def crossed_as(made, dtype, accumulate):
  """The same config, in a dtype and in so many micro-batches."""
  return dataclasses.replace(
    made,
    model=dataclasses.replace(made.model, dtype=dtype),
    train=dataclasses.replace(made.train, accumulate=accumulate),
  )


def batch(seed, weights=None):
  random = np.random.default_rng(seed)
  inputs, targets = random.integers(V, size=(2, B, L))
  weights = np.ones((B, L)) if weights is None else weights
  return {
    'inputs': jnp.asarray(inputs, jnp.int32),
    'targets': jnp.asarray(targets, jnp.int32),
    'weights': jnp.asarray(weights, jnp.float32),
  }


def uneven():
  """Weights of which one of four micro-batches has a single token."""
  weights = np.random.default_rng(7).random((B, L)) < 0.7
  weights[2:4] = False
  weights[3, 5] = True
  return weights


def halves(left, right):
  """The first rows of one batch, and those of another as the last."""
  return jax.tree.map(
    lambda a, b: jnp.concatenate([a[: B // 2], b[: B // 2]]), left, right
  )


def walk(made, batches):
  """The state after each batch, and the metrics of each."""
  run, state = program(made)
  states, metrics = [], []
  for one in batches:
    state, measured = run(state, one)
    states.append(state)
    metrics.append({name: float(value) for name, value in measured.items()})
  return states, metrics


def assert_same(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


def assert_close(left, right, rtol=1e-4, atol=1e-6):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    left,
    right,
  )


def apart(left, right):
  """The distance of two trees, as a part of the second one's length."""
  distance = optax.tree.norm(optax.tree.sub(left, right))
  return float(distance / optax.tree.norm(right))


def moments(state):
  """Adam's state, wherever the chain has put it."""

  def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)

  leaves = jax.tree.leaves(state.opt_state, is_leaf=is_adam)
  (found,) = filter(is_adam, leaves)
  return found


@jax.jit
def cross_entropy(params, one):
  """Nats per weighted token and their gradient, as a plain formula."""

  def mean(params):
    logits = build(crossed()).apply({'params': params}, one['inputs'])
    scores = jax.nn.log_softmax(logits)
    nats = -jnp.take_along_axis(scores, one['targets'][..., None], -1)[..., 0]
    return jnp.sum(nats * one['weights']) / jnp.sum(one['weights'])

  return jax.value_and_grad(mean)(params)


# One update.


@pytest.mark.slow
@pytest.mark.parametrize('name', config.CHOICES['optimizer.name'])
def test_every_optimizer_learns_a_batch(name):
  rates = {'adamw': 1e-2, 'adafactor': 0.1, 'lion': 3e-3}
  rate = rates.get(name, 0.03)
  made = crossed(optimizer__name=name, optimizer__learning_rate=rate)
  _, metrics = walk(made, [batch(0)] * 30)
  losses = [measured['loss'] for measured in metrics]
  assert losses[0] == pytest.approx(np.log(V), abs=1)
  assert losses[-1] < losses[0] - 1
  assert metrics[-1]['skipped'] == 0


@pytest.mark.slow
def test_the_metrics_of_a_step():
  made = crossed(
    optimizer__schedule='linear',
    optimizer__warmup_steps=4,
    optimizer__clip_norm=1e-3,
  )
  one = batch(0, uneven())
  states, metrics = walk(made, [one] * 3)
  before = program(made)[1]
  for step, (measured, after) in enumerate(zip(metrics, states, strict=True)):
    loss, gradient = cross_entropy(before.params, one)
    assert measured['loss'] == pytest.approx(float(loss), rel=1e-5)
    norm = float(optax.tree.norm(gradient))  # before it is clipped
    assert measured['grad_norm'] == pytest.approx(norm, rel=1e-4)
    assert measured['learning_rate'] == pytest.approx(1e-2 * step / 4)
    assert after.step == step + 1
    before = after


def test_three_golden_steps():
  """To be updated only where other numbers were meant: see the diff for why."""
  _, metrics = walk(crossed(), [batch(0, uneven()), batch(1), batch(2)])
  losses = [measured['loss'] for measured in metrics]
  norms = [measured['grad_norm'] for measured in metrics]
  assert losses == pytest.approx([3.380834, 3.149467, 3.087490], rel=1e-5)
  assert norms == pytest.approx([2.271640, 1.557880, 1.352702], rel=1e-5)


def test_the_rule_is_given_the_gradient_of_the_mean_over_tokens():
  made, one = crossed(), batch(0, uneven())
  (state,), _ = walk(made, [one])
  _, gradient = cross_entropy(program(made)[1].params, one)
  expected = optax.tree.scale(1 - B1, gradient)
  assert_close(moments(state).mu, expected, atol=1e-7)


@pytest.mark.parametrize('count', [1, 4])
def test_evaluation_sums_what_a_loop_would_sum(count):
  made, one = crossed(train__accumulate=count), batch(3, uneven())
  _, state = program(made)
  sums, said = jax.jit(steps.eval_step(made))(state, one)
  logits = build(made).apply({'params': state.params}, one['inputs'])
  scores = np.asarray(jax.nn.log_softmax(logits), np.float64)
  expected = dict.fromkeys(('loss', 'weight', 'correct'), 0.0)
  for row, place in np.argwhere(np.asarray(one['weights']) > 0):
    target = int(one['targets'][row, place])
    expected['loss'] -= scores[row, place, target]
    expected['weight'] += 1
    expected['correct'] += scores[row, place].argmax() == target
  assert {k: float(v) for k, v in sums.items()} == pytest.approx(expected)
  assert 0 < expected['correct'] < expected['weight']
  assert not said


def test_evaluation_says_something_of_every_row_in_its_place():
  fields = {
    'model__family': 'encoder',
    'model__num_classes': 3,
    'task__name': 'classification',
    'data__source': 'trec',
  }
  one = {
    'inputs': batch(4)['inputs'],
    'mask': jnp.ones((B, L), bool),
    'targets': jnp.arange(B) % 3,
    'weights': jnp.ones(B),
  }
  made = [crossed(**fields, train__accumulate=count) for count in (1, 4)]
  _, state = program(made[0])
  whole, parts = (jax.jit(steps.eval_step(each))(state, one) for each in made)
  assert parts[1]['scores'].shape == (B, 3)
  assert_close(parts, whole)


def test_micro_batches_bound_the_memory_of_an_evaluation():
  held = []
  for count in (1, 4):
    made = crossed(train__accumulate=count, model__vocab_size=4096)
    state, one = program(made)[1], batch(5)
    compiled = jax.jit(steps.eval_step(made)).lower(state, one).compile()
    held.append(compiled.memory_analysis().temp_size_in_bytes)
  logits = B * L * 4096 * 4
  assert held[0] >= logits
  assert held[1] < logits / 2


def test_batch_statistics_have_a_slot_for_every_visit():
  made = crossed(model__norm='batchnorm')
  (state,), _ = walk(made, [batch(0)])
  for leaf in jax.tree.leaves(state.variables['batch_stats']['stack']):
    assert leaf.shape[0] == 2
    assert (leaf[0] != leaf[1]).any()


def test_a_state_starts_from_its_seed_alone():
  made = crossed()
  init = jax.jit(functools.partial(states.initial, made))
  first, again, other = (init(jnp.uint32(seed)) for seed in (1, 1, 2))
  assert_same(first, again)
  assert (first.key != other.key).any()
  differ = jax.tree.map(
    lambda a, b: bool((a != b).any()), first.params, other.params
  )
  drawn = [
    differs
    for path, differs in jax.tree.leaves_with_path(differ)
    if path[-1].key in ('kernel', 'embedding')
  ]
  assert len(drawn) == 8 and all(drawn)
  rule = optimizer.make(made)
  assert_same(first.opt_state, rule.init(first.params))
  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), first
  )
  assert states.shapes(made) == shapes


# Micro-batches.


@pytest.mark.parametrize('weights', [None, uneven()], ids=['even', 'uneven'])
@pytest.mark.parametrize('count', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_micro_batches_equal_the_large_batch(count, weights):
  batches = [batch(seed, weights) for seed in range(3)]
  large, whole = walk(crossed(), batches)
  small, parts = walk(crossed(train__accumulate=count), batches)
  for update, (one, other) in enumerate(zip(large, small, strict=True), 1):
    assert_close(other.params, one.params, atol=1e-6)
    ours, theirs = moments(other), moments(one)
    assert ours.count == theirs.count == update == other.step
    assert_close(ours.mu, theirs.mu, atol=1e-7)
    assert_close(ours.nu, theirs.nu, atol=1e-9)
  for one, other in zip(whole, parts, strict=True):
    for metric in ('loss', 'grad_norm'):
      assert other[metric] == pytest.approx(one[metric], rel=1e-4)


@pytest.mark.slow
def test_a_mean_of_the_means_of_micro_batches_would_be_another_gradient():
  made, one = crossed(train__accumulate=4), batch(0, uneven())
  (state,), _ = walk(made, [one])
  params = program(made)[1].params
  cuts = [slice(row, row + 2) for row in range(0, B, 2)]
  parts = [{k: v[cut] for k, v in one.items()} for cut in cuts]
  means = [cross_entropy(params, part)[1] for part in parts]
  naive = jax.tree.map(lambda *gradients: sum(gradients) / 4, *means)
  found = optax.tree.scale(1 / (1 - B1), moments(state).mu)
  assert apart(found, cross_entropy(params, one)[1]) < 1e-4
  assert apart(found, naive) > 0.3


def test_a_micro_batch_without_any_weight_is_no_part_of_the_mean():
  weights = np.ones((B, L))
  weights[B // 2 :] = 0
  one = batch(0, weights)
  (large,), _ = walk(crossed(), [one])
  (small,), _ = walk(crossed(train__accumulate=2), [one])
  assert_close(small.params, large.params)
  assert small.skipped == 0


def test_a_batch_without_any_weight_changes_nothing_but_the_step():
  made, one = crossed(train__accumulate=2), batch(0)
  nothing = {**one, 'weights': jnp.zeros((B, L))}
  (before, after), _ = walk(made, [one, nothing])
  assert_same(after.params, before.params)
  assert_same(after.opt_state, before.opt_state)
  assert (after.step, after.skipped) == (2, 0)


def test_the_state_holds_no_micro_batches():
  shapes = [
    jax.tree.map(jnp.shape, program(crossed(train__accumulate=count))[1])
    for count in (1, 4)
  ]
  assert shapes[0] == shapes[1]


# Dropout. At a rate of 0 the parameters stay, but the moments do not.

DROPS = {
  'model__dropout': 0.3,
  'optimizer__learning_rate': 0.0,
  'train__accumulate': 2,
}


@pytest.mark.slow
def test_dropout_acts_in_training_with_a_new_mask_at_every_step():
  made, one = crossed(**DROPS), batch(0)
  _, metrics = walk(made, [one] * 3)
  losses = [measured['loss'] for measured in metrics]
  plain, _ = cross_entropy(program(made)[1].params, one)
  assert len({*losses, float(plain)}) == 4
  _, again = walk(made, [one] * 3)
  assert [measured['loss'] for measured in again] == losses


def test_every_micro_batch_has_a_dropout_mask_of_its_own():
  made, one = crossed(**DROPS), batch(0)
  (twice,), _ = walk(made, [halves(one, one)])
  (once,), _ = walk(made, [halves(one, batch(0, np.zeros((B, L))))])
  assert apart(moments(twice).mu, moments(once).mu) > 0.05


# Batches that must not count.

BAD = {'nan': np.nan, 'inf': np.inf, 'overflow': 3e38}


def poisoned(seed, value):
  one = batch(seed)
  return {**one, 'weights': one['weights'].at[1, 3].set(value)}


@pytest.mark.parametrize(
  'norm', ['layernorm', pytest.param('batchnorm', marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('kind', BAD)
def test_a_bad_batch_changes_nothing_but_the_counts(kind, norm):
  made = crossed(model__norm=norm)
  (before, after), metrics = walk(made, [batch(0), poisoned(1, BAD[kind])])
  assert_same(after.params, before.params)
  assert_same(after.opt_state, before.opt_state)
  assert_same(after.variables, before.variables)
  assert_same(after.key, before.key)
  assert (before.skipped, after.skipped) == (0, 1)
  assert (before.step, after.step) == (1, 2)
  assert [measured['skipped'] for measured in metrics] == [0, 1]
  assert not np.isfinite(metrics[1]['grad_norm'])


@pytest.mark.parametrize(
  'norm', ['layernorm', pytest.param('batchnorm', marks=pytest.mark.slow)]
)
def test_after_a_bad_batch_all_goes_on_as_if_it_had_never_been(norm):
  made = crossed(model__norm=norm)
  good, bad = [batch(0), batch(1), batch(2)], poisoned(3, np.nan)
  straight, _ = walk(made, good)
  around, metrics = walk(made, [bad, good[0], bad, bad, good[1], good[2]])
  assert_same(around[-1].params, straight[-1].params)
  assert_same(around[-1].opt_state, straight[-1].opt_state)
  assert_same(around[-1].variables, straight[-1].variables)
  assert metrics[-1]['skipped'] == 3


def test_of_micro_batches_only_the_bad_one_is_dropped():
  made, good = crossed(train__accumulate=2), batch(0)
  (dropped,), _ = walk(made, [halves(good, poisoned(1, np.inf))])
  (absent,), _ = walk(made, [halves(good, batch(1, np.zeros((B, L))))])
  assert (dropped.skipped, absent.skipped) == (1, 0)
  assert_same(dropped.params, absent.params)
  assert_same(dropped.opt_state, absent.opt_state)
  assert apart(dropped.params, program(made)[1].params) > 1e-3


@pytest.mark.slow
def test_batch_statistics_come_from_good_micro_batches_alone():
  made = crossed(model__norm='batchnorm', train__accumulate=2)
  good, bad = batch(0), poisoned(1, np.nan)
  (first,), _ = walk(made, [halves(good, bad)])
  (last,), _ = walk(made, [halves(bad, good)])
  (both,), _ = walk(made, [halves(good, good)])
  assert_same(first.variables, last.variables)
  assert apart(both.variables, first.variables) > 1e-3


def test_an_update_of_bad_micro_batches_alone_does_not_happen():
  made, good = crossed(train__accumulate=2), batch(0)
  bad = halves(poisoned(1, np.nan), poisoned(2, np.inf))
  (before, after, then), _ = walk(made, [good, bad, good])
  assert after.skipped == 2
  assert_same(after.params, before.params)
  assert_same(moments(after), moments(before))
  straight, _ = walk(made, [good, good])
  assert_same(then.params, straight[-1].params)
  assert_same(moments(then), moments(straight[-1]))
