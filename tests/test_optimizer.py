"""The update rule: schedules, and what a bank of rows asks of every rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shared_tfm import config
from shared_tfm.train import optimizer

NAMES = config.CHOICES['optimizer.name']
RULES = [
  name
  if name in ('adamw', 'muon')
  else pytest.param(name, marks=pytest.mark.slow)
  for name in NAMES
]
SCHEDULES = config.CHOICES['optimizer.schedule']
B1, B2, EPS = 0.9, 0.98, 1e-8
RATE, DECAY = 0.1, 0.25


def crossed(steps=10, accumulate=1, **fields):
  train = {'num_steps': steps, 'batch_size': 16, 'accumulate': accumulate}
  return config.cross({'optimizer': fields, 'train': train})


def rates(name, steps, warmup, **fields):
  """The rate at every step up to and with the last; the peak is 1."""
  fields |= {'schedule': name, 'warmup_steps': warmup, 'learning_rate': 1.0}
  schedule = optimizer.schedule(crossed(steps, **fields))
  return np.asarray(jax.vmap(schedule)(jnp.arange(steps + 1)))


# Schedules.


@pytest.mark.parametrize(
  ('name', 'values'),
  [
    ('constant', {0: 1, 5: 1, 10: 1}),
    ('linear', {0: 1, 1: 0.91, 5: 0.55, 10: 0.1}),
    ('exponential', {0: 1, 2: 0.630957, 5: 0.316228, 10: 0.1}),
    ('cosine', {0: 1, 2: 0.914058, 5: 0.55, 8: 0.185942, 10: 0.1}),
    ('rsqrt', {0: 1, 3: 0.5, 8: 1 / 3}),
    ('wsd', {0: 1, 5: 1, 8: 1, 9: 0.55, 10: 0.1}),
  ],
)
def test_rates_without_warm_up(name, values):
  at = rates(name, 10, 0)
  assert {t: at[t] for t in values} == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize(
  ('name', 'values'),
  [
    ('constant', {8: 1, 12: 1}),
    ('linear', {5: 0.8875, 8: 0.55, 12: 0.1}),
    ('exponential', {6: 0.562341, 8: 0.316228, 12: 0.1}),
    ('cosine', {6: 0.868198, 8: 0.55, 12: 0.1}),
    ('rsqrt', {5: 0.894427, 9: 2 / 3, 12: 0.577350}),
    ('wsd', {10: 1, 11: 0.55, 12: 0.1}),  # the last fifth: 2 of 12 steps
  ],
)
def test_rates_after_four_steps_of_warm_up(name, values):
  values = {0: 0, 1: 0.25, 2: 0.5, 3: 0.75, 4: 1, **values}
  at = rates(name, 12, 4)
  assert {t: at[t] for t in values} == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize('warmup', [0, 1, 7, 40, 60])
@pytest.mark.parametrize('name', SCHEDULES)
def test_every_schedule_rises_to_its_peak_and_never_again(name, warmup):
  at = rates(name, 60, warmup, final_fraction=0.25, decay_fraction=0.5)
  np.testing.assert_allclose(
    at[:warmup], np.arange(warmup) / max(warmup, 1), atol=1e-6
  )
  assert at[warmup] == 1
  assert (np.diff(at[warmup:]) <= 1e-6).all()
  if warmup < 60:
    ends = {
      'constant': 1,
      'rsqrt': (1 + (60 - warmup) / max(warmup, 1)) ** -0.5,
    }
    assert at[60] == pytest.approx(ends.get(name, 0.25), rel=1e-5)


def test_a_rate_may_fall_to_nothing():
  for name in ('linear', 'exponential', 'cosine', 'wsd'):
    assert rates(name, 10, 2, final_fraction=0.0)[10] == 0


# Rules. Leaves inside 'rows' have one for every owner.


def tree(seed, rows=2, scale=1.0):
  """A parameter tree, or a gradient of one, as a model has them."""
  random = np.random.default_rng(seed)

  def leaf(*shape):
    return jnp.asarray(scale * random.normal(size=shape), jnp.float32)

  return {
    'stack': {
      'rows': {
        'up': {'kernel': leaf(rows, 6, 12), 'bias': leaf(rows, 12)},
        'down': {'kernel': leaf(rows, 12, 6), 'bias': leaf(rows, 6)},
        'norm': {'scale': leaf(rows, 6)},
      }
    },
    'head': {'kernel': leaf(6, 8)},
    'embedding': {'embedding': leaf(8, 6)},
  }


def separate(tree):
  """The same tree with the rows of the bank as matrices of their own."""
  banks = jax.tree.leaves(tree['stack'])
  rows = [
    jax.tree.map(lambda leaf: leaf[i], tree['stack'])  # noqa: B023
    for i in range(len(banks[0]))
  ]
  return {f'row{i}': row for i, row in enumerate(rows)} | {
    'head': tree['head'],
    'embedding': tree['embedding'],
  }


def made(name, **fields):
  """The rule of a config at a constant rate, without clipping."""
  fields = {
    'schedule': 'constant',
    'learning_rate': RATE,
    'weight_decay': DECAY,
    'clip_norm': 0.0,
  } | fields
  return optimizer.make(crossed(name=name, b1=B1, b2=B2, eps=EPS, **fields))


def walk(rule, params, gradients):
  """Parameters after each of several updates."""
  state, after = rule.init(params), []
  update = jax.jit(rule.update)
  for gradient in gradients:
    step, state = update(gradient, state, params)
    params = optax.apply_updates(params, step)
    after.append(params)
  return after


def assert_close(left, right, rtol=1e-5, atol=1e-6):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    left,
    right,
  )


def kernels(params):
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


def plain(name):
  """What Optax itself offers, for matrices that stand alone."""
  decay = {'weight_decay': DECAY, 'mask': kernels}
  if name == 'adamw':
    return optax.adamw(RATE, B1, B2, EPS, **decay)
  if name == 'lion':
    return optax.lion(RATE, B1, B2, **decay)
  if name == 'lamb':
    return optax.lamb(RATE, B1, B2, EPS, **decay)

  def matrices(params):
    whole = optax.contrib.MuonDimensionNumbers()
    return jax.tree.map(
      lambda is_one: whole if is_one else None, kernels(params)
    )

  return optax.contrib.muon(
    RATE,
    beta=B1,
    eps=EPS,
    weight_decay=DECAY,
    adam_b1=B1,
    adam_b2=B2,
    muon_weight_dimension_numbers=matrices,
  )


# Adafactor has its own test below: it clips each leaf as a whole.
@pytest.mark.parametrize('name', [n for n in NAMES if n != 'adafactor'])
def test_every_row_of_a_bank_is_a_matrix_of_its_own(name):
  # The rows differ in size, so that a norm over both of them would be seen.
  uneven = jnp.array([1.0, 30.0])
  params, *gradients = (
    {
      **made,
      'stack': jax.tree.map(
        lambda leaf: leaf * uneven.reshape(-1, *[1] * (leaf.ndim - 1)),
        made['stack'],
      ),
    }
    for made in map(tree, range(4))
  )
  ours = walk(made(name), params, gradients)
  theirs = walk(plain(name), separate(params), map(separate, gradients))
  for left, right in zip(ours, theirs, strict=True):
    assert_close(separate(left), right, rtol=1e-4, atol=1e-5)


def test_adafactor_on_a_bank_of_one_row_is_adafactor_on_the_matrix():
  random = np.random.default_rng(0)
  one, *gradients = jnp.asarray(random.normal(size=(3, 128, 256)), jnp.float32)
  ours = walk(
    made('adafactor', weight_decay=0.0),
    {'stack': {'kernel': one[None]}},
    [{'stack': {'kernel': g[None]}} for g in gradients],
  )
  theirs = walk(optax.adafactor(RATE), one, gradients)
  for left, right in zip(ours, theirs, strict=True):
    assert_close(left['stack']['kernel'][0], right)


@pytest.mark.slow
@pytest.mark.parametrize('mask', ['kernel', 'kernel,scale', ''])
@pytest.mark.parametrize('name', RULES)
def test_without_gradients_only_the_named_leaves_shrink(name, mask):
  params = tree(0)
  zero = jax.tree.map(jnp.zeros_like, params)
  (after,) = walk(made(name, decay_mask=mask), params, [zero])
  # LAMB's trust ratio makes a step as large as its parameters, times the rate.
  factor = 1 - RATE if name == 'lamb' else 1 - RATE * DECAY
  names = mask.split(',') if mask else ['kernel', 'bias', 'scale', 'embedding']
  expected = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf * (factor if path[-1].key in names else 1), params
  )
  assert_close(after, expected)


@pytest.mark.parametrize('mask', ['kernel', ''])
def test_factors_decay_like_what_they_make_and_coefficients_never(mask):
  factors = {'a': jnp.ones((2, 3, 1)), 'b': jnp.ones((2, 1, 3))}
  part = {'kernel': factors, 'bias': jnp.ones((2, 3))}
  params = {'stack': {'level_1': part, 'mix': {'kernel': jnp.ones((2, 4))}}}
  zero = jax.tree.map(jnp.zeros_like, params)
  (after,) = walk(made('adamw', decay_mask=mask), params, [zero])
  left = jax.tree.map(lambda leaf: float(leaf.min()), after['stack'])
  less = pytest.approx(1 - RATE * DECAY)
  assert left['level_1']['kernel'] == {'a': less, 'b': less}
  assert left['level_1']['bias'] == (1 if mask else less)
  assert left['mix'] == {'kernel': 1}


@pytest.mark.parametrize('name', RULES)
def test_at_a_rate_of_nothing_nothing_changes(name):
  params, gradient = tree(0), tree(1)
  rule = made(name, warmup_steps=5, decay_mask='')  # the rate begins at 0
  first, second = walk(rule, params, [gradient, gradient])
  jax.tree.map(np.testing.assert_array_equal, first, params)
  moved = jax.tree.map(lambda a, b: bool((a != b).all()), second, params)
  assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize('name', RULES)
def test_a_gradient_is_clipped_by_its_norm_over_all_leaves(name):
  params = tree(0)
  small, huge = tree(1, scale=1e-3), tree(2, scale=1e4)
  assert optax.tree.norm(small) < 0.5 < optax.tree.norm(huge)
  unit = jax.tree.map(lambda g: g * (0.5 / optax.tree.norm(huge)), huge)
  gradients = [small, huge, small]
  clipped = walk(made(name, clip_norm=0.5), params, gradients)[-1]
  expected = walk(made(name), params, [small, unit, small])[-1]
  assert_close(clipped, expected, rtol=1e-4, atol=1e-5)
  free = walk(made(name), params, gradients)[-1]
  assert optax.tree.norm(optax.tree.sub(free, clipped)) > 1e-2
