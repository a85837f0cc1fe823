"""Products of eight-bit operands: their rounding, and networks made of them."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import test_stack
import test_sums
from test_configs import CONFIGS
from test_dot import draw, inside_a_loop
from test_presets import examples, new_parts
from test_stack import assert_close, assert_near
from test_step import batch, crossed, walk

from shared_tfm import accounting, config_file, tasks
from shared_tfm import config as configs
from shared_tfm.config.precision import BYTES, PRECISIONS
from shared_tfm.errors import BadInput
from shared_tfm.layers import dot, float8
from shared_tfm.model import build
from shared_tfm.train import state as states
from shared_tfm.train import step as steps

FLOAT8 = PRECISIONS['float8']
VALUES, GRADIENTS = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
LEAST = 2.0**-126


def narrow(x):
  """Rounded to bfloat16."""
  return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16)


def scale_of(x, dtype):
  """By logarithms: the least power of two above what is largest over `most`.

  Where even that cannot be told from 0 in float32, the least there is.
  """
  most = float(ml_dtypes.finfo(dtype).max)
  largest = np.abs(np.asarray(x, np.float64)).max() / most
  if largest < LEAST:
    return LEAST
  return 2.0 ** (np.floor(np.log2(largest)) + 1)


def eighth(x, dtype):
  """What bfloat16 numbers stand for once they have eight bits, in float64."""
  x = np.asarray(narrow(x), np.float64)
  scale = scale_of(x, dtype)
  return (x / scale).astype(dtype).astype(np.float64) * scale


# The rounding.

TENSORS = {
  'normal': draw(0, 40, 60),
  'one number': np.float32([[0.3]]),
  'a power of two': np.float32([448 * 2.0**-5, 57344 * 2.0**-9, 1]),
  'zeros': np.zeros((3, 4), np.float32),
  'one outlier': np.append(1e-3 * draw(1, 99), np.float32(3e4)),
  'huge': 3e38 * np.tanh(draw(2, 50)),
  'tiny': 1e-37 * np.sign(draw(3, 50)) * np.linspace(0.2, 1, 50),
  'many sizes': np.float32(2.0) ** np.arange(-40, 40),
}


@pytest.mark.parametrize('dtype', [VALUES, GRADIENTS])
@pytest.mark.parametrize('name', TENSORS)
def test_a_tensor_in_eight_bits(name, dtype):
  """To the bit; nothing overflows, and no bit of the range is given away."""
  x, most = narrow(TENSORS[name]), float(ml_dtypes.finfo(dtype).max)
  rounded = jax.jit(functools.partial(float8.rounded, dtype=dtype.__name__))
  values, scale = jax.device_get(rounded(x))
  assert values.dtype == dtype and scale.dtype == np.float32
  assert scale == scale_of(x, dtype)
  largest = np.abs(np.float64(x)).max() / float(scale)
  assert largest < most and (largest >= most / 2 or scale == LEAST)
  found = values.astype(np.float64) * float(scale)
  np.testing.assert_array_equal(found, eighth(x, dtype))


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_hidden(bad):
  """A step with such a gradient is dropped: it must not look finite."""
  x = narrow(draw(0, 4, 6))
  x[1, 2] = bad
  kernel, wanted = narrow(draw(1, 6, 8)), []
  for a, b in ((x, kernel), (kernel.T, x.T)):
    left, right = (
      float8.rounded(jnp.asarray(t), 'float8_e4m3fn') for t in (a, b)
    )
    wanted.append(
      float8.product('ij,jk->ik', left, right, 'bfloat16', np.dtype('float32'))
    )
  for found in wanted:
    assert not np.isfinite(found).any()


def test_wider_operands_stay_as_they_are():
  x = jnp.ones(3, jnp.float16)
  assert float8.rounded(x, 'float16') is x


# The product.


@pytest.mark.parametrize('shape', [(7,), (3, 5), (2, 3, 4), (1, 1), (2, 16)])
@pytest.mark.parametrize('bias', [True, False])
def test_a_linear_map_and_its_gradients(shape, bias):
  """Against float64 products of what ml_dtypes rounds to."""
  x, kernel, shift = draw(0, *shape, 6), draw(1, 6, 8), draw(2, 8)
  weight = 1e-6 * draw(3, *shape, 8)

  def total(x, kernel, shift):
    y = dot.affine(x, kernel, shift if bias else None, FLOAT8)
    assert y.dtype == jnp.bfloat16
    return jnp.sum(y.astype(jnp.float32) * weight), y

  gradient = jax.grad(total, (0, 1, 2), has_aux=True)
  grads, y = inside_a_loop(gradient, x, kernel, shift)
  assert {a.dtype for a in grads} == {jnp.dtype('float32')}
  x, kernel = eighth(x, VALUES), eighth(kernel, VALUES)
  shift = np.float64(narrow(shift)) * bias
  rows = np.float64(narrow(weight)).reshape(-1, 8)
  back = eighth(weight, GRADIENTS)
  third = jax.tree.map(lambda a: np.asarray(a, np.float64) / 3, (grads, y))
  (to_x, to_kernel, to_shift), y = third

  def assert_met(found, exact, few):
    assert np.abs(found - exact).max() <= few * np.abs(exact).max()

  # Results have bfloat16's 8 bits, and three of them are added up in it.
  assert_met(y, x @ kernel + shift, 0.02)
  assert_met(to_x, back @ kernel.T, 0.01)
  # Sums of float32, of numbers that are exact.
  assert_met(to_kernel, x.reshape(-1, 6).T @ back.reshape(-1, 8), 1e-6)
  assert_met(to_shift, bias * rows.sum(0), 1e-6)


@pytest.fixture
def on_gpu(monkeypatch):
  """Programs are those of a GPU; a CPU runs them, too."""
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')


def products():
  """Of the three kinds that a linear map has, in float32."""
  x, kernel, grad = (
    jnp.asarray(narrow(size * draw(i, *shape)))
    for i, (size, shape) in enumerate(
      ((1, (4, 24, 32)), (0.1, (32, 48)), (1e-7, (4, 24, 48)))
    )
  )
  a, b = (float8.rounded(t, 'float8_e4m3fn') for t in (x, kernel))
  c = float8.rounded(grad, 'float8_e5m2')
  return [
    float8.product(spec, *pair, 'bfloat16', jnp.dtype('float32'))
    for spec, *pair in (
      ('nab,bc->nac', a, b),
      ('nac,bc->nab', c, b),
      ('nab,nac->bc', a, c),
    )
  ]


def test_a_gpus_program_computes_the_same(request):
  here = jax.jit(products)()
  request.getfixturevalue('on_gpu')
  there = jax.jit(lambda: products())()
  for one, other in zip(here, there, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6)


def dots_of(text):
  """The operands' dtypes of every product in a lowered program."""
  found = []
  for line in text.splitlines():
    if 'dot_general' in line:
      operands = line.split(' : (')[1].split(') ->')[0].split(', ')
      found.append(tuple(t.rstrip('>').split('x')[-1] for t in operands))
  return found


@pytest.mark.usefixtures('on_gpu')
def test_a_gpu_is_given_products_of_eight_bits():
  """Of the six linear maps of a layer all three; of attention and head none."""
  config = test_stack.config_of('all', dtype='float8', remat='none')
  model = build(config, train=True)
  params = test_stack.variables_of(test_stack.config_of('all'))['params']

  def loss(params):
    return jnp.sum(model.apply({'params': params}, test_stack.TOKENS) ** 2)

  traced = jax.jit(jax.grad(loss)).trace(params)
  dots = dots_of(traced.lower(lowering_platforms=('cuda',)).as_text())
  count = {pair: dots.count(pair) for pair in set(dots)}
  assert count.pop(('f8E4M3FN', 'f8E4M3FN')) == 6
  assert count.pop(('f8E5M2', 'f8E4M3FN')) == 6
  assert count.pop(('f8E4M3FN', 'f8E5M2')) == 6
  assert count and not any('f8' in ' '.join(pair) for pair in count)


# Networks.


@pytest.mark.slow
@pytest.mark.parametrize(
  'remat',
  [
    pytest.param(case, marks=() if i == 1 else pytest.mark.slow)
    for i, case in enumerate(test_stack.REMAT)
  ],
)
def test_the_scan_equals_the_plain_form(remat):
  """As strictly as in bfloat16: both round the same numbers alike."""
  where = 'cycle_rev:3', 'apart'
  config = test_stack.config_of(
    *where, dtype='float8', remat=remat[0], remat_group=remat[1]
  )
  variables = test_stack.variables_of(test_stack.config_of(*where))
  logits, grads, _ = test_stack.actual(config, variables)
  true_logits, true_grads, _ = test_stack.expected(config, variables)
  assert_close(logits, true_logits, test_stack.TOLERANCE['bfloat16'])
  assert_close(grads, true_grads, test_stack.TOLERANCE['bfloat16'])


@pytest.mark.slow
@pytest.mark.parametrize('name', test_sums.MIXED)
def test_sums_of_levels_are_near_plain_loops(name):
  """Two orders of adding up may be rounded apart, by one of 16 parts."""
  config = test_sums.config_of(test_sums.MIXED[name], dtype='float8')
  plain = test_sums.config_of(test_sums.MIXED[name])
  variables = test_sums.corrections(test_stack.variables_of(plain))
  logits, grads, _ = test_stack.actual(config, variables)
  true_logits, true_grads = test_sums.expected(config, variables)
  assert_near(logits, true_logits)
  assert_near(grads, true_grads)


@pytest.mark.parametrize(
  'remat,group',
  [
    pytest.param(*case, marks=() if i == 0 else pytest.mark.slow)
    for i, case in enumerate(test_stack.REMAT)
  ],
)
def test_no_policy_keeps_a_copy_of_the_weights_per_layer(remat, group):
  """Neither as they are nor in eight bits: twelve visits of one row."""
  config = test_stack.config_of(
    'all',
    num_layers=12,
    d_model=256,
    dtype='float8',
    remat=remat,
    remat_group=group,
  )
  lowered, layer_bytes = test_stack.gradient_program(config)
  temporary = lowered.compile().memory_analysis().temp_size_in_bytes
  assert layer_bytes > 3e6
  assert temporary < 4 * layer_bytes


def kept_of_every_visit(remat):
  """The dtypes of what the backward pass of 12 visits has of their own."""
  config = test_stack.config_of(
    'all', num_layers=12, dtype='float8', remat=remat
  )
  model = build(config, train=True)
  params = test_stack.variables_of(test_stack.config_of('all'))['params']

  def loss(params):
    return jnp.sum(model.apply({'params': params}, test_stack.TOKENS) ** 2)

  closed = jax.make_jaxpr(jax.grad(loss))(params)
  scan = next(e for e in closed.eqns if e.primitive.name == 'scan')
  stacked = [v.aval for v in scan.outvars if v.aval.shape[:1] == (12,)]
  return [
    (aval.dtype.name, aval.shape[-1]) for aval in stacked if aval.ndim > 1
  ]


@pytest.mark.slow
def test_what_policies_keep():
  """Results of products in bits; what is rounded is so again."""
  for remat in 'none', 'dots':
    kept = kept_of_every_visit(remat)
    assert kept.count(('uint16', 16)) == 5 and ('uint16', 64) in kept
    assert not any('8' in dtype for dtype, _ in kept)
  assert kept_of_every_visit('full') == [('uint16', 16)]


@pytest.mark.slow
def test_training_comes_to_where_bfloat16_comes():
  found = []
  for dtype in ('bfloat16', 'float8'):
    _, metrics = walk(crossed(model__dtype=dtype), [batch(0)] * 30)
    assert all(m['skipped'] == 0 for m in metrics)
    found.append([m['loss'] for m in metrics])
  bfloat16, eight = np.array(found)
  assert eight[-1] < eight[0] - 1
  assert np.abs(eight - bfloat16).max() < 0.1
  assert np.abs(eight - bfloat16).max() > 1e-4  # it is something else


@pytest.mark.slow
def test_scores_depend_on_nothing_that_stands_beside_a_text():
  """Evaluation is in bfloat16: a batch's largest number scales nothing."""
  config = test_stack.config_of('all', dtype='float8')
  variables = test_stack.variables_of(test_stack.config_of('all'))
  tokens = test_stack.TOKENS
  model = build(config)
  assert model == build(test_stack.config_of('all', dtype='bfloat16'))
  both, alone = (model.apply(variables, t) for t in (tokens, tokens[:1]))
  np.testing.assert_array_equal(both[:1], alone)
  trained = build(config, train=True).apply(variables, tokens)
  assert np.abs(trained - both).max() > 1e-3


# What takes it.


def traced(config):
  """The metrics of a training step, of which nothing is run."""
  state = states.shapes(config)
  one = tasks.make(config).batches()[0]
  after, metrics = jax.eval_shape(steps.train_step(config), state, one)
  assert {a.dtype.name for a in jax.tree.leaves(after.params)} == {'float32'}
  return metrics


def every():
  """Every preset's example, and every config, with eight bits."""
  found = examples({'dtype': 'float8'})
  for path in CONFIGS:
    given = ['--config.model.dtype=float8']
    found[path.name] = config_file.load(str(path), given)
  return found


@pytest.mark.slow
@pytest.mark.parametrize('made', new_parts(every()))
def test_every_part_takes_it(made):
  assert traced(made)['loss'].dtype == jnp.float32


def test_policies():
  """Weights, sums and results are float32 in all; only one has eight bits."""
  for name, policy in PRECISIONS.items():
    assert policy.name == name
    assert policy.param == policy.accumulation == policy.output == 'float32'
    assert policy.outside.operand == policy.outside.compute == policy.compute
  assert [p for p in PRECISIONS.values() if p.operand != p.compute] == [FLOAT8]
  assert {np.dtype(name).itemsize for name in BYTES} == {1, 2, 4}
  assert all(np.dtype(n).itemsize == size for n, size in BYTES.items())


def test_an_unknown_one():
  with pytest.raises(BadInput, match=r"dtype 'fp8'.*float32, bfloat16"):
    configs.cross({'model': {'dtype': 'fp8'}})


def test_bytes():
  """What is kept of tokens is as in bfloat16, and weights as in all others."""
  half, eight, whole = (
    accounting.describe(crossed(model__dtype=dtype))
    for dtype in ('bfloat16', 'float8', 'float32')
  )
  assert eight == half
  assert eight['weight_bytes'] == whole['weight_bytes']
