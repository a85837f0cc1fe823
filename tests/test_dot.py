"""Products, kept results and losses: the fast forms equal the plain ones."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, use_abstract_mesh
from test_stack import assert_close

from shared_tfm.config import parallel
from shared_tfm.config.precision import PRECISIONS
from shared_tfm.layers import dot, dot_product, in_memory, kernels
from shared_tfm.layers.cross_entropy import cross_entropy, in_pieces
from shared_tfm.layers.keep import keep
from shared_tfm.train import mesh as meshes

DTYPES = ('float32', 'bfloat16', 'float16')
FLOAT32 = PRECISIONS['float32']


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rounded(a, dtype):
  return np.asarray(jnp.asarray(a, dtype), np.float64)


def inside_a_loop(function, *operands):
  """Three times over, as the layers of a model are: sums of the results."""

  def body(total, _):
    found = function(*operands)
    return jax.tree.map(jnp.add, total, found), None

  start = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, *operands))
  return jax.jit(lambda: jax.lax.scan(body, start, length=3)[0])()


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [(7,), (3, 5), (2, 3, 4), (1, 1), (2, 16)])
@pytest.mark.parametrize('bias', [True, False])
def test_affine_and_its_gradients_are_those_of_rounded_operands(
  dtype, shape, bias
):
  found, expected, few = affine_and_plain(dtype, shape, 6, 8, bias)
  assert_close(found, expected, few)


@pytest.mark.parametrize(
  'shape,d,f',
  [
    ((2, 128), 2048, 6),
    ((5,), 3072, 6),
    ((5,), 6, 4096),
    ((3, 128), 3072, 9),
    ((3, 1024), 6, 9),
    ((), 3072, 6),
  ],
)
@pytest.mark.parametrize('tiles', [False, True])
def test_so_they_are_of_wide_ones(shape, d, f, tiles, monkeypatch):
  """Whose long sums a CPU makes in parts, and each processor others."""
  monkeypatch.setattr(in_memory, 'has_tiles', lambda: tiles)
  found, expected, few = affine_and_plain('bfloat16', shape, d, f, True)
  assert_close(found, expected, few)


def affine_and_plain(dtype, shape, d, f, bias):
  """Gradients and values, what NumPy makes of them, and how near they are."""
  x, kernel, shift = draw(0, *shape, d), draw(1, d, f), draw(2, f)
  weight = draw(3, *shape, f)

  def total(x, kernel, shift):
    y = dot.affine(x, kernel, shift if bias else None, PRECISIONS[dtype])
    assert y.dtype == dtype
    return jnp.sum(y.astype(jnp.float32) * weight), y

  gradient = jax.grad(total, (0, 1, 2), has_aux=True)
  grads, y = inside_a_loop(gradient, x, kernel, shift)
  assert {a.dtype for a in grads} == {jnp.dtype('float32')}
  x, kernel, weight = (rounded(a, dtype) for a in (x, kernel, weight))
  shift = rounded(shift, dtype) * bias
  rows = weight.reshape(-1, f)
  expected = (
    (weight @ kernel.T, x.reshape(-1, d).T @ rows, bias * rows.sum(0)),
    x @ kernel + shift,
  )
  few = {'float32': 1e-5, 'bfloat16': 0.02, 'float16': 3e-3}[dtype]
  third = jax.tree.map(lambda a: a.astype(jnp.float32) / 3, (grads, y))
  return third, expected, few


def test_what_a_cpu_is_given(monkeypatch):
  """Narrow operands in every product, each of a weight's apart from others."""

  def lowered(length, d=3072):
    x, kernel, shift = draw(0, 2, length, d), draw(1, d, 8), draw(2, 8)

    def total(x, kernel, shift):
      y = dot.affine(x, kernel, shift, PRECISIONS['bfloat16'])
      return jnp.sum(y.astype(jnp.float32) ** 2)

    made = jax.jit(jax.grad(total, (0, 1, 2)))
    return made.lower(x, kernel, shift).as_text()

  monkeypatch.setattr(in_memory, 'has_tiles', lambda: True)
  text = lowered(128)
  products = re.findall(r'dot_general.*: \((.*)\) ->', text)
  # Three parts forward, and once each for x, the weight and the bias.
  assert len(products) == 6 and all('f32' not in each for each in products)
  assert text.count('optimization_barrier') == 4 * 2 + 2
  assert text.count('stablehlo.case') == 1
  monkeypatch.setattr(in_memory, 'has_tiles', lambda: False)
  assert len(re.findall('dot_general', lowered(128))) == 4
  assert len(re.findall('dot_general', lowered(128, 4096))) == 4 + 3
  assert len(re.findall('dot_general', lowered(128, 8192))) == 8 + 3
  monkeypatch.setattr(kernels, 'left_to_cut', lambda: 'data 2')
  assert len(re.findall('dot_general', lowered(128))) == 4
  assert 'optimization_barrier' not in lowered(128)
  assert 'stablehlo.case' not in lowered(128)


@pytest.mark.parametrize('dtype', DTYPES)
def test_what_is_turned_is_in_memory_first(dtype):
  """XLA keeps the branch: what computes x is not fused with the copy."""

  def turned(x):
    return in_memory.turned_whole(jnp.exp(x), 1, 0)

  x = draw(0, 256, 512).astype(dtype)
  compiled = jax.jit(turned).lower(x).compile()
  assert ' conditional(' in compiled.as_text()
  assert_close(compiled(x), jax.jit(jnp.exp)(x).T, 1e-6)


@pytest.mark.parametrize('flag', ['amx_bf16', 'amx_int8'])
def test_which_processors_have_tiles(flag, tmp_path, monkeypatch):
  monkeypatch.setattr(in_memory, 'CPUINFO', tmp_path / 'cpuinfo')
  (tmp_path / 'cpuinfo').write_text(f'flags\t\t: fpu {flag} fma\n')
  assert in_memory.has_tiles.__wrapped__() == (flag == 'amx_bf16')


def test_a_weights_gradient_is_not_rounded():
  """The sum of 1,000 products of bfloat16 numbers, to float32's precision."""
  x, weight = (rounded(draw(i, 1000, 4), 'bfloat16') for i in range(2))

  def total(kernel):
    y = dot.affine(jnp.float32(x), kernel, None, PRECISIONS['bfloat16'])
    return jnp.sum(y.astype(jnp.float32) * jnp.float32(weight))

  found = jax.jit(jax.grad(total))(draw(2, 4, 4))
  assert_close(found, x.T @ weight, 1e-5)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('axes', ['ve', 'ev'])
def test_scores_are_float32(dtype, axes):
  x, table = draw(0, 2, 3, 6).astype(dtype), draw(1, 9, 6)
  given = table if axes == 've' else table.T
  found = jax.jit(
    functools.partial(dot.scores, precision=PRECISIONS[dtype], axes=axes)
  )(x, given)
  assert found.dtype == jnp.float32
  assert_close(found, rounded(x, dtype) @ rounded(table, dtype).T, 1e-3)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('axes', ['ve', 'ev'])
@pytest.mark.parametrize('words', [9, 4096])
def test_gradients_of_scores(dtype, axes, words):
  """Of what is scored, of the table and of its bias, also of many words."""
  x, table, bias = draw(0, 2, 128, 6), draw(1, words, 6), draw(2, words)
  weight = draw(3, 2, 128, words)

  def total(x, table, bias):
    given = x.astype(dtype), table if axes == 've' else table.T
    y = dot.scores(*given, PRECISIONS[dtype], axes, bias)
    return jnp.sum(y * weight)

  found = jax.jit(jax.grad(total, (0, 1, 2)))(x, table, bias)
  x, table, weight = (rounded(a, dtype) for a in (x, table, weight))
  rows = weight.reshape(-1, words)
  expected = weight @ table, rows.T @ x.reshape(-1, 6), rows.sum(0)
  few = {'float32': 1e-5, 'bfloat16': 0.01, 'float16': 2e-3}[dtype]
  assert_close(found, expected, few)


@pytest.mark.parametrize('dtype', DTYPES)
def test_keep_changes_nothing(dtype):
  x = jnp.asarray(draw(0, 3, 4), dtype)
  found, backward = jax.vjp(lambda x: keep(x, 'name'), x)
  assert (found == x).all() and (backward(2 * x)[0] == 2 * x).all()


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('length', [1, 7, 12])
@pytest.mark.parametrize('rows', [1, 5, 1000])
def test_a_loss_in_pieces_is_the_loss(smoothing, length, rows):
  """Values, hits and gradients, also where the pieces do not divide L."""
  x, table = draw(0, 2, length, 6), draw(1, 11, 6)
  targets = np.random.default_rng(2).integers(0, 11, (2, length))
  weight = draw(3, 2, length)

  def losses(x, table, most):
    score = functools.partial(dot.scores, table=table, precision=FLOAT32)
    return in_pieces(score, x, targets, smoothing, most)

  def plain(x, table):
    logits = jnp.einsum('ble,ve->blv', x, table)
    labels = optax.smooth_labels(jax.nn.one_hot(targets, 11), smoothing)
    hits = jnp.argmax(logits, -1) == targets
    return optax.softmax_cross_entropy(logits, labels), hits

  def gradient(function, *args):
    return jax.grad(
      lambda x, table: jnp.sum(function(x, table, *args)[0] * weight), (0, 1)
    )(x, table)

  most = rows * 11 * 4
  assert_close(
    jax.jit(losses, static_argnums=2)(x, table, most), plain(x, table), 1e-5
  )
  assert_close(gradient(losses, most), gradient(plain), 1e-5)


def test_pieces_never_hold_all_logits():
  """Of 64 MiB of logits at most 1 MiB at a time, and their gradients."""
  x, table = jnp.zeros((8, 256, 16)), jnp.zeros((8192, 16))
  targets = jnp.zeros((8, 256), int)

  def total(x, table):
    score = functools.partial(dot.scores, table=table, precision=FLOAT32)
    return jnp.sum(in_pieces(score, x, targets, 0.1, 2**20)[0])

  compiled = jax.jit(jax.grad(total, (0, 1))).lower(x, table).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 8 * 2**20


@pytest.mark.parametrize(
  'ways,in_shard,pieces',
  [
    ({}, False, 16),
    ({'data': 4}, False, 4),
    ({'data': 2, 'fsdp': 2, 'tensor': 2, 'sequence': 2}, False, 1),
    ({'data': 2, 'tensor': 4}, True, 4),  # its sequences are cut no more
    ({'data': 2, 'tensor': 3}, False, 8),  # 3 does not divide the vocabulary
  ],
)
def test_pieces_are_of_what_a_device_holds(ways, in_shard, pieces):
  """Of 16 MiB of logits, at most 1 MiB on each device."""
  x, table = jnp.zeros((8, 64, 4)), jnp.zeros((8192, 4))
  targets = jnp.zeros((8, 64), int)
  axes = dict.fromkeys(parallel.AXES, 1) | ways
  kinds = (AxisType.Auto,) * len(axes)
  mesh = jax.sharding.AbstractMesh((*axes.values(),), (*axes,), kinds)
  rules = meshes.STREAM | ({'batch': ()} if in_shard else {})
  score = functools.partial(dot.scores, table=table, precision=FLOAT32)
  with use_abstract_mesh(mesh), nn.logical_axis_rules([*rules.items()]):
    program = jax.make_jaxpr(
      lambda x: in_pieces(score, x, targets, 0.0, 2**20)
    )(x)
  scans = [e.params for e in program.eqns if e.primitive.name == 'scan']
  assert [scan['length'] for scan in scans] == [pieces] * (pieces > 1)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy_keeps_logits_alone(dtype, smoothing):
  logits = jnp.asarray(draw(0, 3, 50), dtype)
  losses, back = jax.vjp(
    lambda logits: cross_entropy(logits, np.array([0, 7, 49]), smoothing),
    logits,
  )
  wide = [a for a in jax.tree.leaves(back) if a.size >= logits.size]
  assert [(a.shape, a.dtype) for a in wide] == [(logits.shape, dtype)]
  (found,) = back(jnp.ones_like(losses))
  labels = optax.smooth_labels(jax.nn.one_hot([0, 7, 49], 50), smoothing)
  expected = jax.nn.softmax(logits.astype(jnp.float32)) - labels
  few = {'float32': 1e-6, 'bfloat16': 0.01, 'float16': 2e-3}[dtype]
  assert_close(found.astype(jnp.float32), expected, few)


def test_a_head_holds_logits_and_their_gradient_alone():
  """Its bias too has a gradient of the one array: a third would be a copy."""

  def loss(x, table, bias, targets):
    logits = dot.scores(x, table, FLOAT32, bias_V=bias)
    return cross_entropy(logits, targets).mean()

  shapes = (8, 64, 32), (4096, 32), (4096,)
  given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  gradient = jax.jit(jax.grad(loss, (0, 1, 2))).lower(
    *given, jax.ShapeDtypeStruct((8, 64), jnp.int32)
  )
  memory = gradient.compile().memory_analysis().temp_size_in_bytes
  assert memory < 2.2 * 4 * 8 * 64 * 4096


def test_cross_entropy_of_smoothed_labels():
  logits, targets = draw(0, 4, 9), np.arange(4)
  labels = optax.smooth_labels(np.eye(9)[targets], 0.1)
  assert_close(
    cross_entropy(logits, targets, 0.1),
    optax.softmax_cross_entropy(logits, labels),
    1e-5,
  )


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('causal', [True, False])
def test_attention_equals_its_plain_form(dtype, causal):
  """With padding, and fewer heads of keys than of queries."""
  q, k, v = (
    jnp.asarray(draw(i, 2, 5, heads, 8), dtype)
    for i, heads in enumerate((4, 2, 2))
  )
  mask = np.arange(5)[None, None, None] < np.array([3, 5])[:, None, None, None]
  attend = functools.partial(dot_product.attend, mask=mask, is_causal=causal)
  found = jax.jit(attend)(q, k, v).astype(jnp.float32)
  q, k, v = (np.asarray(a, np.float32) for a in (q, k, v))
  scores = np.einsum('blhk,bmhk->bhlm', q, k.repeat(2, 2)) * 8**-0.5
  allowed = mask & (np.tril(np.ones((5, 5), bool)) | (not causal))
  weights = jax.nn.softmax(np.where(allowed, scores, -np.inf))
  expected = np.einsum('bhlm,bmhk->blhk', weights, v.repeat(2, 2))
  assert_close(found, expected, 1e-5 if dtype == 'float32' else 0.02)
