"""Requests at different depths of one batch get what each would get alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm import config
from shared_tfm.errors import BadInput
from shared_tfm.infer import sampling
from shared_tfm.infer.batching import Batcher, Request
from shared_tfm.infer.choice import Sampling
from shared_tfm.model import build
from shared_tfm.report import gallery
from shared_tfm.sharing.presets import PRESETS

V, M = 24, 64
KINDS = {
  'all': {'num_layers': 4, 'sharing': {'layer': 'all'}}
  | {'depth': {'criterion': 'latent', 'threshold': 0.5}},
  'prelude and coda': {
    'num_layers': 10,
    'sharing': {'layer': 'recurrent:1/2x4/1'},
    'depth': {'criterion': 'kl', 'threshold': 0.3, 'injection': 'add'},
  },
  'halting': {'num_layers': 8, 'sharing': {'layer': 'cycle:2'}}
  | {'depth': {'rule': 'ponder', 'criterion': 'cdf', 'threshold': 0.7}},
  'by distance': {'num_layers': 4, 'sharing': {'layer': 'all'}}
  | {'position': 'relative', 'depth': {'criterion': 'kl', 'threshold': 0.3}},
  'no criterion': {'num_layers': 4, 'sharing': {'layer': 'cycle:2'}}
  | {'step_signal': 'sinusoidal', 'position': 'rotary'},
}


# One of each way in which all tokens run all of the model.
WHOLE = {
  'nothing shared': {'num_layers': 2},
  'maps': {'sharing': {'layer': 'cycle:3', 'map_source': 'sequence:3'}},
  'keys of loops': {'sharing': {'layer': 'cycle:3', 'kv_source': 'cycle:3'}}
  | {'depth': {'criterion': 'kl', 'threshold': 0.3}},
  'batch norm, a Safe embedding': {'norm': 'batchnorm', 'embed_dim': 16}
  | {'embed_project': 'safe', 'tables': 'state'},
}
WHOLE_PRESETS = ('hrm', 'moeut', 'mor_cycle', 'universal_act')


@functools.cache
def ready(kind):
  sizes = {'d_model': 32, 'num_heads': 4, 'vocab_size': V, 'max_len': M}
  given = {'model': {**sizes, 'd_ff': 48, **{**KINDS, **WHOLE}.get(kind, {})}}
  if kind in PRESETS:
    preset = PRESETS[kind]
    sizes |= {**gallery.SMALL, 'num_layers': preset.layers}
    given = {'preset': preset.example, 'model': sizes}
  made = config.cross(given)
  init = jax.jit(build(made).init)
  variables = init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  random = np.random.default_rng(1)
  params = jax.tree.map(
    lambda leaf: 1.5 * leaf + 0.1 * random.standard_normal(leaf.shape),
    variables['params'],
  )
  variables = {**variables, 'params': params}
  if 'batch_stats' in variables:  # else streams of 1e7, which round at random
    text = random.integers(0, V, (8, M))
    seen = build(made, train=True)
    run = jax.jit(functools.partial(seen.apply, mutable=['batch_stats']))
    for _ in range(300):
      variables |= run(variables, text)[1]
  return made, variables


def requests(count=9):
  random = np.random.default_rng(2)
  return [
    Request(
      random.integers(0, V, random.integers(1, 9)),
      int(random.integers(1, 16)),
      Sampling(float(number % 2), top_k=12, seed=number),
    )
    for number in range(count)
  ]


def alone(made, variables, request, eos, policy='visit'):
  (added,) = sampling.generate(
    made,
    variables,
    [request.prompt],
    request.tokens,
    request.how,
    eos,
    policy,
  )
  return added.tolist()


def batched(kind, given, rows=3, **how):
  batcher = Batcher(*ready(kind), rows, M, **how)
  for request in given:
    batcher.add(request)
  return {done.number: done for done in batcher.drain()}


@pytest.mark.parametrize(
  'kind',
  [
    pytest.param(kind, marks=() if kind == 'all' else pytest.mark.slow)
    for kind in KINDS
  ],
)
@pytest.mark.parametrize('together', [False, True])
def test_each_request_gets_what_it_gets_alone(kind, together):
  given, eos = requests(), 3
  found = batched(kind, given, eos=eos, together=together)
  assert sorted(found) == list(range(len(given)))
  for number, request in enumerate(given):
    expected = alone(*ready(kind), request, eos)
    assert found[number].tokens.tolist() == expected
  per_token = {
    done.loops / (len(done.tokens) - 1)
    for done in found.values()
    if len(done.tokens) > 1
  }
  assert (len(per_token) > 1) == (kind != 'no criterion') or together


@pytest.mark.parametrize(
  'kind',
  [
    pytest.param(
      kind, marks=() if kind == 'nothing shared' else pytest.mark.slow
    )
    for kind in (*WHOLE, *WHOLE_PRESETS)
  ],
)
def test_so_it_is_where_all_tokens_run_all_of_the_model(kind):
  given = requests(5)
  found = batched(kind, given, eos=3)
  for number, request in enumerate(given):
    expected = alone(*ready(kind), request, 3)
    assert found[number].tokens.tolist() == expected


@pytest.mark.slow
def test_an_owners_slot_is_enough_for_its_loops():
  given = requests(5)
  found = batched('all', given, policy='owner')
  for number, request in enumerate(given):
    expected = alone(*ready('all'), request, -1, 'owner')
    assert found[number].tokens.tolist() == expected


@pytest.mark.slow
def test_nobody_waits_for_the_deepest():
  """Of the same tokens, fewer ticks than where all wait for all."""
  made, variables = ready('all')
  ticks = {}
  for together in (False, True):
    batcher = Batcher(made, variables, 4, M, together=together)
    for request in requests(8):
      batcher.add(dataclasses.replace(request, tokens=16))
    ticks[together] = 0
    while batcher.busy:
      list(batcher.run(1))
      ticks[together] += 1
  assert ticks[False] < ticks[True]


@pytest.mark.slow
def test_requests_come_and_go_while_others_run():
  made, variables = ready('all')
  long, second, third, late = (
    dataclasses.replace(request, tokens=tokens)
    for request, tokens in zip(requests(4), (20, 6, 5, 7), strict=True)
  )
  batcher = Batcher(made, variables, 2, M)
  one, two, three = (batcher.add(each) for each in (long, second, third))
  assert list(batcher.run(2)) == []
  (_, running), *_ = batcher.progress().items()
  assert 1 <= len(running) < 20
  batcher.cancel(one)  # which runs
  batcher.cancel(three)  # which waits
  four = batcher.add(late)
  found = {done.number: done.tokens.tolist() for done in batcher.drain()}
  assert sorted(found) == [two, four]
  assert found[two] == alone(made, variables, second, -1)
  assert found[four] == alone(made, variables, late, -1)
  assert not batcher.busy and batcher.progress() == {}


def test_what_cannot_be_batched():
  made, variables = ready('all')
  batcher = Batcher(made, variables, 2, 16)
  for request, rule in [
    (Request(np.array([], int), 3), 'the prompt is empty'),
    (Request(np.arange(10), 7), 'a prompt of 10 tokens and 7 more exceed the'),
    (Request(np.arange(3), 3, Sampling(top_k=-1)), 'top_k must be 0 to 24'),
  ]:
    with pytest.raises(BadInput, match=rule):
      batcher.add(request)
  assert not batcher.busy
  for how, rule in [
    ({'rows': 0}, 'at least 1 row, got 0'),
    ({'places': M + 1}, 'places must be 2 to model.max_len 64, got 65'),
    ({'policy': 'first'}, 'a cache per first is not for several depths'),
  ]:
    with pytest.raises(BadInput, match=rule):
      Batcher(made, variables, **{'rows': 2, 'places': 16, **how})
  encoder = config.cross({'model': {'family': 'encoder', 'max_len': M}})
  with pytest.raises(BadInput, match='needs a decoder, got an encoder'):
    Batcher(encoder, {}, 2, 16)
