"""The product of every linear map: narrow operands, float32 sums.

Operands are rounded to the dtype of the computation, and so are results and the
gradient of what a layer read; a weight's gradient stays in the weight's own
float32. JAX's own rule would round the gradients of weights too,
and let narrow operands meet float32 cotangents, for which no machine has a fast
product. In float8 the operands of the three products, and they alone, are
rounded once more; a bias's gradient is summed of what was not.
"""

import functools
import string
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm.config.precision import Precision
from shared_tfm.layers import float8, in_memory, kernels
from shared_tfm.layers.keep import keep

PRODUCTS = 'products'  # what a policy of recomputation knows the results by


def affine(
  x: jax.Array,
  kernel_DF: jax.Array,
  bias_F: jax.Array | None,
  precision: Precision,
) -> jax.Array:
  """A linear map, (..., D) to (..., F), with a result of the compute dtype.

  Args:
    x: of any float dtype; so is its gradient.
    kernel_DF: float32, as is its gradient.
    bias_F: the same; None for none.
    precision: the policy.
  """
  lead = string.ascii_uppercase[: x.ndim - 1]
  spec = f'{lead}d,df->{lead}f'
  x = x.astype(precision.compute)
  return keep(_affine(spec, precision, x.dtype, x, kernel_DF, bias_F), PRODUCTS)


def scores(
  x: jax.Array,
  table: jax.Array,
  precision: Precision,
  axes: str = 've',
  bias_V: jax.Array | None = None,
) -> jax.Array:
  """What each row of a float32 table makes of x, (..., E), as (..., V).

  Operands have the compute dtype, in the gradients too, and never float8.

  Args:
    x: what is scored.
    table: (V, E), or for axes 'ev' (E, V).
    precision: the policy; scores have its dtype of outputs.
    axes: of the table.
    bias_V: float32, added; None for none. Its gradient is a float32 sum, on a
      CPU in bfloat16 of gradients that were rounded, as the table's is.
  """
  lead = string.ascii_uppercase[: x.ndim - 1]
  spec = f'{lead}e,{axes}->{lead}v'
  out = jnp.dtype(precision.output)
  x = x.astype(precision.compute)
  if bias_V is None or (_is_whole_on_cpu() and x.dtype != jnp.float16):
    return _affine(spec, precision.outside, out, x, table, bias_V)
  scored = _affine(spec, precision.outside, out, x, table, None)
  return scored + jnp.expand_dims(bias_V, tuple(range(x.ndim - 1)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _affine(
  spec: str, precision: Precision, out: Any, a: Any, b: Any, bias: Any
) -> jax.Array:
  return _affine_fwd(spec, precision, out, a, b, bias)[0]


def _affine_fwd(
  spec: str, precision: Precision, out: Any, a: Any, b: Any, bias: Any
) -> Any:
  narrow = b.astype(a.dtype)
  left = float8.rounded(a, precision.operand)
  y = _dot(
    spec, left, float8.rounded(narrow, precision.operand), out, precision
  )
  if bias is not None:
    y += jnp.expand_dims(bias.astype(y.dtype), tuple(range(y.ndim - 1)))
  # Not the rounded weight: a policy that keeps what is computed would keep one
  # for every visit.
  kept = left, narrow, b[:0], None if bias is None else bias[:0]
  return y.astype(out), kept


def _affine_bwd(
  spec: str, precision: Precision, out: Any, kept: Any, grad: jax.Array
) -> Any:
  terms, result = spec.split('->')
  first, second = terms.split(',')
  left, narrow, wide, bias = kept
  compute = narrow.dtype
  is_narrow_on_cpu = _is_narrow_on_cpu(compute)
  grad = grad.astype(compute)
  if _is_whole_on_cpu() and not isinstance(left, float8.Scaled):
    # One contracted axis, which is first. It has to be last for narrow numbers.
    # All of it is of matrices, so that what makes a gradient makes it once.
    shape = left.shape
    left, grad = (x.reshape(-1, x.shape[-1]) for x in (left, grad))
    spec = f'n{result[-1]},{second}->n{first[-1]}'
    to_a = _dot(spec, grad, narrow, compute, precision)
    to_a = to_a.reshape(shape)
    matrices = {first[-1]: left, result[-1]: grad}
    one, other = matrices[second[0]], matrices[second[1]]
    axes = f'n{second[0]}'
    if is_narrow_on_cpu:
      axes, one = axes[::-1], in_memory.turned_whole(one, 1, 0)
    spec = f'{axes},n{second[1]}->{second}'
    to_b = _dot(spec, one, other, wide.dtype, precision)
    result = f'n{result[-1]}'
  else:
    right = float8.rounded(narrow, precision.operand)
    back = float8.rounded(grad, precision.gradient)
    spec = f'{result},{second}->{first}'
    to_a = _dot(spec, back, right, compute, precision)
    spec = f'{first},{result}->{second}'
    to_b = _dot(spec, left, back, wide.dtype, precision)
  to_bias = None
  if bias is not None:
    # A vector of ones would be widened there, and what it multiplies.
    ones = jnp.ones((1 + is_narrow_on_cpu, *grad.shape[:-1]), compute)
    spec = f'z{result[:-1]},{result}->z{result[-1]}'
    to_bias = _dot(spec, ones, grad, bias.dtype, precision)[0]
  return to_a.astype(compute), to_b, to_bias


_affine.defvjp(_affine_fwd, _affine_bwd)


def _dot(
  spec: str,
  a: float8.Operand,
  b: float8.Operand,
  out: Any,
  precision: Precision,
) -> jax.Array:
  """A product of operands of one dtype, in `out` or wider."""
  # A CPU multiplies bfloat16 at full rate only into float32.
  wide = precision.compute == 'bfloat16' and _is_on_cpu()
  sums = jnp.dtype(precision.accumulation) if wide else out
  if isinstance(a, float8.Scaled) and isinstance(b, float8.Scaled):
    return float8.product(spec, a, b, precision.compute, sums)
  if wide and _is_whole_on_cpu():
    return in_memory.product(spec, a, b, sums)
  return jnp.einsum(spec, a, b, preferred_element_type=sums)


def _is_on_cpu() -> bool:
  return jax.default_backend() == 'cpu'


def _is_whole_on_cpu() -> bool:
  """Whether it is so, and the compiler has nothing of it to cut over a mesh."""
  return _is_on_cpu() and not kernels.left_to_cut()


def _is_narrow_on_cpu(dtype: Any) -> bool:
  return dtype == jnp.bfloat16 and _is_whole_on_cpu()
