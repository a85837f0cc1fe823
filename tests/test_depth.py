"""Rules of depth against plain loops over tokens, in NumPy.

Most tests run a rule over a core that is a small function, so that what is
tested is the rule alone; at the end whole models are run.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm import config as configs
from shared_tfm.config.loops import Loops, loops
from shared_tfm.config.loops import exits as exits_of
from shared_tfm.config.rerun import rerun
from shared_tfm.errors import BadInput
from shared_tfm.layers.attention import Attention
from shared_tfm.layers.context import Context
from shared_tfm.layers.cross_entropy import cross_entropy
from shared_tfm.layers.embedding import Embedding
from shared_tfm.layers.layer import Layer
from shared_tfm.model import build, depth, halting, leaving, recurrence, routing
from shared_tfm.model.visit import Carry
from shared_tfm.train import state as states
from shared_tfm.train import step as steps
from shared_tfm.train.programs import Programs

B, L, D, R = 2, 6, 4, 4
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(B, L, D)).astype(np.float32)
WEIGHTS = 0.7 * RANDOM.normal(size=(R, D, D)).astype(np.float32)
MASK = np.arange(L)[None] < np.array([[L], [L - 2]])


def block(x, i, weights=WEIGHTS):
  """What a loop does to every position by itself."""
  return np.tanh(x @ weights[min(i, R - 1)]) + x


def core_of(controls=None, times=R, weights=WEIGHTS, train=True, **fields):
  """A core whose loop is `block`, mixed with the visible past."""
  model = configs.Model(depth=configs.Depth(**fields), d_model=D)

  def run(weights, state, i, context):
    x_BLD = state.x_BLD
    picked = jnp.asarray(weights)[jnp.minimum(i, R - 1)]
    return state.replace(x_BLD=jnp.tanh(x_BLD @ picked) + x_BLD)

  return depth.Core(
    model=model,
    loops=Loops(0, 1, times, 0),
    controls=controls or {},
    run=functools.partial(run, weights),
    frozen=functools.partial(run, jax.lax.stop_gradient(weights)),
    context=Context(jnp.broadcast_to(jnp.arange(L), (B, L)), jnp.asarray(MASK)),
    train=train,
    key=jax.random.key(3),
  )


def carry(x=X):
  return Carry(jnp.asarray(x))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


HALT = {
  'kernel': RANDOM.normal(size=(D, 1)).astype(np.float32),
  'bias': np.array([0.1], np.float32),
}


@pytest.mark.parametrize('how', ('basic', 'accumulated'))
def test_act_equals_a_loop_over_tokens(how):
  core = core_of({'halt': HALT}, act_sum=how, halt_weight=0.5)
  ran = halting.act(core, carry())
  used, costs = [], []
  for b in range(B):
    for t in range(L):
      if not MASK[b, t]:
        continue
      state, out, total = X[b, t], np.zeros(D), 0.0
      remainder, count = 0.0, 0
      for i in range(R):
        if total >= 1:
          break
        p = sigmoid(state @ HALT['kernel'][:, 0] + HALT['bias'][0])
        state = block(state, i)
        count += 1
        if total + p > 1 - 0.01:
          p = remainder = 1 - total
          total = 1.0
        else:
          total += p
        out = p * state + ((1 - p) * out if how == 'basic' else out)
      np.testing.assert_allclose(ran.x_XBLD[0, b, t], out, rtol=2e-5, atol=1e-5)
      used.append(count)
      costs.append(count + remainder)
  assert len(set(used)) > 1, 'tokens halt at different loops'
  np.testing.assert_allclose(ran.losses['ponder'], 0.5 * np.mean(costs), 1e-5)
  np.testing.assert_allclose(ran.metrics['loops'], np.mean(used), 1e-6)


@pytest.mark.parametrize('masked', (False, True))
def test_stick_breaking_equals_a_loop_over_tokens(masked):
  """With a block that mixes what positions hand on, not their states."""
  epsilon = 0.2

  def run(state, i, context):
    seen_BLD = jnp.mean(context.attended_BLD, axis=1, keepdims=True)
    new_BLD = jnp.tanh(state.x_BLD @ jnp.asarray(WEIGHTS)[i] + seen_BLD)
    return state.replace(x_BLD=state.x_BLD + new_BLD)

  fields = dict(halt_weight=0.5, halt_epsilon=epsilon)
  core = dataclasses.replace(core_of({'halt': HALT}, **fields), run=run)
  if not masked:
    core = dataclasses.replace(core, context=core.context.replace(mask_BL=None))
  ran = halting.stick_breaking(core, carry())
  mask = MASK if masked else np.ones((B, L), bool)
  state, seen, p = X.copy(), X.copy(), np.zeros((R, B, L))
  states, count, cost = [], np.zeros((B, L)), np.zeros((B, L))
  for i in range(R):
    state = state + np.tanh(state @ WEIGHTS[i] + seen.mean(1, keepdims=True))
    states.append(state)
    for b, t in np.argwhere(mask):
      left = 1 - p[:i, b, t].sum()
      if left >= epsilon:  # halts at an earlier loop, or has come so far
        before = sum(p[j, b, t] * states[j][b, t] for j in range(i))
        seen[b, t] = before + left * state[b, t]
        count[b, t] += 1
        cost[b, t] += left
      score = state[b, t] @ HALT['kernel'][:, 0] + HALT['bias'][0]
      p[i, b, t] = left * sigmoid(score)
  assert len(set(count[mask])) > 1, 'tokens halt at different loops'
  np.testing.assert_allclose(ran.x_XBLD[0], seen, rtol=2e-5, atol=1e-5)
  np.testing.assert_allclose(ran.metrics['loops'], count[mask].mean(), 1e-6)
  np.testing.assert_allclose(
    ran.losses['ponder'], 0.5 * cost[mask].mean(), rtol=1e-5
  )


@pytest.mark.parametrize('norm_position', ('pre', 'post', 'peri'))
def test_attending_to_something_else_than_the_stream(norm_position):
  """Keys and values are made of it; the same as the stream, it is no change."""
  plain = config_of('all').model
  model = dataclasses.replace(plain, norm_position=norm_position)
  layer, x_BLD = Layer(model), jnp.asarray(RANDOM.normal(size=(2, 5, 16)))
  context = Context(jnp.broadcast_to(jnp.arange(5), (2, 5)))
  weights = layer.init(jax.random.key(0), x_BLD, context)

  def run(attended_BLD):
    seeing = context.replace(attended_BLD=attended_BLD)
    return layer.apply(weights, x_BLD, seeing)[0]

  assert_near = functools.partial(np.testing.assert_allclose, atol=1e-5)
  assert_near(run(x_BLD), layer.apply(weights, x_BLD, context)[0])
  moved = run(x_BLD.at[:, 2].multiply(-1)) - run(x_BLD)
  assert np.abs(moved[:, 2:]).max(-1).min() > 1e-4, 'read by who comes after'
  assert_near(moved[:, :2], 0)

  bound = Attention(model).bind(
    {'params': nn.unbox(weights)['params']['attention']}
  )
  other_BLD = jnp.asarray(RANDOM.normal(size=x_BLD.shape))
  seeing = context.replace(attended_BLD=other_BLD)
  mixed = jax.nn.dot_product_attention(
    *(
      part(y_BLD).reshape(2, 5, 2, 8)
      for part, y_BLD in (
        (bound.query, x_BLD),
        (bound.key, other_BLD),
        (bound.value, other_BLD),
      )
    ),
    is_causal=True,
  )
  assert_near(bound(x_BLD, seeing)[0], bound.out(mixed.reshape(2, 5, 16)))


def test_act_stops_when_everybody_has_halted():
  """A core that is poisoned after its second loop is not run a third time."""
  poisoned = WEIGHTS.copy()
  poisoned[2:] = np.nan
  sure = {'kernel': np.zeros((D, 1)), 'bias': np.zeros(1)}  # p = 1/2 each time
  core = core_of({'halt': sure}, weights=jnp.asarray(poisoned))
  ran = halting.act(core, carry())
  assert float(ran.metrics['loops']) == 2
  assert np.isfinite(np.asarray(ran.x_XBLD)[0][MASK]).all()


@pytest.mark.parametrize('prior', ('geometric', 'uniform'))
def test_ponder_equals_a_loop_over_tokens(prior):
  core = core_of({'halt': HALT}, prior=prior, prior_rate=0.3, prior_weight=0.7)
  ran = halting.ponder(core, carry())
  wanted = np.array([0.3 * 0.7**n for n in range(R)])
  wanted = wanted / wanted.sum() if prior == 'geometric' else np.ones(R) / R
  divergences = []
  for b in range(B):
    for t in range(L):
      state, left, p = X[b, t], 1.0, []
      for i in range(R):
        state = block(state, i)
        np.testing.assert_allclose(ran.x_XBLD[i, b, t], state, rtol=1e-4)
        halt = sigmoid(state @ HALT['kernel'][:, 0] + HALT['bias'][0])
        p.append(left if i == R - 1 else left * halt)
        left *= 1 - halt
      np.testing.assert_allclose(ran.weight_XBL[:, b, t], p, rtol=1e-4)
      if MASK[b, t]:
        divergences.append(np.sum(p * np.log(p / wanted)))
  np.testing.assert_allclose(
    ran.losses['prior'], 0.7 * np.mean(divergences), rtol=1e-4
  )


def test_exits_weigh_the_last_most():
  ran = halting.exits(core_of(exit_weight=0.1), carry())
  np.testing.assert_allclose(ran.weight_XBL[:, 0, 0], [0.1, 0.1, 0.1, 1])
  state = X
  for i in range(R):
    state = block(state, i)
    np.testing.assert_allclose(ran.x_XBLD[i], state, rtol=1e-4, atol=1e-5)


def test_injection_and_start():
  adapter = {'kernel': RANDOM.normal(size=(2 * D, D)).astype(np.float32) / 4}
  core = core_of({'adapter': adapter}, injection='linear', start='zeros')
  state = np.zeros_like(X)
  for i in range(R):
    state = np.concatenate([state, X], axis=-1) @ adapter['kernel']
    state = block(state, i)
  ran = recurrence.fixed(core, carry())
  np.testing.assert_allclose(ran.x_XBLD[0], state, rtol=1e-4, atol=1e-5)

  state = X
  for i in range(R):
    state = block(state + X, i)
  ran = recurrence.fixed(core_of(injection='add'), carry())
  np.testing.assert_allclose(ran.x_XBLD[0], state, rtol=1e-4, atol=1e-5)

  noise = core_of(injection='add', start='normal', start_std=0.5)
  assert abs(float(noise.start(jnp.zeros((50, 40, D))).std()) - 0.5) < 0.01


def test_drawn_loops_are_log_normal_poisson():
  """Mean: E[Poisson(rate)] + 1 = mean + 1; variance: mean + Var[rate]."""
  keys = jax.random.split(jax.random.key(0), 20_000)
  drawn = jax.vmap(lambda key: recurrence.drawn_loops(key, 8.0, 0.5))(keys)
  drawn = np.asarray(drawn)
  assert drawn.min() >= 1
  assert abs(drawn.mean() - 9) < 0.15
  variance = 8 + 64 * (np.exp(0.25) - 1)
  assert abs(drawn.var() / variance - 1) < 0.06
  assert np.median(drawn) < drawn.mean(), 'skewed to the right'


def test_random_depth_trains_the_last_loops_only():
  """Values of all loops; gradients as if the earlier ones were constants."""
  kept = 2
  fields = dict(mean_loops=20.0, backprop_loops=kept, injection='add')

  def drawn(weights, x):
    ran = recurrence.random(core_of(weights=weights, **fields), carry(x))
    return jnp.sum(jnp.sin(ran.x_XBLD)), ran.metrics['loops']

  (value, count), grads = jax.value_and_grad(drawn, (0, 1), has_aux=True)(
    jnp.asarray(WEIGHTS), jnp.asarray(X)
  )
  count = int(count)
  assert count == int(recurrence.drawn_loops(jax.random.key(3), 20.0, 0.5))
  assert count > R > kept, 'more loops than the table has, in this draw'

  def plain(weights, x):
    state = x
    for i in range(count):
      if i == count - kept:
        state = jax.lax.stop_gradient(state)
      past = i < count - kept
      w = jax.lax.stop_gradient(weights) if past else weights
      e = jax.lax.stop_gradient(x) if past else x
      state = state + e
      state = jnp.tanh(state @ w[min(i, R - 1)]) + state
    return jnp.sum(jnp.sin(state))

  true_value, true_grads = jax.value_and_grad(plain, (0, 1))(
    jnp.asarray(WEIGHTS), jnp.asarray(X)
  )
  np.testing.assert_allclose(value, true_value, rtol=1e-4)
  for left, right in zip(grads, true_grads, strict=True):
    np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)


def test_random_depth_that_cuts_nothing_trains_everything():
  """As few loops as are kept: what comes before them has its gradient."""

  def drawn(x):
    ran = recurrence.random(core_of(mean_loops=1.0, backprop_loops=8), carry(x))
    return jnp.sum(jnp.sin(ran.x_XBLD))

  assert np.abs(jax.grad(drawn)(jnp.asarray(X))).min() > 0


@pytest.mark.parametrize('short', (1.0, 30.0))
def test_random_depth_of_any_length(short):
  """Fewer loops than are kept, and many more than the config's."""
  core = core_of(mean_loops=short, backprop_loops=8)
  ran = recurrence.random(core, carry())
  state = X
  for i in range(int(ran.metrics['loops'])):
    state = block(state, i)
  np.testing.assert_allclose(ran.x_XBLD[0], state, rtol=1e-3, atol=1e-4)
  still = recurrence.random(dataclasses.replace(core, train=False), carry())
  state = X
  for i in range(R):
    state = block(state, i)
  np.testing.assert_allclose(still.x_XBLD[0], state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('trained', (2, 3, 6))
def test_two_levels_and_their_gradient(trained):
  """Two low-level updates, one high-level; only the last blocks are trained."""
  times, segments = 6, 2
  fields = dict(inner_loops=2, backprop_loops=trained, supervision=segments)

  def loss(weights, x):
    core = core_of(times=times, weights=weights, **fields)
    ran = recurrence.two_level(core, carry(x))
    return jnp.sum(jnp.sin(ran.x_XBLD) * ran.weight_XBL[..., None])

  def plain(weights, x):
    fast = slow = x
    total = 0.0
    for _ in range(segments):
      fast, slow = jax.lax.stop_gradient((fast, slow))
      for i in range(times):
        past = i < times - trained
        if i == times - trained:
          fast, slow = jax.lax.stop_gradient((fast, slow))
        w = jax.lax.stop_gradient(weights) if past else weights
        e = jax.lax.stop_gradient(x) if past else x
        high = i % 3 == 2
        into = fast + slow + (0 if high else e)
        out = jnp.tanh(into @ w[min(i, R - 1)]) + into
        fast, slow = (fast, out) if high else (out, slow)
      total += jnp.sum(jnp.sin(slow)) / segments
    return total

  small = jnp.asarray(WEIGHTS) / 4
  got = jax.value_and_grad(loss, (0, 1))(small, jnp.asarray(X) / 8)
  true = jax.value_and_grad(plain, (0, 1))(small, jnp.asarray(X) / 8)
  for left, right in zip(
    jax.tree.leaves(got), jax.tree.leaves(true), strict=True
  ):
    np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-3)


# Token routing.


def routed_core(train=True, context=None, **fields):
  """A core in which tokens see the mean of what they may attend to."""
  core = core_of({'router': {'kernel': RANDOM_ROUTER}}, train=train, **fields)

  def run(state, i, context):
    x_BLD, mask_BL = state.x_BLD, context.mask_BL
    seen_BLL = jnp.tril(jnp.ones((x_BLD.shape[1],) * 2))[None]
    if mask_BL is not None:
      seen_BLL = seen_BLL * mask_BL[:, None]
    total = jnp.maximum(jnp.sum(seen_BLL, -1, keepdims=True), 1)
    mean_BLD = (seen_BLL / total) @ x_BLD
    place = jnp.sin(context.positions_BL)[..., None]
    return state.replace(
      x_BLD=jnp.tanh((x_BLD + place) @ WEIGHTS[i]) + 0.5 * mean_BLD
    )

  unpadded = core.context.replace(mask_BL=None)
  return dataclasses.replace(core, run=run, context=context or unpadded)


RANDOM_ROUTER = RANDOM.normal(size=(D, R)).astype(np.float32)


def visible_mean(x, t, seen):
  past = [s for s in range(t + 1) if s in seen]
  return np.mean([x[s] for s in past], axis=0) if past else 0 * x[t]


@pytest.mark.slow
def test_expert_choice_equals_a_loop_over_tokens():
  core = routed_core(router_alpha=0.3, router_loss=0.5, z_loss=0.2)
  ran = routing.expert_choice(core, carry())
  losses, zs = [], []
  for b in range(B):
    x, chosen = X[b].copy(), list(range(L))
    for r in range(R):
      logits = {t: x[t] @ RANDOM_ROUTER[:, r] for t in chosen}
      count = max(1, L * (R - r) // R)
      best = sorted(sorted(chosen, key=lambda t: -logits[t])[:count])
      losses.append(
        np.mean(
          [
            np.log1p(np.exp(-logits[t] if t in best else logits[t]))
            for t in chosen
          ]
        )
      )
      zs.append(np.mean([logits[t] ** 2 for t in chosen]))
      new = {}
      for t in best:
        mixed = visible_mean(x, t, best)
        y = np.tanh((x[t] + np.sin(t)) @ WEIGHTS[r]) + 0.5 * mixed
        new[t] = x[t] + 0.3 * sigmoid(logits[t]) * y
      for t, value in new.items():
        x[t] = value
      chosen = best
    np.testing.assert_allclose(ran.x_XBLD[0, b], x, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    ran.losses['router'], 0.5 * np.mean(losses), rtol=1e-4
  )
  np.testing.assert_allclose(ran.losses['router_z'], 0.2 * np.mean(zs), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('padded', (False, True))
def test_gathering_tokens_equals_masking_them(padded):
  """With reused keys nothing is gathered; without, both forms agree."""
  context = core_of().context if padded else None
  core = routed_core(context=context, z_loss=0.3)
  gathered = routing._gathered(core, carry())
  masked = routing._masked(core, carry())
  seen = MASK if padded else np.ones_like(MASK)
  np.testing.assert_allclose(
    gathered.x_XBLD[0][seen], masked.x_XBLD[0][seen], rtol=1e-4, atol=1e-5
  )
  assert set(gathered.losses) == {'router', 'router_z'}
  for name, loss in gathered.losses.items():
    np.testing.assert_allclose(loss, masked.losses[name], rtol=1e-5)


def test_expert_choice_does_not_look_ahead_when_it_evaluates():
  """What a token gets does not depend on which later tokens there are."""
  core = routed_core(train=False)

  def at(x, t):
    return routing.expert_choice(core, carry(x)).x_XBLD[0, 0, t].sum()

  for t in range(L - 1):
    grad = np.asarray(jax.grad(at)(jnp.asarray(X), t))[0]
    assert np.abs(grad[t + 1 :]).max() == 0 and np.abs(grad[t]).max() > 0
  other = X.copy()
  other[:, -1] *= -10
  one = routing.expert_choice(core, carry()).x_XBLD[0, :, :-1]
  two = routing.expert_choice(core, carry(other)).x_XBLD[0, :, :-1]
  np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize('function', ('softmax', 'sigmoid'))
@pytest.mark.parametrize('balance', ('loss', 'bias'))
def test_token_choice_equals_a_loop_over_tokens(function, balance):
  bias = np.array([-0.2, 0.1, 0.3, 0.0], np.float32)
  bias *= 0.05 if function == 'sigmoid' else 1
  core = routed_core(
    router_function=function, balance=balance, balance_weight=0.5, z_loss=0.1
  )
  core.controls['bias'] = jnp.asarray(bias)
  ran = routing.token_choice(core, carry())
  scores = X @ RANDOM_ROUTER
  zs = np.log(np.exp(scores).sum(-1)) ** 2
  if function == 'softmax':
    g = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  else:
    g = 0.1 * sigmoid(scores)
  choice = np.argmax(g + (bias if balance == 'bias' else 0), axis=-1)
  assert len(set(choice.ravel())) > 2
  for b in range(B):
    x = X[b].copy()
    for r in range(R):
      active = [t for t in range(L) if choice[b, t] >= r]
      new = {
        t: np.tanh((x[t] + np.sin(t)) @ WEIGHTS[r])
        + 0.5 * visible_mean(x, t, active)
        for t in active
      }
      for t, value in new.items():
        x[t] = value
    gate = np.take_along_axis(g[b], choice[b][:, None], axis=-1)
    np.testing.assert_allclose(
      ran.x_XBLD[0, b], X[b] + gate * x, rtol=1e-4, atol=1e-5
    )
  used = np.bincount(choice.ravel(), minlength=R) / choice.size
  np.testing.assert_allclose(ran.used_R, used, rtol=1e-5)
  np.testing.assert_allclose(ran.losses['router_z'], 0.1 * zs.mean(), 1e-4)
  if balance == 'loss':
    loss = R * np.sum(used * g.mean((0, 1)))
    np.testing.assert_allclose(ran.losses['balance'], 0.5 * loss, 1e-4)
  else:
    assert 'balance' not in ran.losses


# Leaving the loop.


def test_criteria():
  """Three exits, two tokens: the first token settles, the second never does."""
  sure, other = np.log([0.9, 0.06, 0.04]), np.log([0.2, 0.5, 0.3])
  third = np.log([0.3, 0.3, 0.4])
  logits = np.array(
    [[[other, other]], [[sure, third]], [[sure + 1e-4, sure]]], np.float32
  )
  hidden = np.array(
    [[[[1.0, 0], [0, 3]]], [[[1, 0.2], [3, 0]]], [[[1, 0.2], [0, 3]]]],
    np.float32,
  )
  weights = np.array([[[0.1, 0.1]], [[0.6, 0.1]], [[0.3, 0.8]]], np.float32)
  expected = {
    ('cdf', 0.7): [1, 2],
    ('probability', 0.8): [1, 2],
    ('entropy', 0.5): [1, 2],
    ('kl', 1e-3): [2, 2],
    ('latent', 0.3): [1, 2],
    ('argmax', 0.0): [2, 2],
    ('none', 0.0): [2, 2],
    ('probability', 0.45): [0, 0],
  }
  for (criterion, threshold), exits in expected.items():
    model = configs.Model(
      vocab_size=3,
      depth=configs.Depth(criterion=criterion, threshold=threshold),
    )
    left = leaving.left_at(
      model, jnp.asarray(hidden), jnp.asarray(logits), jnp.asarray(weights)
    )
    assert left.tolist() == [exits], criterion


# Whole models.

SIZES = {
  'num_layers': 6,
  'd_model': 16,
  'num_heads': 2,
  'max_len': 16,
  'vocab_size': 64,
}
TOKENS = jnp.asarray(RANDOM.integers(0, 64, (4, 16)))


def config_of(layer='cycle:2', kv_source='', num_layers=6, **depth):
  sharing = {'layer': layer, 'kv_source': kv_source}
  return configs.cross(
    {
      'model': {
        **SIZES,
        'num_layers': num_layers,
        'sharing': sharing,
        'depth': depth,
      },
      'optimizer': {'learning_rate': 1e-2},
    }
  )


@functools.cache
def variables_of(config):
  return nn.unbox(jax.jit(build(config).init)(jax.random.key(0), TOKENS))


@pytest.mark.slow
@pytest.mark.parametrize(
  'layer',
  (pytest.param('cycle:2', marks=pytest.mark.slow), 'recurrent:1/2x2/1'),
)
def test_the_last_exit_is_the_plain_model(layer):
  """Prelude, loops and coda in pieces are the one scan over all visits."""
  plain, pieces = config_of(layer), config_of(layer, rule='exits')
  logits = build(plain).apply(variables_of(plain), TOKENS)
  other = build(pieces).apply(variables_of(plain), TOKENS)
  np.testing.assert_allclose(logits, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_reused_keys_travel_through_the_loops():
  plain = config_of('cycle:2', 'cycle:2')
  pieces = config_of('cycle:2', 'cycle:2', rule='exits')
  logits = build(plain).apply(variables_of(plain), TOKENS)
  other = build(pieces).apply(variables_of(plain), TOKENS)
  np.testing.assert_allclose(logits, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  'layer,depth',
  (
    pytest.param('cycle:2', 9, marks=pytest.mark.slow),
    ('recurrent:1/2x2/1', 5),
    pytest.param('all', 12, marks=pytest.mark.slow),
  ),
)
@pytest.mark.parametrize('scale', ('none', 'depth'))
def test_the_same_weights_run_for_more_loops(layer, depth, scale):
  config = config_of(layer)
  scaled = dataclasses.replace(config.model, residual_scale=scale)
  config = dataclasses.replace(config, model=scaled)
  model = rerun(config.model, depth)
  p, c, times, k = loops(model)
  assert times == depth and model.num_layers == p + c * depth + k
  more = configs.cross(dataclasses.replace(config, model=model))
  assert jax.tree.map(jnp.shape, variables_of(more)) == jax.tree.map(
    jnp.shape, variables_of(config)
  )
  one = build(config).apply(variables_of(config), TOKENS)
  two = build(more).apply(variables_of(config), TOKENS)
  assert np.abs(one - two).max() > 1e-3
  back = rerun(model, loops(config.model).times)
  assert back == config.model


@pytest.mark.slow
@pytest.mark.parametrize('rule', ('random', 'exits'))
def test_one_loop_is_three_layers_of_their_own(rule):
  """A rule that needs loops to train can be read after the first of them."""
  config = config_of('recurrent:1/1x4/1', rule=rule)
  one = configs.with_loops(config, 1)
  plain = config_of('none', num_layers=3)
  logits = build(one).apply(variables_of(config), TOKENS)
  other = build(plain).apply(variables_of(config), TOKENS)
  np.testing.assert_allclose(logits, other, rtol=1e-5, atol=1e-5)
  four = build(config).apply(variables_of(config), TOKENS)
  assert np.abs(four - logits).max() > 1e-3


@pytest.mark.slow
def test_attending_to_all_loops_equals_a_plain_loop():
  """CoTFormer: queries of a loop meet the keys of every loop so far."""
  config = config_of('cycle:2', attention='all_loops')
  got = build(config).apply(variables_of(config), TOKENS)
  m = config.model
  params = variables_of(config)['params']
  rows = jax.device_get(params['stack']['rows'])  # NumPy may promote ranks
  place = jnp.broadcast_to(jnp.arange(16), TOKENS.shape)
  x = Embedding(m).apply({'params': params['embedding']}, TOKENS, place)
  kept = {0: [], 1: []}
  norm = functools.partial(nn.LayerNorm(epsilon=m.norm_eps).apply)

  def heads(part, y, i):
    y = np.asarray(y)
    w = jax.tree.map(lambda a: a[i], rows['attention'][part])
    return (y @ w['kernel'] + w['bias']).reshape(4, 16, 2, 8)

  def scaled(name, x, i):
    w = jax.tree.map(lambda a: a[i], rows['norm'][name])
    return norm({'params': w}, x)

  for visit in range(6):
    i = visit % 2
    y = scaled('attention', x, i)
    q, k, v = (heads(part, y, i) for part in ('query', 'key', 'value'))
    kept[i].append((k, v))
    ks = jnp.concatenate([k for k, _ in kept[i]], axis=1)
    vs = jnp.concatenate([v for _, v in kept[i]], axis=1)
    scores = jnp.einsum('blhk,bmhk->bhlm', q, ks) / np.sqrt(8)
    future = np.arange(16)[:, None] < np.arange(16)[None]
    hidden = np.tile(future, (1, len(kept[i])))
    p = jax.nn.softmax(jnp.where(hidden[None, None], -np.inf, scores))
    mixed = jnp.einsum('bhlm,bmhk->blhk', p, vs).reshape(4, 16, 16)
    out = jax.tree.map(lambda a, i=i: a[i], rows['attention']['out'])
    x += np.asarray(mixed) @ out['kernel'] + out['bias']
    y = scaled('feed_forward', x, i)
    ff = jax.tree.map(lambda a, i=i: a[i], rows['feed_forward'])
    y = np.asarray(y) @ ff['up']['kernel'] + ff['up']['bias']
    y = np.asarray(nn.gelu(jnp.asarray(y), approximate=False))
    x += y @ ff['down']['kernel'] + ff['down']['bias']
  x = norm({'params': params['norm']}, x)
  logits = x @ params['embedding']['token']['embedding'].T
  np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-4)


RULES = {
  'CoTFormer': ('cycle:2', dict(attention='all_loops', norm=True)),
  'Huginn, injected': (
    'recurrent:1/2x2/1',
    dict(injection='linear', start='normal', norm=True),
  ),
  'ACT': ('all', dict(rule='act')),
  'SUT': ('recurrent:1/1x4/1', dict(rule='stick_breaking')),
  'ponder': ('middle_cycle:2', dict(rule='ponder', criterion='cdf')),
  'exits': ('cycle:2', dict(rule='exits', criterion='kl')),
  'random': (
    'recurrent:1/2x2/1',
    dict(rule='random', mean_loops=4.0, backprop_loops=2, injection='add'),
  ),
  'expert choice': ('middle_cycle:2', dict(rule='expert_choice')),
  'token choice': ('cycle:2', dict(rule='token_choice')),
  'token choice, bias': (
    'cycle:2',
    dict(rule='token_choice', balance='bias', balance_rate=0.01),
  ),
  'HRM': (
    '0,0,1,0,0,1',
    dict(rule='two_level', core=1, backprop_loops=2, supervision=2),
  ),
}


@pytest.mark.parametrize('name', RULES)
def test_exits_of_a_training_step_are_counted(name):
  layer, fields = RULES[name]
  config = config_of(layer, **fields)
  model = build(config, train=True)
  shapes = jax.eval_shape(
    lambda key: model.init_with_output(
      {'params': key, 'depth': key}, TOKENS, method='outputs'
    )[0],
    jax.random.key(0),
  )
  assert len(shapes.hidden_XBLD) == exits_of(config.model)


def wide(**depth):
  """A config whose logits, 0.75 MiB an exit of a batch, outweigh all else."""
  model = {
    'num_layers': 8,
    'd_model': 8,
    'num_heads': 1,
    'max_len': 48,
    'vocab_size': 2048,
    'logits_mb': 1,
    'sharing': {'layer': 'all'},
    'depth': {'rule': 'exits', **depth},
  }
  return configs.cross({'model': model, 'train': {'batch_size': 2}})


@pytest.mark.slow
def test_the_logits_of_all_exits_together_are_bounded():
  """Eight exits of 0.75 MiB, and no more than 1 MiB of them at once."""
  made = Programs(wide())
  (step,) = made.train.compiled.values()
  assert step.memory_analysis().temp_size_in_bytes < 4 * 2**20
  made = Programs(wide(criterion='entropy', threshold=0.99))
  (step,) = made.evaluate.compiled.values()
  assert step.memory_analysis().temp_size_in_bytes < 4 * 2**20


@pytest.mark.slow
def test_exits_in_pieces_are_the_exits():
  config = wide(criterion='latent', threshold=0.3)
  whole = dataclasses.replace(config.model, logits_mb=256)
  whole = dataclasses.replace(config, model=whole)
  tokens = jnp.asarray(RANDOM.integers(0, 2048, (2, 48)))
  mask = jnp.arange(48)[None] < jnp.array([[48], [30]])
  variables = build(config).init(jax.random.key(0), tokens)

  def told(config):
    return jax.jit(
      lambda v: build(config).apply(
        v, tokens, tokens, mask, method='exit_losses'
      )
    )(variables)

  losses, hits, loops = told(config)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    (losses, hits, loops),
    told(whole),
  )
  assert losses.shape == hits.shape == (2, 48)
  assert 1 < loops < 8
  logits, mean = build(config).apply(variables, tokens, mask, method='exited')
  np.testing.assert_allclose(losses, cross_entropy(logits, tokens), rtol=1e-5)
  np.testing.assert_allclose(loops, mean, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('name', RULES)
def test_every_rule_trains(name):
  layer, fields = RULES[name]
  config = config_of(layer, **fields)
  state = jax.jit(functools.partial(states.initial, config))(jnp.uint32(0))
  batch = {
    'inputs': TOKENS,
    'targets': TOKENS,
    'weights': jnp.ones(TOKENS.shape),
  }
  step = jax.jit(steps.train_step(config))
  before = jax.device_get(state.params)
  history = []
  for _ in range(30):
    state, metrics = step(state, batch)
    history.append(float(metrics['loss']))
  assert history[-1] < 0.3 * history[0]
  for path, leaf in jax.tree_util.tree_leaves_with_path(before):
    after = state.params
    for key in path:
      after = after[key.key]
    assert np.abs(leaf - after).max() > 0, f'{path} is not trained'
  sums, _ = jax.jit(steps.eval_step(config))(state, batch)
  assert float(sums['loss'] / sums['weight']) < 1
  if name == 'token choice, bias':
    assert np.abs(state.variables['routing']['controls']['bias']).max() > 0


ERRORS = {
  ('none', ('rule', 'act')): (
    'model.depth.rule act needs layers that loop: sharing.layer all, cycle,'
    " middle_cycle or recurrent, or model.depth.core; 'none' with 6 layers"
    ' runs its core once'
  ),
  ('all', ('core', 4)): (
    'model.depth needs num_layers = prelude + core * loops + coda, got 6 and'
    ' 0 + 4 * loops + 0'
  ),
  ('cycle:2', ('criterion', 'cdf')): (
    'the criterion cdf needs the rule ponder, got fixed'
  ),
  ('cycle:3', ('rule', 'two_level')): (
    'two_level needs as many loops as a multiple of inner_loops + 1 = 3, got 2'
  ),
  ('cycle:2', ('start', 'zeros')): (
    'model.depth.start zeros needs an injection, or the core never sees its'
    ' input'
  ),
  ('cycle:2', ('halt_epsilon', 3.0)): (
    'model.depth.halt_epsilon must be below 1, got 3.0'
  ),
  ('cycle:2', ('rule', 'stick_breaking')): (
    'model.depth.rule stick_breaking needs a core of one layer and no'
    ' injection, as that layer attends to what left the loop before, got 2'
    ' layers and model.depth.injection none'
  ),
  ('cycle:2', ('rule', 'akt')): (
    "unknown model.depth.rule 'akt'; did you mean 'act'?"
  ),
}


@pytest.mark.parametrize('case', ERRORS, ids=str)
def test_bad_depth(case):
  layer, (field, value) = case
  with pytest.raises(BadInput) as error:
    config_of(layer, **{field: value})
  assert str(error.value) == ERRORS[case]


@pytest.mark.parametrize('rule', ('expert_choice', 'token_choice', 'two_level'))
@pytest.mark.parametrize(
  'unused', ({'injection': 'add'}, {'norm': True}), ids=str
)
def test_a_rule_without_injection_or_norm_says_so(rule, unused):
  with pytest.raises(BadInput, match=f'model.depth.rule {rule} has no'):
    config_of('all', rule=rule, **unused)


@pytest.mark.parametrize('gradient', ('mean', 'owner'))
@pytest.mark.parametrize('rule', ('random', 'two_level'))
def test_what_trains_the_last_visits_sums_them(rule, gradient):
  model = {**SIZES, 'sharing': {'layer': 'all'}, 'shared_gradient': gradient}
  with pytest.raises(BadInput, match='trains the last visits only'):
    configs.cross({'model': {**model, 'depth': {'rule': rule}}})


def test_random_depth_needs_loops_that_are_alike():
  fields = {'num_layers': 6, 'depth': {'rule': 'random', 'core': 2}}
  with pytest.raises(BadInput, match='same rows in every loop, got none'):
    configs.cross({'model': {**fields, 'sharing': {'layer': 'none'}}})


REFUSED = {
  'tables that change': {'adapt': {'method': 'merge'}},
  'an encoder_decoder runs': {'model': {'family': 'encoder_decoder'}},
  'a model of rule token_choice': {
    'model': {'depth': {'rule': 'token_choice'}}
  },
}


@pytest.mark.parametrize('rule', REFUSED)
def test_what_was_trained_for_its_own_depth_is_not_run_longer(rule):
  model = {**SIZES, 'sharing': {'layer': 'all'}}
  given = {**REFUSED[rule], 'model': model | REFUSED[rule].get('model', {})}
  with pytest.raises(BadInput, match=rule):
    configs.with_loops(configs.cross(given), 9)


@pytest.mark.parametrize('layer', ('none', '0,1,0,1,0,1', 'cycle:2+none@2'))
def test_what_does_not_repeat_cannot_be_run_longer(layer):
  with pytest.raises(BadInput):
    rerun(config_of(layer).model, 5)
