"""Generation against a plain loop, and what is drawn against probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm import config
from shared_tfm.errors import BadInput
from shared_tfm.infer import sampling
from shared_tfm.model import build

V, L = 16, 32
PROMPT = np.array([3, 1, 4, 1, 5])


@functools.cache
def model(position='learned', family='decoder'):
  """A config, and weights large enough for opinions of their own."""
  made = config.cross(
    {
      'model': {
        'family': family,
        'num_layers': 2,
        'd_model': 16,
        'num_heads': 2,
        'vocab_size': V,
        'max_len': L,
        'position': position,
        'sharing': {'attention': 'all'},
      }
    }
  )
  tokens = jnp.zeros((1, L), jnp.int32)
  variables = jax.jit(build(made).init)(jax.random.key(0), tokens)
  return made, jax.tree.map(lambda leaf: 2 * leaf, variables)


@functools.cache
def constant():
  """A model whose logits are the same after any text, and its logits.

  Its last norm has no scale, so that what is scored is its bias alone.
  """
  made, variables = model()
  params = variables['params']
  bias = jax.random.normal(jax.random.key(1), (16,))
  norm = {'scale': jnp.zeros(16), 'bias': bias}
  variables = {'params': {**params, 'norm': norm}}
  logits = jax.jit(build(made).apply)(variables, jnp.asarray(PROMPT)[None])
  assert jnp.ptp(logits, axis=1).max() == 0
  return made, variables, np.asarray(logits[0, 0], np.float64)


def generate(made, variables, tokens, prompt=PROMPT, **how):
  return sampling.generate(made, variables, prompt, tokens, **how)


@pytest.mark.slow
@pytest.mark.parametrize(
  'position', [pytest.param('learned', marks=pytest.mark.slow), 'rotary']
)
def test_greedy_is_a_loop_of_argmax_over_whole_texts(position):
  made, variables = model(position)
  forward = jax.jit(build(made).apply)
  text = list(PROMPT)
  for _ in range(5):
    logits = forward(variables, jnp.array([text]))
    text.append(int(jnp.argmax(logits[0, -1])))
  added = generate(made, variables, 5)
  assert added.dtype == np.int32
  assert added.tolist() == text[5:]
  assert len(set(added.tolist())) > 1


def test_a_text_may_fill_the_model_and_a_longer_one_goes_on_alike():
  made, variables = model()
  whole = generate(made, variables, L - 5)
  assert whole.shape == (L - 5,)
  assert whole[:3].tolist() == generate(made, variables, 3).tolist()
  longer = np.concatenate([PROMPT, whole[:3]])
  rest = generate(made, variables, L - 8, longer)
  assert rest.tolist() == whole[3:].tolist()


@pytest.mark.parametrize('temperature', [0.1, 1.0, 30.0])
def test_the_likeliest_token_alone_is_greedy_at_any_temperature(temperature):
  made, variables = model()
  greedy = generate(made, variables, 12).tolist()
  one = generate(made, variables, 12, temperature=temperature, top_k=1, seed=5)
  assert one.tolist() == greedy
  if temperature > 1:
    free = generate(made, variables, 12, temperature=temperature, seed=5)
    assert free.tolist() != greedy


def test_the_seed_alone_decides():
  made, variables = model()
  how = {'temperature': 1.0, 'top_k': 8}
  first, again, other = (
    generate(made, variables, 16, seed=seed, **how).tolist()
    for seed in (0, 0, 1)
  )
  assert first == again != other


def softmax(logits, temperature=1.0):
  scores = np.exp((logits - logits.max()) / temperature)
  return scores / scores.sum()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('temperature', 'top_k'), [(1.0, 0), (0.5, 0), (2.0, V), (0.2, 3)]
)
def test_what_is_drawn_follows_the_probabilities(temperature, top_k):
  made, variables, logits = constant()
  seeds, tokens = 100, L - 5
  drawn = [
    generate(
      made, variables, tokens, temperature=temperature, top_k=top_k, seed=seed
    )
    for seed in range(seeds)
  ]
  expected = softmax(logits, temperature)
  if top_k:
    expected[np.argsort(logits)[:-top_k]] = 0
    expected /= expected.sum()
  count = seeds * tokens
  counts = np.bincount(np.concatenate(drawn), minlength=V)
  assert (counts[expected == 0] == 0).all()
  seen, mean = counts[expected > 0], count * expected[expected > 0]
  # Of as many degrees of freedom, a right sampler exceeds this once in 10,000.
  limit = {2: 18.4, 15: 44.3}[len(mean) - 1]
  assert ((seen - mean) ** 2 / mean).sum() < limit
  # And a sampler at another temperature would be far outside.
  other = softmax(logits, temperature * 1.5)[expected > 0]
  other *= count / other.sum()
  assert ((seen - other) ** 2 / other).sum() > limit


def test_a_sampled_text_depends_on_what_came_before():
  """The next token is drawn from its own softmax, not from the prompt's."""
  made, variables = model()
  forward = jax.jit(build(made).apply)
  for prompt in (PROMPT, np.array([7, 7, 7, 2, 2])):
    logits = np.asarray(forward(variables, jnp.asarray(prompt)[None])[0, -1])
    best = np.argsort(logits)[-2:]
    how = {'temperature': 1.0, 'top_k': 2}
    first = {
      int(generate(made, variables, 1, prompt, seed=seed, **how)[0])
      for seed in range(40)
    }
    assert first <= set(best.tolist())
    assert int(best[-1]) in first


def test_what_cannot_be_continued():
  made, variables = model()
  for tokens, prompt, rule in [
    (0, PROMPT, 'must be at least 1, got 0'),
    (3, PROMPT[:0], 'the prompt is empty'),
    (L - 4, PROMPT, 'a prompt of 5 tokens and 28 more exceed model.max_len 32'),
  ]:
    with pytest.raises(BadInput, match=rule):
      generate(made, variables, tokens, prompt)
  for how, rule in [
    ({'temperature': -0.5}, 'temperature must be at least 0, got -0.5'),
    ({'temperature': float('nan')}, 'temperature must be at least 0, got nan'),
    ({'top_k': V + 1}, f'top_k must be 0 to {V}, got {V + 1}'),
    ({'top_k': -1}, f'top_k must be 0 to {V}, got -1'),
  ]:
    with pytest.raises(BadInput, match=rule):
      generate(made, variables, 1, **how)
  encoder, variables = model(family='encoder')
  with pytest.raises(BadInput, match='needs a decoder, got an encoder'):
    generate(encoder, variables, 1)
