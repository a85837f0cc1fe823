"""The product of every linear map: narrow operands, float32 sums.

Operands are rounded to the dtype of the computation, and so are results and the
gradient of what a layer read; a weight's gradient stays in the weight's own
float32. JAX's own rule would round the gradients of weights too,
and let narrow operands meet float32 cotangents, for which no machine has a fast
product.
"""

import functools
import string
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm.layers.keep import keep

PRODUCTS = 'products'  # what a policy of recomputation knows the results by


def affine(
  x: jax.Array, kernel_DF: jax.Array, bias_F: jax.Array | None, dtype: Any
) -> jax.Array:
  """A linear map, (..., D) to (..., F), with operands and result of `dtype`.

  Args:
    x: of any float dtype; so is its gradient.
    kernel_DF: float32, as is its gradient.
    bias_F: the same; None for none.
    dtype: of the computation.
  """
  lead = string.ascii_uppercase[: x.ndim - 1]
  spec = f'{lead}d,df->{lead}f'
  dtype = jnp.dtype(dtype)
  return keep(
    _affine(spec, dtype, x.astype(dtype), kernel_DF, bias_F), PRODUCTS
  )


def scores(x: jax.Array, table: jax.Array, axes: str = 've') -> jax.Array:
  """What each row of a float32 table makes of x, (..., E): float32 (..., V).

  Operands have x's dtype, in the gradients too.

  Args:
    x: what is scored.
    table: (V, E), or for axes 'ev' (E, V).
    axes: of the table.
  """
  lead = string.ascii_uppercase[: x.ndim - 1]
  spec = f'{lead}e,{axes}->{lead}v'
  return _affine(spec, jnp.dtype(jnp.float32), x, table, None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _affine(spec: str, out: Any, a: Any, b: Any, bias: Any) -> jax.Array:
  return _affine_fwd(spec, out, a, b, bias)[0]


def _affine_fwd(spec: str, out: Any, a: Any, b: Any, bias: Any) -> Any:
  narrow = b.astype(a.dtype)
  y = _dot(spec, a, narrow, out)
  if bias is not None:
    y += jnp.expand_dims(bias.astype(y.dtype), tuple(range(y.ndim - 1)))
  return y.astype(out), (a, narrow, b[:0], None if bias is None else bias[:0])


def _affine_bwd(spec: str, out: Any, kept: Any, grad: jax.Array) -> Any:
  terms, result = spec.split('->')
  first, second = terms.split(',')
  a, b, wide, bias = kept
  grad = grad.astype(a.dtype)
  to_a = _dot(f'{result},{second}->{first}', grad, b, a.dtype).astype(a.dtype)
  if _is_on_cpu() and a.dtype != jnp.bfloat16:
    # Contracting one axis the library needs no transposed copy of `a`.
    a, rows = (x.reshape(-1, x.shape[-1]) for x in (a, grad))
    first, result = f'n{first[-1]}', f'n{result[-1]}'
  else:
    rows = grad
  to_b = _dot(f'{first},{result}->{second}', a, rows, wide.dtype)
  to_bias = None
  if bias is not None:
    ones = jnp.ones(rows.shape[:-1], rows.dtype)
    lead = result[:-1]
    to_bias = _dot(f'{lead},{result}->{result[-1]}', ones, rows, bias.dtype)
  return to_a, to_b, to_bias


_affine.defvjp(_affine_fwd, _affine_bwd)


def _dot(spec: str, a: jax.Array, b: jax.Array, out: Any) -> jax.Array:
  """A product of operands of one dtype, in `out` or wider."""
  # A CPU multiplies bfloat16 at full rate only into float32.
  wide = a.dtype == jnp.bfloat16 and _is_on_cpu()
  sums = jnp.dtype(jnp.float32) if wide else out
  return jnp.einsum(spec, a, b, preferred_element_type=sums)


def _is_on_cpu() -> bool:
  return jax.default_backend() == 'cpu'
