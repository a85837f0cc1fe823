"""Heads, neurons and visits that are taken out: nothing else changes."""

import dataclasses
import functools
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import test_cli
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file
from test_adaptive import batch
from test_cli import refused, said
from test_encoder_decoder import params_of
from test_prune import crossed
from test_stack import TOKENS, assert_close, tables_of, variables_of
from test_sums import config_of

from shared_tfm import accounting, tasks
from shared_tfm import config as configs
from shared_tfm.compress import (
  begin,
  importance,
  left_out,
  pruning,
  sources,
  units,
)
from shared_tfm.errors import BadInput
from shared_tfm.layers.context import Context
from shared_tfm.layers.layer import Layer
from shared_tfm.model import build, influence, untied
from shared_tfm.train import donor, loop, visits
from shared_tfm.train import state as states

here, run, trained = test_cli.here, test_cli.run, test_cli.trained
PRODUCTS = 'cycle:2+none@3'


def again(config, model):
  """The config, and what its arrays must be."""
  fields = dataclasses.asdict(dataclasses.replace(config, model=model))
  less = configs.cross(fields)
  made = jax.eval_shape(
    functools.partial(build(less).init, jax.random.key(0)),
    TOKENS,
    **reads(less),
  )
  return less, shapes(nn.unbox(made['params']))


def shapes(tree):
  return jax.tree.map(lambda leaf: leaf.shape, tree)


def reads(config):
  both = config.model.family == 'encoder_decoder'
  return {'source_BS': TOKENS[:, ::-1]} if both else {}


def assert_fits(config, model, params):
  """The arrays, the counts and the products have become smaller."""
  less, expected = again(config, model)
  assert shapes(params) == expected
  now, before = (accounting.describe(c) for c in (less, config))
  stored = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert now['params']['stored'] == stored <= before['params']['stored']
  assert (
    now['flops_per_token']['forward'] < before['flops_per_token']['forward']
  )
  return less


def logits(config, params, **others):
  variables = {'params': params, **others}
  return build(config).apply(variables, TOKENS, **reads(config))


# Heads and neurons.

UNITS = [
  ('heads', 1, {'layer': 'cycle:3'}, {}),
  ('heads', 0.25, {'layer': PRODUCTS}, {}),
  ('heads', 2, {'layer': 'soft:2'}, {'num_kv_heads': 2}),  # a whole group
  ('heads', 1, {'layer': 'sandwich'}, {'num_kv_heads': 1}),  # one of each
  ('heads', 1, {'layer': 'all'}, {'family': 'encoder_decoder'}),
  ('neurons', 0.5, {'layer': 'cycle:3'}, {'activation': 'swiglu'}),
  ('neurons', 1, {'layer': PRODUCTS}, {}),
  ('neurons', 0.25, {'layer': 'all'}, {'family': 'encoder_decoder'}),
]


def silenced(config, params, kind, amount):
  """Parameters in which some units of every row give nothing.

  Which ones is another thing in every row, where rows do not meet in a visit.
  """
  flat = {path: np.array(leaf) for path, leaf in flatten_dict(params).items()}
  for path, leaf in flat.items():
    part, suffix = importance.OUT[kind], path[-1]
    if part not in path or suffix in ('bias', 'b'):
      continue
    m = config.model
    total = m.num_heads if kind == 'heads' else m.d_ff
    count = round(amount * total) if amount < 1 else amount
    size = leaf.shape[-2] // total
    layer = m.sharing.layer
    rows = leaf.reshape(len(leaf), total, size, -1)
    for row, values in enumerate(rows):
      met = {PRODUCTS: row % 2, 'cycle:3': row, 'sandwich': row}
      first = met.get(layer, 0) * count % total
      values[first : first + count] = 0
  return unflatten_dict(flat)


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'amount', 'sharing', 'model'), UNITS)
def test_units_that_give_nothing_go_first(kind, amount, sharing, model):
  config = config_of(sharing, **model)
  both = config.model.family == 'encoder_decoder'
  params = params_of(config) if both else variables_of(config)['params']
  params = silenced(config, params, kind, amount)
  scores = importance.by_size(config.model, params, kind)
  made = units.taken_out(config.model, params, scores, kind, amount)
  less = assert_fits(config, *made)
  assert_close(logits(less, made[1]), logits(config, params), 1e-5)
  assert less.model.head_dim == config.model.head_dim
  if model.get('num_kv_heads') == 2:
    assert (less.model.num_heads, less.model.num_kv_heads) == (2, 1)


@pytest.fixture(scope='module')
def small():
  """A config, and a state of it whose every weight is something."""
  model = {'num_heads': 4, 'residual_scale': 'depth'}
  config = crossed('none', layer='cycle:2', model=model)
  state = jax.eval_shape(lambda: states.initial(config, jnp.uint32(0)))
  random = np.random.default_rng(5)
  params = jax.tree.map(
    lambda leaf: jnp.asarray(0.3 * random.normal(size=leaf.shape), leaf.dtype),
    state.params,
  )
  return config, begin.state_of(config, params, {})


@pytest.mark.slow
@pytest.mark.parametrize('kind', importance.OUT)
def test_the_gradient_is_that_of_a_gate(small, kind):
  config, state = small
  given = batch(1)
  slope = jax.jit(visits.visit_gradients(config))(state, given)
  found = importance.by_gradient(config, state.params, [slope, slope], kind)
  ((name, scores_NU),) = found.items()
  part = name.partition('.')[2]
  path = ('stack', 'rows', part, importance.OUT[kind], 'kernel')
  flat = flatten_dict(untied.spread(config.model, state.params, {}))
  whole = dataclasses.replace(config, model=untied.untied(config.model))
  observe = tasks.make(whole).observe

  @jax.jit
  @jax.grad
  def gates(gates_NU):
    each = flat[path].shape[1] // gates_NU.shape[1]
    gated = flat[path] * gates_NU.repeat(each, axis=1)[..., None]
    params = unflatten_dict({**flat, path: gated})
    sums, _ = build(whole).apply({'params': params}, given, method=observe)
    return sums['loss'] / sums['weight']

  expected = 2 * np.abs(gates(jnp.ones(scores_NU.shape)))
  np.testing.assert_allclose(scores_NU, expected, rtol=1e-3, atol=1e-6)
  assert scores_NU.shape[1] == (4 if kind == 'heads' else 64)


@pytest.mark.parametrize(
  ('kind', 'amount', 'sharing', 'model', 'message'),
  [
    ('heads', 4, {}, {}, 'takes from 1 to 3 of 4 heads, got 4'),
    ('heads', 1, {}, {'num_kv_heads': 2}, r'whole groups of 2 .* got 1'),
    ('heads', 1, {'kv_source': 'sequence:2'}, {}, "got 'sequence:2'"),
    ('heads', 1, {'layer': 'all|sequence:2'}, {}, 'share no columns'),
    (
      'heads',
      1,
      {},
      {'experts': {'num_attention': 4}},
      'num_attention 0, got 4',
    ),
    ('neurons', 1, {}, {'experts': {'num_ff': 16}}, 'num_ff 0, got 16'),
    ('neurons', 1, {'layer': 'none@diagonal'}, {}, 'no diagonals'),
    ('neurons', 63, {'layer': PRODUCTS}, {}, 'fewer than the rank'),
    ('neurons', 0.999, {}, {}, 'takes from 1 to 63 of 64 neurons, got 64'),
  ],
)
def test_units_that_cannot_be_taken_out(kind, amount, sharing, model, message):
  config = config_of({'layer': 'all', **sharing}, **model)
  with pytest.raises(BadInput, match=message) as told:
    units.check(config.model, kind)
    params = variables_of(config)['params']
    scores = importance.by_size(config.model, params, kind)
    units.taken_out(config.model, params, scores, kind, amount)
  assert '\n' not in str(told.value)


# Visits.


@pytest.mark.parametrize(
  ('layer', 'gone', 'left', 'norm'),
  [
    ('cycle:3', [1, 2], '0,0,1,2', 'layernorm'),
    ('0,1,0,2,1,2', [3, 5], '0,1,0,1', 'batchnorm'),  # a row goes, too
    ('none', [0, 1, 2, 3, 4], 'none', 'rmsnorm'),
  ],
)
def test_what_is_left_is_the_plain_network_without_it(layer, gone, left, norm):
  config = config_of({'layer': layer}, norm=norm)
  variables = dict(variables_of(config))
  params = variables.pop('params')
  model, less, others = left_out.without(config.model, params, variables, gone)
  assert model.sharing.layer == left
  shorter = assert_fits(config, model, less)
  kept = np.delete(np.arange(6), gone)
  spread = oracle.spread(params['stack']['rows'], tables_of(config))
  plain = dict(params, stack=jax.tree.map(lambda a: a[kept], spread))
  state = dict(variables.get('batch_stats', {}))
  if 'stack' in state:
    state['stack'] = jax.tree.map(lambda a: a[kept], state['stack'])
  expected, _ = oracle.logits(model, plain, state, TOKENS)
  assert_close(logits(shorter, less, **others), expected, 1e-5)


@pytest.mark.parametrize('layer', [PRODUCTS, 'soft:2', 'all+sequence:3'])
def test_so_it_is_of_any_spec(layer):
  config = config_of({'layer': layer, 'attention_key': '=attention.query'})
  params = variables_of(config)['params']
  gone, kept = [1, 4], [0, 2, 3, 5]
  model, less, _ = left_out.without(config.model, params, {}, gone)
  shorter, expected = again(config, model)
  assert shapes(less) == expected
  whole = untied.of_visits(config.model, params, {})['stack']
  found = untied.of_visits(shorter.model, less, {})['stack']
  for path, leaf in found.items():
    np.testing.assert_array_equal(leaf, whole[path][np.array(kept)])


@pytest.mark.slow
def test_visits_are_scored_by_how_far_they_turn_the_stream(small):
  config, state = small
  model, given = config.model, batch(2)
  inputs = [tasks.arguments(given)]
  scores_N = influence.influences(model, state.params, {}, inputs)
  each = untied.of_visits(model, state.params, {})['stack']
  bound = build(config).bind({'params': state.params})
  tokens = given['inputs']
  positions_BL = jnp.broadcast_to(jnp.arange(8), tokens.shape)
  x_BLD, expected = bound.embedding(tokens, positions_BL), []
  for i in range(4):
    own = {'params': unflatten_dict({p: leaf[i] for p, leaf in each.items()})}
    before_BLD = np.asarray(x_BLD, np.float64)
    (x_BLD, _) = Layer(model).apply(own, x_BLD, Context(positions_BL))
    after_BLD = np.asarray(x_BLD, np.float64)
    product = (before_BLD * after_BLD).sum(-1)
    size = np.linalg.norm(before_BLD, axis=-1)
    expected.append(
      1 - (product / size / np.linalg.norm(after_BLD, axis=-1)).mean()
    )
  np.testing.assert_allclose(scores_N, expected, rtol=1e-4)
  # One that adds nothing turns nothing.
  params = flatten_dict(state.params)
  for path, leaf in params.items():
    if 'out' in path or 'down' in path:
      params[path] = leaf.at[1].set(0)
  scores_N = influence.influences(model, unflatten_dict(params), {}, inputs)
  assert np.abs(scores_N[1::2]).max() < 1e-6 < scores_N[::2].min()


@pytest.mark.slow
def test_the_loss_without_a_visit_is_that_of_the_network_without_it(small):
  config, state = small
  found = left_out.losses(config, state.params, {}, [batch(0), batch(1)])
  for i in (1, 2):
    model, params, _ = left_out.without(config.model, state.params, {}, [i])
    less, _ = again(config, model)
    total = 0
    for seed in range(2):
      sums, _ = build(less).apply(
        {'params': params}, batch(seed), method=tasks.make(less).observe
      )
      total += sums['loss'] / sums['weight'] / 2
    assert found[i] == pytest.approx(float(total), rel=1e-5)
  assert found.shape == (4,)


@pytest.mark.parametrize(
  ('sharing', 'model', 'message'),
  [
    ({}, {'family': 'encoder_decoder'}, 'one stack of fixed depth'),
    ({}, {'depth': {'rule': 'act'}}, 'model.depth.rule act'),
    ({'kv_source': 'sequence:2'}, {}, "got 'sequence:2'"),
    ({}, {'step_signal': 'sinusoidal'}, 'step_signal sinusoidal'),
  ],
)
def test_visits_that_cannot_be_left_out(sharing, model, message):
  config = config_of({'layer': 'all', **sharing}, **model)
  with pytest.raises(BadInput, match=message):
    left_out.check(config.model)


# The verb.


def test_what_the_flag_can_say():
  config = config_of({'layer': 'all'})
  assert pruning.parse('heads:2') == ('heads', 2)
  assert pruning.parse('neurons:0.5') == ('neurons', 0.5)
  for text, pattern, sparsity in (
    ('1:4', '1:4', 0.75),
    ('magnitude:0.9', '', 0.9),
  ):
    made = configs.cross(dataclasses.asdict(pruning.masks(config, text)))
    p = made.prune
    assert (p.method, p.schedule, p.start) == ('magnitude', 'once', 0)
    assert (p.pattern, p.sparsity) == (pattern, sparsity)
    assert made.model.masked == 'layer'
  assert pruning.masks(config, 'visits:2') is config


def convert(capsys, prune, *more):
  table = said(
    capsys, 'convert', '--from=run', '--workdir=made', f'--prune={prune}', *more
  )
  known = json.loads(pathlib.Path('made/conversion.json').read_text())
  return table, known, *loop.load('made', 'latest')


@pytest.mark.slow
@pytest.mark.parametrize(
  ('prune', 'more', 'fields'),
  [
    ('heads:1', ('--score=gradient',), {'num_heads': 1, 'head_dim': 8}),
    ('visits:0.25', ('--score=loss', '--sharing=all'), {'num_layers': 9}),
  ],
)
def test_a_smaller_run_is_made(run, capsys, prune, more, fields):
  table, known, config, state = convert(capsys, prune, *more)
  assert {n: getattr(config.model, n) for n in fields} == fields
  assert f'without {prune} (score ' in table
  before, after = known['donor'], known['converted']
  assert after['flops_per_token'] < before['flops_per_token']
  assert known['exact'] == ('--sharing=all' not in more)
  stored = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  assert stored == after['stored_params']
  assert json.loads(said(capsys, 'evaluate', '--workdir=made', '--json'))[
    'loss'
  ]
  assert said(
    capsys, 'generate', '--workdir=made', '--prompt=row', '--tokens=4'
  )
  assert json.loads(said(capsys, 'train', '--workdir=made'))['steps'] == 4


@pytest.mark.slow
def test_a_masked_run_stays_masked(run, capsys):
  """Through training, evaluation, conversion and export."""
  table, known, _, state = convert(
    capsys, 'magnitude:0.75', '--tune', '--config.train.num_steps=2'
  )
  share = 0.75
  assert f'sparsity {share}' in table
  assert known['pruned']['sparsity'] == share
  assert set(known['losses']) == {'donor', 'converted', 'tuned'}
  assert int(state.step) == 2
  gone = {
    path: ~np.asarray(mask)
    for path, mask in flatten_dict(state.variables['masks']).items()
  }
  zeros = sum(each.sum() for each in gone.values())
  assert zeros == share * sum(each.size for each in gone.values())
  result = json.loads(pathlib.Path('made/result.json').read_text())
  assert result['sparsity'] == share
  assert (
    result['non_zero_params'] == known['converted']['stored_params'] - zeros
  )
  # What others are given has zeros there, and no masks.
  given = sources.load(pathlib.Path('made'), 'latest')
  assert (
    given.config.model.masked == '' == sources.config(given.folder).model.masked
  )
  assert given.config.prune.method == 'none' and not given.variables
  said(capsys, 'export', '--from=made', '--to=stablehlo', '--out=out')
  stored = load_file('out/weights.safetensors')
  for path, each in gone.items():
    leaf = stored['.'.join(('params', *path))]
    assert (leaf[each] == 0).all() and (leaf[~each] != 0).mean() > 0.99


@pytest.mark.slow
def test_a_trained_network_is_pruned_step_by_step(run, capsys):
  """And what is best is one of the networks that have all their zeros."""
  prune = {'method': 'magnitude', 'schedule': 'cubic', 'every': 1, 'end': 3}
  given = [f'--config.prune.{name}={value}' for name, value in prune.items()]
  command = 'convert', '--from=run', '--workdir=made', '--tune', *given
  table = said(capsys, *command)
  assert 'without' not in table
  for which in ('best', 'latest'):
    assert int(loop.load('made', which)[1].step) == 4
  result = json.loads(pathlib.Path('made/result.json').read_text())
  assert result['sparsity'] == pytest.approx(0.5, abs=1e-3)
  # Started from, it is a network that has zeros.
  fields = ('--config=config.py', '--config.train.init_from=made')
  said(capsys, 'train', *fields, '--workdir=next', '--config.train.num_steps=1')
  config, state = loop.load('made', 'best')
  first = donor.start(
    dataclasses.replace(
      loop.load('next')[0],
      train=dataclasses.replace(config.train, init_from='made'),
    ),
    loop.load('next')[1],
  )[0]
  kernel = first.params['stack']['rows']['attention']['query']['kernel']
  mask = state.variables['masks']['stack']['rows']['attention']['query']
  np.testing.assert_array_equal(np.asarray(kernel) != 0, mask['kernel'])


@pytest.mark.slow
def test_what_the_flag_refuses(run, capsys):
  def line(*words):
    start = ('convert', '--from=run', '--workdir=made')
    return refused(capsys, run.parent, *start, *words)

  assert line('--prune=head:2') == (
    "unknown kind of --prune 'head'; did you mean 'heads'?"
  )
  assert line('--prune=heads:0') == (
    '--prune=heads is followed by a share below 1 or a number that is taken'
    " away, as heads:2, got 'heads:0'"
  )
  assert "got 'magnitude:2'" in line('--prune=magnitude:2')
  assert line('--prune=4:2').startswith('prune.pattern is written N:M')
  assert line('--prune=heads:2') == (
    '--prune=heads takes from 1 to 1 of 2 heads, got 2'
  )
  assert line('--prune=heads:1', '--score=gradients') == (
    "unknown --score of heads 'gradients'; did you mean 'gradient'?"
  )
  assert line('--prune=2:4', '--score=loss').startswith(
    '--score is for --prune'
  )
  assert line('--prune=visits:12') == (
    '--prune=visits takes from 1 to 11 of 12 visits, got 12'
  )
