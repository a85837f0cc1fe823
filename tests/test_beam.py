"""Beam search finds what trying every text finds."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm import config as configs
from shared_tfm.errors import BadInput
from shared_tfm.infer import beam, best
from shared_tfm.model import build

VOCAB, EOS, START = 5, 3, 4
RANDOM = np.random.default_rng(0)
SOURCES = RANDOM.integers(0, VOCAB, (3, 6))
LENGTHS = np.array([6, 3, 5])
MASK = np.arange(6)[None] < LENGTHS[:, None]
KINDS = {
  'plain': {},
  'deep': {'depth': {'rule': 'act'}},
  'relative': {'position': 'relative', 'relative_buckets': 4}
  | {'relative_distance': 6},
}


@functools.cache
def ready(kind='plain'):
  """A config, and variables that make it choosy."""
  config = configs.cross(
    {
      'model': {
        'family': 'encoder_decoder',
        'num_layers': 2,
        'd_model': 16,
        'num_heads': 2,
        'd_ff': 16,
        'max_len': 20,
        'vocab_size': VOCAB,
        'sharing': {'layer': 'all'},
        **KINDS[kind],
      }
    }
  )
  init = jax.jit(build(config).init)
  variables = init(
    jax.random.key(0), jnp.zeros((1, 2), int), source_BS=SOURCES[:1]
  )
  return config, jax.tree.map(lambda a: 2.5 * a, variables)


@functools.cache
def program(kind):
  """Log-probabilities of every next token, by a plain forward pass."""
  config, variables = ready(kind)

  @jax.jit
  def run(tokens_BL, source_BS):
    logits = build(config).apply(variables, tokens_BL, source_BS=source_BS)
    return jax.nn.log_softmax(logits)

  return run


def following(texts, source, kind='plain'):
  """Log-probabilities of what follows each prefix of each text."""
  tokens = np.array([[START, *text] for text in texts])
  sources = np.repeat(source[None], len(tokens), axis=0)
  return np.asarray(program(kind)(tokens, sources))


def search(sources, mask, max_len, size, alpha, kind='plain'):
  found = beam.beam_search(
    *ready(kind), sources, mask, START, EOS, max_len, size, alpha
  )
  return jax.tree.map(np.asarray, found)


def text(tokens):
  """The tokens of a hypothesis with its eos."""
  kept = beam.until(tokens, EOS)
  return (*kept.tolist(), EOS) if len(kept) < len(tokens) else tuple(kept)


def everything(source, most, kind='plain'):
  """The log-probability of every text of at most so many tokens."""
  others = [token for token in range(VOCAB) if token != EOS]
  found = {}
  for length in range(most):
    texts = [(*rest, EOS) for rest in itertools.product(others, repeat=length)]
    logp = following(texts, source, kind)
    for row, each in enumerate(texts):
      found[each] = sum(logp[row, i, token] for i, token in enumerate(each))
  return found


@pytest.mark.slow
@pytest.mark.parametrize('alpha', [0.0, 0.6, 2.0])
def test_a_beam_that_holds_everything_finds_the_best(alpha):
  """All 1 + 4 + 16 texts of at most 3 tokens, best first.

  The last step has 16 x 5 candidates, which a beam of 80 holds.
  """
  for row in range(len(SOURCES)):
    source = SOURCES[row : row + 1]
    (tokens,), (scores,) = search(source, source >= 0, 3, 80, alpha)
    assert (scores[21:] == -np.inf).all()
    tokens, scores = tokens[:21], scores[:21]
    known = {
      each: logp / ((5 + len(each)) / 6) ** alpha
      for each, logp in everything(source[0], 3).items()
    }
    best = sorted(known, key=known.__getitem__, reverse=True)
    found = [text(each) for each in tokens]
    assert len(known) == len(set(found)) == 21 and set(found) == set(known)
    np.testing.assert_allclose(scores, [known[x] for x in found], rtol=1e-4)
    np.testing.assert_allclose(scores, [known[x] for x in best], rtol=1e-4)


@pytest.mark.slow
def test_the_length_penalty_is_gnmts():
  """Equation 14: 20 tokens at alpha 0.6 count (25/6)^0.6 = 2.35 times one."""
  assert beam.penalty(20, 0.6) == pytest.approx(2.3544, abs=1e-4)
  assert beam.penalty(1, 0.6) == 1


def plain(source, most, size, alpha):
  """The rule of `beam_search`, with lists of texts."""
  live, ended = [((), 0.0)], []
  for _ in range(most):
    padded = [(*each, *(0,) * (most - len(each))) for each, _ in live]
    logp = following(padded + [(0,) * most] * (size - len(live)), source)
    results = [
      ((*each, token), score + logp[row, len(each), token])
      for row, (each, score) in enumerate(live)
      for token in range(VOCAB)
    ]
    results = sorted(results, key=lambda r: r[1], reverse=True)[: 2 * size]
    ended += [
      (each, score / ((5 + len(each)) / 6) ** alpha)
      for each, score in results[:size]
      if each[-1] == EOS
    ]
    live = [r for r in results if r[0][-1] != EOS][:size]
    if len(ended) >= size:
      break
  return sorted(ended, key=lambda r: r[1], reverse=True)[:size]


@pytest.mark.slow
def test_a_narrow_beam_follows_the_rule():
  """Twelve tokens are computed at two lengths; most texts are dropped."""
  for row in range(8):
    source = np.random.default_rng(row).integers(0, VOCAB, 6)
    found = search(source[None], np.ones((1, 6), bool), 12, 3, 0.6)
    expected = plain(source, 12, 3, 0.6)
    for place, (each, score) in enumerate(expected):
      assert text(found[0][0, place]) == each
      assert found[1][0, place] == pytest.approx(score, rel=1e-4)


def greedy(source, most, kind):
  """One token after the other, by whole forward passes."""
  written = ()
  while len(written) < most and EOS not in written:
    padded = (*written, *(0,) * (most - len(written)))
    logp = following([padded], source, kind)[0, len(written)]
    written += (int(logp.argmax()),)
  return written


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_a_beam_of_one_is_greedy(kind):
  """At 12 tokens, which are computed at two lengths; depth may adapt."""
  written = set()
  for row in range(12):
    source = np.random.default_rng(row).integers(0, VOCAB, 6)
    tokens, _ = search(source[None], np.ones((1, 6), bool), 12, 1, 0.6, kind)
    expected = greedy(source, 12, kind)
    assert text(tokens[0, 0]) == expected
    written.add(tuple(expected))
  assert len(written) > 1
  assert kind == 'relative' or len({*map(len, written)}) > 1


@pytest.mark.slow
def test_sentences_and_their_padding_do_not_meet():
  """Alone, or with other padding, the same texts and scores."""
  tokens, scores = search(SOURCES, MASK, 12, 3, 0.6)
  for row, length in ((0, 6), (1, 3)):
    source = SOURCES[row : row + 1, :length]
    alone = search(source, source >= 0, 12, 3, 0.6)
    np.testing.assert_array_equal(alone[0][0], tokens[row])
    np.testing.assert_allclose(alone[1][0], scores[row], rtol=1e-4)
  other = np.where(MASK, SOURCES, (SOURCES + 1) % VOCAB)
  assert (other != SOURCES).any()
  padded = search(other, MASK, 12, 3, 0.6)
  np.testing.assert_array_equal(padded[0], tokens)
  np.testing.assert_allclose(padded[1], scores, rtol=1e-4)


@pytest.mark.slow
def test_nothing_is_searched_for_without_a_source():
  """Rows that fill up a batch do no harm."""
  tokens, _ = search(SOURCES, MASK, 12, 3, 0.6)
  mask = MASK & np.array([[True], [False], [True]])
  found, scores = search(SOURCES, mask, 12, 3, 0.6)
  np.testing.assert_array_equal(found[::2], tokens[::2])
  assert (scores[1] == -np.inf).all()


@pytest.mark.slow
def test_a_text_that_does_not_end_is_cut():
  """With an end that never comes, the likeliest open text is what there is."""
  config, variables = ready()
  found, scores = beam.beam_search(
    config, variables, SOURCES[:1], MASK[:1], START, VOCAB, 2, 16, 0.0
  )
  pairs = list(itertools.product(range(VOCAB), repeat=2))
  logp = following(pairs, SOURCES[0])
  known = [logp[i, 0, a] + logp[i, 1, b] for i, (a, b) in enumerate(pairs)]
  assert tuple(found[0, 0].tolist()) == pairs[int(np.argmax(known))]
  np.testing.assert_allclose(scores[0, 0], max(known), rtol=1e-4)


@pytest.mark.slow
def test_what_beam_search_cannot_do():
  config, variables = ready()
  with pytest.raises(BadInput, match=r'21, exceed model.max_len 20'):
    beam.beam_search(config, variables, SOURCES, MASK, START, EOS, 21, 2, 0.6)
  decoder = configs.cross({})
  with pytest.raises(
    BadInput, match=r'an encoder_decoder, got model.family de'
  ):
    beam.beam_search(decoder, {}, SOURCES, MASK, START, EOS, 4, 2, 0.6)


@pytest.mark.slow
def test_a_decoders_prompts_are_continued():
  """Prompts of two lengths, against every continuation of 3 tokens."""
  config = configs.cross(
    {
      'model': {
        'num_layers': 2,
        'd_model': 16,
        'num_heads': 2,
        'max_len': 8,
        'vocab_size': VOCAB,
      }
    }
  )
  model = build(config)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))
  variables = jax.tree.map(lambda a: 2.5 * a, variables)
  prompts = [np.array([1, 0, 2]), np.array([4])]
  found = best.of_prompts(config, variables, prompts, 3, EOS, 80)
  texts = [
    each[: each.index(EOS) + 1] if EOS in each else each
    for each in itertools.product(range(VOCAB), repeat=3)
  ]
  texts = sorted({each for each in texts if EOS in each})
  for prompt, added in zip(prompts, found, strict=True):
    rows = [(*prompt, *each, *(0,) * (3 - len(each))) for each in texts]
    logp = jax.nn.log_softmax(model.apply(variables, jnp.array(rows)))
    scores = [
      sum(logp[row, len(prompt) - 1 + i, t] for i, t in enumerate(each))
      / beam.penalty(len(each), config.task.length_penalty)
      for row, each in enumerate(texts)
    ]
    assert (*added.tolist(), EOS) == texts[int(np.argmax(scores))]
  with pytest.raises(BadInput, match='a prompt of 3 tokens and 6 more exceed'):
    best.of_prompts(config, variables, prompts, 6, EOS, 2)
