"""Cached logits equal those of the whole text, for every part of a network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_presets import examples, new_parts, with_a_source

from shared_tfm import config
from shared_tfm.errors import BadInput
from shared_tfm.model import build

V, B, L, S = 24, 3, 12, 5
LENGTHS = np.array([5, 1, 3])  # of the prompts
MASK = np.arange(L)[None] < 7 + LENGTHS[:, None]  # prompts and 7 tokens more


def config_of(family='decoder', **model):
  return config.cross(
    {
      'model': {
        'family': family,
        'num_layers': 6,
        'd_model': 32,
        'num_heads': 4,
        'd_ff': 48,
        'vocab_size': V,
        'max_len': L,
        'sharing': {'layer': 'cycle:3'},
      }
      | model
    }
  )


def started(made):
  """A model, and weights large enough for opinions of their own."""
  model = build(made)
  tokens = jnp.zeros((1, L), jnp.int32)
  extra = {}
  if made.model.family == 'encoder_decoder':
    extra['source_BS'] = jnp.zeros((1, S), jnp.int32)
  variables = jax.jit(model.init)(jax.random.key(0), tokens, **extra)
  random = np.random.default_rng(1)
  params = jax.tree.map(
    lambda leaf: 1.5 * leaf + 0.1 * random.standard_normal(leaf.shape),
    variables['params'],
  )
  return model, {**variables, 'params': params}


def source_of(made):
  """Sources of different lengths, where the model reads any."""
  if made.model.family != 'encoder_decoder':
    return {}
  random = np.random.default_rng(3)
  return {
    'source_BS': random.integers(0, V, (B, S)),
    'source_mask_BS': np.arange(S)[None] < np.array([[5], [2], [4]]),
  }


TOKENS = np.random.default_rng(2).integers(0, V, (B, L))


@functools.cache
def follower(made):
  """What reads some more tokens: variables first, and then as `following`."""

  @functools.partial(jax.jit, static_argnums=5)
  def following(variables, tokens, positions, mask, kept, leaves, **source):
    return build(made).apply(
      variables,
      tokens,
      positions,
      mask,
      kept,
      leaves,
      method='following',
      **source,
    )

  return following


def token_by_token(
  made, variables, policy='visit', between=lambda kept, *_: kept, leaves=False
):
  """Prompts of different lengths at once, then 7 tokens one by one: (8, B, V).

  What is kept goes through `between` before each of those, with how many loops
  the token before ran (99: it is the prompt's) and where it stands.
  """
  model, source = build(made), source_of(made)
  following = functools.partial(follower(made), variables)
  kept = model.apply({}, B, L + 2, S * bool(source), policy, method='empty')
  prompt = np.arange(LENGTHS.max())
  logits_BV, _, kept = following(
    TOKENS[:, prompt],
    np.broadcast_to(prompt, (B, len(prompt))),
    prompt[None] < LENGTHS[:, None],
    kept,
    False,
    **source,
  )
  found, loops = [logits_BV], [np.full(B, 99)]
  for place in range(7):
    here = (LENGTHS + place)[:, None]
    tokens = np.take_along_axis(TOKENS, here, axis=1)
    kept = between(kept, loops[-1], here - 1)
    logits_BV, loops_B, kept = following(
      tokens, here, np.ones((B, 1), bool), kept, leaves
    )
    found.append(logits_BV)
    loops.append(np.asarray(loops_B))
  return np.stack(found), kept, np.stack(loops[1:])


def whole(made, variables):
  """The same logits, of the whole text at once."""
  logits = jax.jit(build(made).apply)(
    variables, TOKENS, MASK, **source_of(made)
  )
  at = LENGTHS - 1 + np.arange(8)[:, None]
  return np.asarray(logits)[np.arange(B)[None], at]


def same(found, expected):
  spread = np.ptp(expected, axis=-1).max()
  assert np.ptp(expected, axis=0).max() > 0.05 * spread
  np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * spread)


def check(made):
  _, variables = started(made)
  same(token_by_token(made, variables)[0], whole(made, variables))


LOOPED = {'num_layers': 8, 'sharing': {'layer': 'recurrent:1/2x3/1'}}
RELATIVE = {
  'position': 'relative',
  'relative_buckets': 6,
  'relative_distance': 5,
}
PARTS = {
  'rotary': {'position': 'rotary', 'rotary_fraction': 0.5},
  'relative': RELATIVE,
  'relative, maps': RELATIVE
  | {'sharing': {'layer': 'cycle:3', 'map_source': 'sequence:3'}},
  'relative, all loops': RELATIVE
  | LOOPED
  | {'num_kv_heads': 2, 'depth': {'attention': 'all_loops'}},
  'relative, two sides': RELATIVE
  | {'family': 'encoder_decoder', 'num_decoder_layers': 3},
  'grouped heads, post norm': {'num_kv_heads': 2, 'norm_position': 'post'},
  'batch norm': {'norm': 'batchnorm'},
  'no sharing': {'sharing': {'layer': 'none'}},
  'tables in the state': {'tables': 'state'},
  'a gate, RMS norm': {'activation': 'swiglu', 'norm': 'rmsnorm'},
  'keys of loops': {'sharing': {'layer': 'cycle:3', 'kv_source': 'cycle:3'}},
  'maps': {'sharing': {'layer': 'cycle:3', 'map_source': 'sequence:3'}},
  'a coda at every exit': LOOPED | {'depth': {'rule': 'exits'}},
  'a coda where a token leaves': LOOPED
  | {'depth': {'criterion': 'kl', 'threshold': 0.3}},
  'by a distribution': LOOPED
  | {'depth': {'rule': 'ponder', 'criterion': 'cdf', 'threshold': 0.6}},
  'halting early': {'sharing': {'layer': 'all'}}
  | {'depth': {'rule': 'act', 'halt_bias': 3.0}},
  'noise': LOOPED
  | {'depth': {'rule': 'random', 'injection': 'add', 'start': 'normal'}},
  'segments': {'sharing': {'layer': 'cycle:2'}, 'norm_position': 'post'}
  | {'depth': {'rule': 'two_level', 'start': 'zeros', 'supervision': 2}},
  'all loops and a coda': LOOPED | {'depth': {'attention': 'all_loops'}},
  'routed keys': {'sharing': {'layer': 'cycle:3', 'kv_source': 'cycle:3'}}
  | {'depth': {'rule': 'expert_choice'}},
  'tokens choose': {'depth': {'rule': 'token_choice'}},
  'two sides': {'family': 'encoder_decoder', 'num_decoder_layers': 3},
  'sides and one table': {
    'family': 'encoder_decoder',
    'num_decoder_layers': 6,
    'sharing': {'layer': 'cycle:3', 'across': 'feed_forward'},
  },
}


QUICK = 'rotary', 'maps', 'two sides'


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in PARTS
  ],
)
def test_every_part(name):
  check(config_of(**PARTS[name]))


@pytest.mark.slow
@pytest.mark.parametrize(
  'made',
  new_parts(
    examples({'vocab_size': V, 'max_len': L}),
    known=[with_a_source(config_of(**fields)) for fields in PARTS.values()],
  ),
)
def test_every_other_part_of_a_preset(made):
  check(made)


@pytest.mark.slow
def test_the_first_visits_keys_are_those_of_kv_source():
  """Recursive sharing says as a policy what a table says in the config."""
  plain = config_of(sharing={'layer': 'cycle:3'})
  reusing = config_of(sharing={'layer': 'cycle:3', 'kv_source': 'cycle:3'})
  _, variables = started(reusing)
  found, kept, _ = token_by_token(plain, variables, 'first')
  assert len(kept['stack'].text.keys_SBGMK) == 3
  same(found, whole(reusing, variables))
  own, *_ = token_by_token(plain, variables)
  assert np.abs(found - own).max() > 1e-3


@pytest.mark.slow
def test_an_owners_slot_holds_what_its_last_visit_made():
  made = config_of(sharing={'layer': 'cycle:2'})
  _, variables = started(made)

  def overwritten(kept, *_):
    """Slots of six visits, with those of the last two in all."""
    stack = kept['stack']
    last = jax.tree.map(lambda a: jnp.concatenate([a[-2:]] * 3), stack.text)
    return {'stack': stack.replace(text=last)}

  expected, *_ = token_by_token(made, variables, between=overwritten)
  found, kept, _ = token_by_token(made, variables, 'owner')
  assert len(kept['stack'].text.keys_SBGMK) == 2
  same(found, expected)
  own, *_ = token_by_token(made, variables)
  assert np.abs(found - own).max() > 1e-3


@pytest.mark.parametrize('policy', ['first', 'owner'])
def test_without_sharing_all_policies_are_one(policy):
  made = config_of(sharing={'layer': 'none'})
  _, variables = started(made)
  found, kept, _ = token_by_token(made, variables, policy)
  assert len(kept['stack'].text.keys_SBGMK) == 6
  same(found, whole(made, variables))


def test_reused_keys_are_kept_once():
  made = config_of(sharing={'layer': 'all', 'kv_source': 'sequence:2'})
  kept = build(made).apply({}, B, L, method='empty')
  assert kept['stack'].text.keys_SBGMK.shape == (2, B, 4, L, 8)


def test_what_cannot_be_kept():
  made = config_of(sharing={'layer': 'all', 'kv_source': 'all'})
  for policy, rule in [
    ('last', "kept per visit, first, owner, got 'last'"),
    ('first', 'a cache per first is for models with fixed tables that say'),
  ]:
    with pytest.raises(BadInput, match=rule):
      build(made).apply({}, B, L, 0, policy, method='empty')


LEAVING = {
  'latent': {'criterion': 'latent', 'threshold': 0.7},
  'kl': {'criterion': 'kl', 'threshold': 0.5},
  'entropy': {'criterion': 'entropy', 'threshold': 0.55},
  'cdf': {'rule': 'ponder', 'criterion': 'cdf', 'threshold': 0.7},
}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name == 'kl' else pytest.mark.slow)
    for name in LEAVING
  ],
)
def test_loops_behind_a_tokens_exit_are_copies_of_its_last(name):
  """Against running them all, and writing the copies over what they made."""
  made = config_of(
    num_layers=10,
    sharing={'layer': 'recurrent:1/2x4/1'},
    depth=LEAVING[name],
  )
  _, variables = started(made)

  def copied(kept, loops_B, here_B1):
    text = jax.tree.map(np.array, kept['stack'].text)
    for b, (loops, (place,)) in enumerate(zip(loops_B, here_B1, strict=True)):
      for later in range(loops, 4):
        for to, of in [
          (1 + 2 * later, 1 + 2 * (loops - 1)),
          (2 + 2 * later, 2 * loops),
          (9 + later, 8 + loops),  # the coda's slots, one for each exit
        ]:
          text.keys_SBGMK[to, b, :, place] = text.keys_SBGMK[of, b, :, place]
          text.values_SBGMK[to, b, :, place] = text.values_SBGMK[
            of, b, :, place
          ]
    return {'stack': kept['stack'].replace(text=text)}

  expected, _, loops = token_by_token(made, variables, between=copied)
  found, _, again = token_by_token(made, variables, leaves=True)
  assert len(np.unique(loops)) > 1
  np.testing.assert_array_equal(loops, again)
  same(found, expected)
  every, *_ = token_by_token(made, variables)
  assert np.abs(found - every).max() > 1e-3


@pytest.mark.slow
def test_loops_that_are_left_out_are_not_run():
  """Their weights are no numbers, and nobody notices."""
  made = config_of(
    sharing={'layer': 'none'},
    depth={'core': 2, 'criterion': 'latent', 'threshold': 1e3},
  )
  _, variables = started(made)
  rows = jax.tree.map(
    lambda leaf: leaf.at[4:].set(jnp.nan), variables['params']['stack']
  )
  broken = {'params': {**variables['params'], 'stack': rows}}
  for leaves in (True, False):
    found, kept, loops = token_by_token(made, broken, leaves=leaves)
    assert (loops == 2).all() and np.isfinite(found).all()
    behind_prompt = kept['stack'].text.keys_SBGMK[4:, 0, :, 5:12]
    assert np.isfinite(behind_prompt).all() == leaves
