"""Fewer bits: how far what is rounded moves, that whole numbers compute what
the rounded floats do, and what they take.
"""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_cache
import test_cli
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file
from test_cli import refused, said
from test_stack import score

from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.config import sides
from shared_tfm.config.shapes import is_multiplied
from shared_tfm.errors import BadInput
from shared_tfm.layers import ranges
from shared_tfm.layers.ranges import RANGES
from shared_tfm.model import build
from shared_tfm.model.storage import as_held, rounded
from shared_tfm.sharing import integers, narrow
from shared_tfm.sharing.integers import Rounded
from shared_tfm.sharing.rounding import parse
from shared_tfm.train import loop

here, run, trained = test_cli.here, test_cli.run, test_cli.trained

B, L, V = 2, 8, 64
TOKENS = np.random.default_rng(0).integers(0, V, (B, L))
NETWORKS = {
  'all': {'sharing': {'layer': 'all'}},
  'a sum': {'sharing': {'layer': 'cycle:3+none@5+none@diagonal'}},
  'templates': {'sharing': {'layer': 'soft:2'}, 'use_bias': False},
  'heads': {'sharing': {'layer': 'sequence:2|sequence:2'}},
  'experts': {'experts': {'num_ff': 4, 'top_k': 2, 'ff_width': 10}},
  'one table for two sides': {
    'family': 'encoder_decoder',
    'num_decoder_layers': 3,
    'sharing': {'layer': 'all', 'across': 'feed_forward'},
  },
  'loops': {'sharing': {'layer': 'cycle:3'}, 'depth': {'rule': 'exits'}},
}
SPECS = 'int8', 'int8:8', 'int4', 'int4:6'  # inputs are 16, 22, 10, 4 and 5


def config_of(weights='none', name='all', quantise=(), **model):
  sizes = {'num_layers': 6, 'd_model': 16, 'num_heads': 4, 'max_len': L}
  sizes |= {'d_ff': 22, 'vocab_size': V, **NETWORKS[name], **model}
  bits = {'weights': weights, **dict(quantise)}
  return configs.cross({'model': {**sizes, 'quantise': bits}})


def inputs_of(config):
  both = config.model.family == 'encoder_decoder'
  return {'source_BS': TOKENS[:, :5]} if both else {}


def shapes_of(config):
  def init(key):
    return nn.unbox(build(config).init(key, TOKENS, **inputs_of(config)))

  return jax.eval_shape(init, jax.random.key(0))


def variables_of(config):
  """Random weights, no two rows or biases alike; ranges that were not seen."""
  random = np.random.default_rng(2)

  def fill(path, leaf):
    if path[0].key != 'params':
      return np.full(leaf.shape, float(path[-1].key == 'var'), np.float32)
    near = float(path[-1].key == 'scale')
    values = near + 0.2 * random.normal(size=leaf.shape)
    return values.astype(np.float32)

  return jax.tree_util.tree_map_with_path(fill, shapes_of(config))


def stacks_of(config, params, function):
  """The parameters, with a function of each stack's bank in its place."""
  stacks = sides.stacks(config.model).items()
  return params | {name: function(side, params[name]) for name, side in stacks}


def widened(bank):
  """A bank, with what its rounded matrices stand for."""
  return jax.tree.map(
    narrow.whole, bank, is_leaf=lambda a: isinstance(a, narrow.Cast | Rounded)
  )


def logits(config, params, **variables):
  variables = {'params': params, **variables}
  return build(config).apply(variables, TOKENS, **inputs_of(config))


# Tensors.


@pytest.mark.parametrize('spec', ('int8', 'int8:3', 'int4', 'int4:3', 'int4:9'))
@pytest.mark.parametrize('inputs', (1, 6, 7))
def test_a_weight_moves_by_half_a_step_at_most(spec, inputs):
  rounding = parse(spec)
  random = np.random.default_rng(0)
  tensor = random.standard_normal((2, inputs, 5)).astype(np.float32)
  tensor[0, :, 1] = 0
  found = integers.rounded(jnp.asarray(tensor), rounding)
  assert found.values.nbytes + found.scales.nbytes == rounding.bytes_of(
    tensor.shape
  )
  size = rounding.size(inputs)
  steps = np.repeat(found.scales, size, axis=1)[:, :inputs]
  wide = np.asarray(found.whole())
  assert (np.abs(wide - tensor) <= steps * 0.5001).all()
  np.testing.assert_array_equal(wide[0, :, 1], 0)
  for first in range(0, inputs, size):  # a group's largest is met
    group = np.abs(tensor[:, first : first + size]).max(axis=1)
    met = np.abs(wide[:, first : first + size]).max(axis=1)
    np.testing.assert_allclose(met, group, rtol=1e-6)
  for row in range(2):
    np.testing.assert_array_equal(found.row(row), wide[row])
  numbers = np.round(wide / steps)
  np.testing.assert_allclose(wide, numbers * steps, rtol=1e-6)
  assert np.abs(numbers).max() == rounding.most


def test_four_bits_are_coarser_and_groups_finer():
  random = np.random.default_rng(0)
  tensor = jnp.asarray(random.standard_normal((1, 128, 64)), jnp.float32)

  def error(spec):
    off = integers.rounded(tensor, parse(spec)).whole() - tensor
    return float(jnp.sqrt(jnp.mean(off**2)))

  assert error('int8') < 0.01 < 0.06 < error('int4:16') < error('int4:64')
  assert error('int4:64') < error('int4') < 0.2


# The two forms of a network.


FORMS = [(spec, 'a sum') for spec in SPECS]
FORMS += [('int4:6', name) for name in NETWORKS if name != 'a sum']


@pytest.mark.parametrize(('spec', 'name'), FORMS)
def test_integers_compute_what_rounded_floats_do(spec, name):
  """And take the bytes that are said."""
  floats = config_of(spec, name)
  whole = config_of(spec, name, {'store': 'integers'})
  params = variables_of(floats)['params']

  @jax.jit
  def both(params):
    stored = stacks_of(whole, params, as_held)
    return stored, logits(floats, params), logits(whole, stored)

  stored, expected, found = both(params)
  spread = float(np.ptp(expected))
  np.testing.assert_allclose(found, expected, atol=1e-5 * spread)
  made = shapes_of(whole)['params']
  assert jax.tree.map(lambda a: (a.shape, a.dtype), made) == jax.tree.map(
    lambda a: (a.shape, a.dtype), stored
  )
  for config, there in ((floats, params), (whole, stored)):
    described = accounting.describe(config)
    leaves = jax.tree.leaves(there)
    assert described['weight_bytes'] == sum(leaf.nbytes for leaf in leaves)
    assert described['params']['stored'] == sum(
      leaf.size for leaf in jax.tree.leaves(params)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'rule'),
  (('all', 'sum'), ('a sum', 'mean'), ('templates', 'sum'), ('heads', 'owner')),
)
def test_gradients_go_straight_through(name, rule):
  """They are a plain network's at the weights that rounding leads to."""
  config = config_of('int4:6', name, shared_gradient=rule)
  plain = config_of(name=name, shared_gradient=rule)
  params = variables_of(config)['params']

  @jax.jit
  def both(params):
    def loss(params, config):
      return score(logits(config, params))

    there = stacks_of(
      config, params, lambda side, bank: widened(rounded(side, bank))
    )
    gradient = jax.grad(loss)
    return gradient(params, config), gradient(there, plain), there

  found, expected, there = both(params)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, there)
  assert max(jax.tree.leaves(moved)) > 0.01
  for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    size = float(np.abs(other).max())
    np.testing.assert_allclose(one, other, atol=1e-5 * size + 1e-9)


def inner(equation):
  """The programs inside an operation of a program."""
  for value in equation.params.values():
    for each in value if isinstance(value, tuple | list) else (value,):
      each = getattr(each, 'jaxpr', each)
      if hasattr(each, 'eqns'):
        yield each


def roundings(program, inside=False):
  """(whether inside a loop, how many numbers) of every rounding."""
  for equation in program.eqns:
    if equation.primitive.name == 'round':
      yield inside, equation.outvars[0].aval.size
    loops = equation.primitive.name in ('scan', 'while')
    for within in inner(equation):
      yield from roundings(within, inside or loops)


@pytest.mark.parametrize('layer', ('all', 'cycle:3', 'cycle:2+none@4'))
def test_a_stored_row_is_rounded_once(layer):
  """However many visits read it: outside the loop, and not again in it."""
  for store, times in (('float32', 1), ('integers', 0)):
    config = config_of(
      'int8', quantise={'store': store}, sharing={'layer': layer}
    )
    params = shapes_of(config_of(sharing={'layer': layer}))['params']

    def run(stored, config=config):
      return logits(config, stored)

    program = jax.make_jaxpr(run)(shapes_of(config)['params'])
    found = list(roundings(program.jaxpr))
    matrices = [
      leaf.size
      for path, leaf in flatten_dict(params['stack']).items()
      if 'kernel' in path
    ]
    assert sum(size for _, size in found) == times * sum(matrices)
    assert len(found) == times * len(matrices)
    assert not any(inside for inside, _ in found)


@pytest.mark.parametrize(
  'remat',
  (
    'none',
    *(pytest.param(n, marks=pytest.mark.slow) for n in ('dots', 'full')),
  ),
)
def test_no_policy_keeps_a_widened_row_of_every_visit(remat):
  """Twelve visits of one row hold fewer than four float copies of it."""
  config = config_of(
    'int8',
    num_layers=12,
    d_model=256,
    d_ff=1024,
    remat=remat,
    activation='relu',
  )

  def loss(params):
    return score(logits(config, params))

  shapes = shapes_of(config)['params']
  row = 4 * sum(a.size for a in jax.tree.leaves(shapes['stack']))
  memory = jax.jit(jax.grad(loss)).lower(shapes).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 4 * row


def test_rounded_rows_in_bfloat16():
  floats = config_of('int8', dtype='bfloat16')
  whole = config_of('int8', quantise={'store': 'integers'}, dtype='bfloat16')
  params = variables_of(floats)['params']

  @jax.jit
  def both(params):
    stored = stacks_of(whole, params, as_held)
    return logits(floats, params), logits(whole, stored)

  np.testing.assert_array_equal(*both(params))


# Activations.

EIGHT = {'activations': 'int8'}


def seen(config, variables, tokens=TOKENS):
  """The variables, with ranges that follow what a network reads."""
  variables = {name: variables[name] for name in ('params', RANGES)}
  _, after = build(config).apply(variables, tokens, mutable=[RANGES])
  return {**variables, **after}


@pytest.mark.slow
def test_ranges_are_a_visits_own_or_its_rows():
  shared = {'layer': 'cycle:2'}
  own = config_of(quantise={**EIGHT, 'ranges': 'visit'}, sharing=shared)
  rows = config_of(quantise=EIGHT, sharing=shared)
  variables = variables_of(own)
  apart, joint = (
    flatten_dict(seen(c, variables)[RANGES]['stack']['layer'])
    for c in (own, rows)
  )
  assert len(apart) == 6  # maps of a layer, each with six visits
  for path, range_N in apart.items():
    assert range_N.shape == (6,) and len(np.unique(range_N)) == 6, path
    assert (range_N > 0).all()
  for path, range_N in joint.items():
    np.testing.assert_array_equal(range_N[:2], range_N[2:4], str(path))
    np.testing.assert_array_equal(range_N[:2], range_N[4:], str(path))
    assert range_N[0] != range_N[1]
  # The first visits of both have read the same.
  path = ('attention', 'query', 'input')
  assert joint[path][0] >= apart[path][0]


def test_ranges_rise_at_once_and_fall_slowly():
  config = config_of(quantise={**EIGHT, 'ranges': 'visit'})
  variables = variables_of(config)
  path = ('stack', 'layer', 'attention', 'query', 'input')

  def first(variables):
    return float(flatten_dict(variables[RANGES])[path][0])

  wide = seen(config, variables)
  doubled = jax.tree.map(lambda a: 2 * a, wide[RANGES])
  fallen = seen(config, {**wide, RANGES: doubled})
  assert first(fallen) == pytest.approx(first(wide) * 1.99, rel=1e-5)
  halved = jax.tree.map(lambda a: a / 2, wide[RANGES])
  assert first(seen(config, {**wide, RANGES: halved})) == first(wide)


def test_what_is_read_is_one_of_255_numbers():
  x = jnp.asarray(np.random.default_rng(0).standard_normal((50, 40)))
  y = np.asarray(ranges._rounded(x, jnp.float32(1.5)))
  numbers = y * 127 / 1.5
  np.testing.assert_allclose(numbers, np.round(numbers), atol=1e-4)
  inside = np.abs(x) <= 1.5
  assert 0.5 < inside.mean() < 1
  assert np.abs(y - x)[inside].max() <= 1.5 / 127 / 2 * 1.001
  np.testing.assert_allclose(np.abs(y)[~inside], 1.5, rtol=1e-6)
  grad = jax.grad(lambda x: jnp.sum(3 * ranges._rounded(x, 1.5)))(x)
  np.testing.assert_array_equal(grad, np.where(inside, 3, 0))
  # A range that was never seen rounds nothing.
  np.testing.assert_array_equal(ranges._rounded(x, jnp.float32(0)), x)


@pytest.mark.parametrize(
  'model',
  (
    {'sharing': {'layer': 'cycle:3', 'kv_source': 'cycle:3'}},
    {'norm': 'batchnorm'},
  ),
  ids=('reused-keys', 'batch-norm'),
)
def test_eight_bits_of_activations_change_little(model):
  """Only reading does, and evaluation leaves ranges as they are."""
  plain, config = config_of(**model), config_of(quantise=EIGHT, **model)
  variables = variables_of(config)
  unseen = variables.pop(RANGES)
  expected = logits(plain, **variables)
  found = logits(config, **variables, ranges=unseen)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  _, after = build(config).apply(
    {**variables, RANGES: unseen}, TOKENS, mutable=[RANGES]
  )
  off = np.abs(logits(config, **variables, **after) - expected).max()
  assert 1e-4 < off / np.ptp(expected) < 0.05


def test_a_percentile_is_below_the_largest():
  wide, tight = (
    seen(config, variables_of(config))[RANGES]['stack']['layer']
    for config in (
      config_of(quantise=EIGHT | {'percentile': p}) for p in (100.0, 90.0)
    )
  )
  for most, less in zip(
    jax.tree.leaves(wide), jax.tree.leaves(tight), strict=True
  ):
    assert (less < most).all()


# Keys and values.


@pytest.mark.parametrize(
  'policy',
  (
    'owner',
    *(pytest.param(p, marks=pytest.mark.slow) for p in ('visit', 'first')),
  ),
)
def test_eight_bits_of_keys_change_little(policy):
  """Logits move by a hundredth of their spread, and at most by a twentieth."""
  plain = test_cache.config_of()
  eight = test_cache.config_of(quantise={'cache': 'int8'})
  _, variables = test_cache.started(plain)
  expected, wide, _ = test_cache.token_by_token(plain, variables, policy)
  found, kept, _ = test_cache.token_by_token(eight, variables, policy)
  if policy == 'visit':
    test_cache.same(expected, test_cache.whole(plain, variables))
  spread = np.ptp(expected, axis=-1).max()
  off = np.abs(found - expected)
  assert 1e-4 * spread < off.mean() < 0.01 * spread
  assert off.max() < 0.05 * spread
  text = kept['stack'].text
  assert text.keys_SBGMK.dtype == text.values_SBGMK.dtype == jnp.int8
  assert text.keys_SBGMK.shape == wide['stack'].text.keys_SBGMK.shape
  if policy == 'visit':
    _, batch, _, places, _ = text.keys_SBGMK.shape
    bytes_of = sum(a.nbytes for a in jax.tree.leaves(text))
    bytes_of -= text.seen_SBM.nbytes
    per_token = accounting.describe(eight)['kv_bytes_per_token']
    assert per_token * batch * places == bytes_of
    # Heads are 8 wide: 8 bytes and a scale, of 32 bytes.
    wide_per_token = accounting.describe(plain)['kv_bytes_per_token']
    assert per_token * 32 == wide_per_token * 12


@pytest.mark.slow
@pytest.mark.parametrize('part', ('two sides', 'a coda where a token leaves'))
def test_eight_bits_are_kept_of_sources_and_of_loops(part):
  model = test_cache.PARTS[part]
  plain = test_cache.config_of(**model)
  eight = test_cache.config_of(**model, quantise={'cache': 'int8'})
  _, variables = test_cache.started(plain)
  expected, *_ = test_cache.token_by_token(plain, variables, leaves=True)
  found, *_ = test_cache.token_by_token(eight, variables, leaves=True)
  off, spread = np.abs(found - expected), np.ptp(expected, axis=-1).max()
  assert np.median(off) < 0.01 * spread
  assert off.max() > 1e-5 * spread


# Bad input.


@pytest.mark.parametrize(
  ('quantise', 'model', 'line'),
  (
    (
      {'weights': 'int3'},
      {},
      'weights are rounded to none, int8 or int4, with :G for a scale for every'
      " G inputs as in int4:64, got 'int3'",
    ),
    (
      {'weights': 'int4:0'},
      {},
      'weights are rounded to none, int8 or int4, with :G for a scale for every'
      " G inputs as in int4:64, got 'int4:0'",
    ),
    (
      {'store': 'integers'},
      {},
      'model.quantise.store integers needs model.quantise.weights, got none',
    ),
    (
      {'activations': 'int4'},
      {},
      "unknown model.quantise.activations 'int4'; did you mean 'int8'?",
    ),
    (
      {'percentile': 101.0},
      {},
      'model.quantise.percentile must be above 0 and at most 100, got 101.0',
    ),
    (
      {'activations': 'int8'},
      {'dtype': 'float8'},
      'model.quantise.activations int8 needs a model.dtype that is not float8,'
      ' which rounds them, too',
    ),
    (
      {'activations': 'int8'},
      {'depth': {'rule': 'act'}},
      'model.quantise.activations keeps ranges per visit and needs a fixed'
      ' depth, got model.depth.rule act',
    ),
  ),
)
def test_what_cannot_be(quantise, model, line):
  with pytest.raises(BadInput) as raised:
    config_of(quantise.get('weights', 'none'), quantise=quantise, **model)
  assert str(raised.value) == line


def test_other_loops_have_no_ranges():
  config = config_of(quantise=EIGHT)
  with pytest.raises(BadInput, match='has a range for every visit, and no mor'):
    configs.with_loops(config, 9)


# The verbs.


def scored(capsys, folder):
  words = 'evaluate', f'--workdir={folder}', '--json'
  return json.loads(said(capsys, *words))['loss']


MAKE = 'convert', '--from=run', '--quantise=int8'


@pytest.mark.slow
def test_a_run_in_integers(run, capsys):
  """It is made, takes fewer bytes, scores as before, and is not trained."""
  said(capsys, *MAKE, '--workdir=eight')
  assert scored(capsys, 'eight') == pytest.approx(
    scored(capsys, 'run'), abs=2e-3
  )
  config, state = loop.load('eight')
  assert config.model.quantise.integers
  kernel = state.params['stack']['rows']['attention']['query']['kernel']
  assert kernel.values.dtype == jnp.int8 and kernel.values.shape == (3, 16, 16)
  assert not jax.tree.leaves(state.opt_state)
  known = json.loads((run.parent / 'eight/conversion.json').read_text())
  held_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
  assert known['converted']['weight_bytes'] == held_bytes
  assert known['converted']['weight_bytes'] < known['donor']['weight_bytes']
  assert 0 < known['relative_errors']['attention'] < 0.01
  line = refused(capsys, run.parent, 'train', '--workdir=eight')
  assert line == (
    'model.quantise.store integers is not trained: take float32, which trains'
    ' with rounded weights, and convert what comes of it'
  )
  line = refused(
    capsys,
    run.parent,
    *('train', '--config=config.py', '--workdir=new'),
    '--config.train.init_from=eight',
  )
  assert line == (
    'train.init_from eight holds integers, which are not passed on: convert it'
    ' to float32'
  )
  line = refused(
    capsys,
    run.parent,
    *('compare', '--config=config.py', '--sharing=all', '--workdir=new'),
    *(
      f'--config.model.quantise.{x}' for x in ('weights=int8', 'store=integers')
    ),
  )
  assert line.startswith('model.quantise.store integers is not trained')


def test_what_convert_refuses(run, capsys):
  def line(*words):
    return refused(capsys, run.parent, *words, '--workdir=a')

  assert line(*MAKE, '--activations=int8') == (
    '--activations=int8 needs --calibrate=BATCHES, for run has no ranges of'
    ' activations'
  )
  assert line(*MAKE, '--calibrate=2') == (
    '--calibrate 2 is for --activations=int8, got none'
  )
  assert line(*MAKE[:2], '--quantise=8').endswith("got '8'")
  assert 'is not trained' in line(
    *MAKE, '--tune', '--config.model.quantise.store=integers'
  )


@pytest.mark.slow
def test_what_becomes_of_a_run_in_integers(run, capsys):
  """It writes, is exported, and is widened again."""
  said(capsys, *MAKE, '--workdir=eight')
  config, state = loop.load('eight')
  text = said(
    capsys, *('generate', '--workdir=eight', '--prompt=every', '--tokens=4')
  )
  assert text.startswith('every')
  told = json.loads(
    said(capsys, 'export', '--from=eight', '--to=stablehlo', '--out=out')
  )
  held_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
  assert told['bytes']['weights.safetensors'] < 1.2 * held_bytes + 8192
  program = jax.export.deserialize(
    bytearray((run.parent / 'out/program.bin').read_bytes())
  )
  weights = load_file(run.parent / 'out/weights.safetensors')
  tokens = jnp.asarray(TOKENS, jnp.int32)
  np.testing.assert_allclose(
    program.call(weights, {'tokens_BL': tokens}),
    build(config).apply({'params': state.params}, tokens),
    atol=1e-5,
  )
  floats = '--config.model.quantise.cache=int8', '--quantise=none'
  said(capsys, 'convert', '--from=eight', '--workdir=wide', *floats)
  assert scored(capsys, 'wide') == pytest.approx(
    scored(capsys, 'eight'), abs=1e-6
  )
  assert not loop.load('wide')[0].model.quantise.integers


@pytest.mark.slow
def test_training_with_rounded_weights_makes_up_for_them(here, capsys):
  """Eight bits cost next to nothing, four cost something, and less tuned."""
  words = 'train', '--config=config.py', '--workdir=run'
  sizes = (
    '--config.train.num_steps=150',
    '--config.optimizer.learning_rate=5e-3',
  )
  said(capsys, *words, *sizes)

  def losses(folder, *words):
    said(
      capsys,
      *('convert', '--from=run', f'--workdir={folder}', '--tune'),
      *('--config.train.num_steps=30', '--config.optimizer.learning_rate=1e-3'),
      *words,
    )
    known = json.loads((here / folder / 'conversion.json').read_text())
    return known['losses']

  eight = losses(
    'eight', '--quantise=int8', '--activations=int8', '--calibrate=2'
  )
  assert eight['converted'] == pytest.approx(eight['donor'], abs=0.01)
  four = losses('four', '--quantise=int4')
  cost = four['converted'] - four['donor']
  assert cost > 5 * abs(eight['converted'] - eight['donor'])
  # Tuned as far without rounding, it is the training alone that helps.
  wide = losses('wide', '--quantise=none')
  assert 0 < four['tuned'] - wide['tuned'] < 0.5 * cost

  # What was tuned is stored in integers, and says the same; ranges come along.
  for name in ('four', 'eight'):
    words = 'convert', f'--from={name}', f'--workdir={name}-stored'
    spec = json.loads((here / name / 'config.json').read_text())
    spec = spec['model']['quantise']['weights']
    said(capsys, *words, f'--quantise={spec}', '--checkpoint=latest')
    config, state = loop.load(f'{name}-stored')
    assert config.model.quantise.integers
    _, before = loop.load(name, 'latest')
    variables = {'params': state.params, **state.variables}
    tuned = {'params': before.params, **before.variables}
    plain = dataclasses.replace(config.model.quantise, store='float32')
    floats = dataclasses.replace(config.model, quantise=plain)
    floats = dataclasses.replace(config, model=floats)
    np.testing.assert_allclose(
      build(config).apply(variables, TOKENS),
      build(floats).apply(tuned, TOKENS),
      atol=1e-5,
    )


def test_what_is_rounded():
  """Matrices of layers; neither vectors, routers nor what stands outside."""
  config = config_of('int8', 'experts', {'store': 'integers'})
  shapes = shapes_of(config)['params']
  found = {
    '.'.join(path): isinstance(leaf, Rounded)
    for path, leaf in flatten_dict(shapes).items()
  }
  assert found['stack.rows.attention.query.kernel']
  assert found['stack.rows.feed_forward.up.kernel']
  assert not found['stack.rows.feed_forward.router.kernel']
  assert not found['stack.rows.attention.query.bias']
  assert not found['embedding.token.embedding']
  assert not is_multiplied(('norm', 'attention', 'scale'))
