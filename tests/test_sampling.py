"""Generation against a plain loop, and what is drawn against probabilities."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm import config
from shared_tfm.errors import BadInput
from shared_tfm.infer import sampling
from shared_tfm.infer.choice import Choice, Sampling, choose
from shared_tfm.infer.pieces import Pieces
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
  (added,) = sampling.generate(
    made, variables, [prompt], tokens, Sampling(**how)
  )
  return added


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
    ({'top_p': 0.0}, 'top_p must be above 0 and at most 1, got 0.0'),
    ({'top_p': 1.5}, 'top_p must be above 0 and at most 1, got 1.5'),
    ({'repetition_penalty': 0.0}, 'repetition_penalty must be above 0'),
    ({'seed': -1}, 'seed must be 0 to'),
  ]:
    with pytest.raises(BadInput, match=rule):
      generate(made, variables, 1, **how)
  encoder, variables = model(family='encoder')
  with pytest.raises(BadInput, match='needs a decoder, got an encoder'):
    generate(encoder, variables, 1)


PROMPTS = [PROMPT, np.array([7]), np.array([2, 2, 9]), PROMPT[::-1]]


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_text_is_the_same_alone_and_among_others(temperature):
  made, variables = model('rotary')
  how = Sampling(temperature, top_k=12, top_p=0.95, repetition_penalty=1.2)
  together = sampling.generate(made, variables, PROMPTS, 20, how)
  assert len({tuple(added.tolist()) for added in together}) > 1
  for row, (prompt, added) in enumerate(zip(PROMPTS, together, strict=True)):
    alone = dataclasses.replace(how, seed=row)
    (expected,) = sampling.generate(made, variables, [prompt], 20, alone)
    np.testing.assert_array_equal(added, expected)


def test_a_stream_tells_what_is_there_already():
  made, variables = model()
  how = Sampling(1.0, seed=3)
  (at_once,) = sampling.generate(made, variables, [PROMPT], 7, how)
  pieces = sampling.stream(made, variables, [PROMPT], 7, how, every=3)
  told = [added.tolist() for (added,) in pieces]
  assert told == [at_once[:end].tolist() for end in (3, 6, 7)]


def test_a_text_ends_at_its_eos_and_others_go_on():
  made, variables = model('rotary')
  how = Sampling(1.0)
  free = sampling.generate(made, variables, PROMPTS, 20, how)
  eos = int(free[1][4])
  ended = sampling.generate(made, variables, PROMPTS, 20, how, eos)
  for added, expected in zip(ended, free, strict=True):
    at = [*np.flatnonzero(expected == eos), 19][0]
    assert added.tolist() == expected[: at + 1].tolist()
  assert len({len(added) for added in ended}) > 1


def chosen(logits, text=(0,), **how):
  """The distribution of the next token, by 4,000 seeds."""
  rows = 4000
  choice = Choice.of([Sampling(**how, seed=seed) for seed in range(rows)])
  found = jax.jit(choose)(
    choice,
    jnp.broadcast_to(jnp.array(logits, jnp.float32), (rows, len(logits))),
    jnp.broadcast_to(jnp.array(text), (rows, len(text))),
    jnp.full(rows, len(text)),
  )
  return np.bincount(found, minlength=len(logits)) / rows


def test_the_nucleus_is_the_fewest_that_have_the_probability():
  p = np.array([0.1, 0.4, 0.05, 0.25, 0.2])
  how = {'temperature': 1.0, 'text': (2,)}
  for top_p, kept in [
    (0.3, [1]),
    (0.5, [1, 3]),
    (0.8, [1, 3, 4]),
    (1.0, p > 0),
  ]:
    expected = np.zeros(5)
    expected[kept] = p[kept]
    expected /= expected.sum()
    found = chosen(np.log(p), top_p=top_p, **how)
    assert ((found > 0) == (expected > 0)).all()
    np.testing.assert_allclose(found, expected, atol=0.03)
  both = chosen(np.log(p), top_k=2, top_p=0.7, **how)  # 0.4 / 0.65 < 0.7
  assert (both > 0).tolist() == [False, True, False, True, False]


def test_what_was_said_is_penalised():
  logits = np.array([2.0, 1.9, -1.0, -1.1])
  said = {'text': (0, 2, 3), 'temperature': 1.0, 'repetition_penalty': 2.0}
  expected = softmax(np.array([1.0, 1.9, -2.0, -2.2]))
  np.testing.assert_allclose(chosen(logits, **said), expected, atol=0.03)
  greedy = {'text': (0, 2), 'repetition_penalty': 1.1}
  assert chosen(logits, **greedy).argmax() == 1
  assert chosen(logits, text=(2,)).argmax() == 0


@pytest.mark.slow
def test_rows_choose_by_rules_of_their_own():
  logits = jnp.log(jnp.array([[0.1, 0.5, 0.4]] * 3))
  how = [Sampling(), Sampling(5.0, top_k=1, seed=1), Sampling(1e3, seed=3)]
  found = {
    tuple(
      choose(
        Choice.of([dataclasses.replace(h, seed=seed) for h in how]),
        logits,
        jnp.zeros((3, 1), jnp.int32),
        jnp.ones(3, jnp.int32),
      ).tolist()
    )
    for seed in range(20)
  }
  assert {(a, b) for a, b, _ in found} == {(1, 1)}
  assert {c for _, _, c in found} == {0, 1, 2}


def decode(tokens):
  return bytes(tokens).decode(errors='replace')


def told(text, stop=(), last=True):
  """What is told after each byte, and in the end."""
  tokens, pieces = np.frombuffer(text.encode(), np.uint8), Pieces(decode, stop)
  found = [pieces.add(tokens[:end]) for end in range(1, len(tokens) + 1)]
  return [*found, pieces.add(tokens, last=last)], pieces.over


def test_pieces_hold_back_what_is_not_certain():
  assert told('aé!') == (['a', '', 'é', '!', ''], False)
  found, over = told('one. two. three', stop=['. t', 'zz', ''])
  assert ''.join(found) == 'one' and over
  assert found[3:5] == ['', '']  # '.' and '. ' may be its start
  found, over = told('one. Two. ', stop=['. t'])
  assert ''.join(found) == 'one. Two. ' and not over
  assert found[-1] == '. '
