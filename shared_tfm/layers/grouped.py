"""Rows that each meet one of many matrices, without meeting the others.

As in `dot.py` operands have the dtype of the rows, and so have results and the
gradient of the rows; a matrix's gradient stays in the matrix's own float32.

Letters besides those of the package: T tokens, C choices of a token, S = T * C
rows sorted by the expert they chose, M experts.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

PRODUCTS = 'experts'  # what a policy of recomputation knows the results by
_LEFT = ((1,), (0,)), ((), ())  # x @ w
_RIGHT = ((1,), (1,)), ((), ())  # x @ w.T
_SUMMED = jax.lax.RaggedDotDimensionNumbers(  # x.T @ y, over an expert's rows
  (((0,), (0,)), ((), ())), lhs_ragged_dimensions=(0,), rhs_group_dimensions=()
)


class Routes(NamedTuple):
  """Who goes where.

  Attributes:
    order_S: the choices, numbered token by token, sorted by expert.
    place_TC: where among the sorted rows each choice of a token is.
    sizes_M: how many rows each expert has.
  """

  order_S: jax.Array
  place_TC: jax.Array
  sizes_M: jax.Array


def routes(chosen_TC: jax.Array, experts: int) -> Routes:
  """Sorts all choices of all tokens by expert.

  Args:
    chosen_TC: the experts of each token.
    experts: M.
  """
  chosen_S = chosen_TC.reshape(-1)
  order_S = jnp.argsort(chosen_S)
  place_S = jnp.zeros_like(order_S).at[order_S].set(jnp.arange(order_S.size))
  return Routes(
    order_S=order_S,
    place_TC=place_S.reshape(chosen_TC.shape),
    sizes_M=jnp.bincount(chosen_S, length=experts),
  )


def product(
  x_SD: jax.Array, kernel_MDF: jax.Array, sizes_M: jax.Array
) -> jax.Array:
  """Multiplies every row with its expert's matrix: (S, F).

  The work grows with the rows, not with the experts. On a CPU, where
  `jax.lax.ragged_dot` multiplies every row with every matrix, the experts'
  blocks of rows are gone through in a loop.

  Args:
    x_SD: rows sorted by expert, of the compute dtype.
    kernel_MDF: the experts' matrices, float32.
    sizes_M: how many rows each expert has; they sum to S.
  """
  return checkpoint_name(_product(x_SD, kernel_MDF, sizes_M), PRODUCTS)


@jax.custom_vjp
def _product(x_SD: jax.Array, kernel_MDF: jax.Array, sizes_M: jax.Array) -> Any:
  return _product_fwd(x_SD, kernel_MDF, sizes_M)[0]


def _product_fwd(x_SD: Any, kernel_MDF: Any, sizes_M: Any) -> Any:
  operands = x_SD, kernel_MDF.astype(x_SD.dtype), sizes_M
  y_SF = jax.lax.platform_dependent(
    *operands, cpu=_blocks_left, default=_ragged
  )
  return y_SF, (operands, kernel_MDF[:0])


def _product_bwd(kept: Any, grad_SF: Any) -> Any:
  operands, wide = kept
  back_SD, grad_MDF = jax.lax.platform_dependent(
    *operands, grad_SF, cpu=_blocks_backward, default=_ragged_backward
  )
  return back_SD, grad_MDF.astype(wide.dtype), None


_product.defvjp(_product_fwd, _product_bwd)


def _ragged(x_SD: Any, kernel_MDF: Any, sizes_M: Any) -> jax.Array:
  return jax.lax.ragged_dot(x_SD, kernel_MDF, sizes_M)


def _ragged_backward(
  x_SD: Any, kernel_MDF: Any, sizes_M: Any, grad_SF: Any
) -> Any:
  grad_MDF = jax.lax.ragged_dot_general(
    x_SD, grad_SF, sizes_M, _SUMMED, preferred_element_type=jnp.float32
  )
  return _ragged(grad_SF, kernel_MDF.swapaxes(1, 2), sizes_M), grad_MDF


class _Blocks(NamedTuple):
  """Pieces of at most `width` rows, none of them of two experts.

  Attributes:
    width: static.
    total: how many there are; the arrays may be longer.
    expert: of each.
    start: its first row.
    end: the row after the expert's last.
  """

  width: int
  total: jax.Array
  expert: jax.Array
  start: jax.Array
  end: jax.Array


def _blocks(rows: Any, sizes_M: jax.Array) -> _Blocks:
  experts, width = len(sizes_M), 64
  # Near the mean number of rows: small enough to waste few, large enough for
  # the products to be worth a step of the loop. An exported program, whose
  # batch is open, does not know that number.
  if isinstance(rows, int):
    width = min(width, max(8, 2 ** int(math.log2(max(rows / experts, 1)))))
  pieces_M = -(-sizes_M // width)
  last_M = jnp.cumsum(pieces_M)
  index = jnp.arange(-(-rows // width) + experts)
  expert = jnp.minimum(
    jnp.searchsorted(last_M, index, side='right'), experts - 1
  )
  end_M = jnp.cumsum(sizes_M)
  within = index - (last_M - pieces_M)[expert]
  start = (end_M - sizes_M)[expert] + within * width
  return _Blocks(width, last_M[-1], expert, start, end_M[expert])


def _padded(x_SD: jax.Array, width: int) -> jax.Array:
  return jnp.pad(x_SD, ((0, width), (0, 0)))


def _dot(a: jax.Array, b: jax.Array, dims: Any) -> jax.Array:
  return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _blocks_left(x_SD: Any, kernel_MDF: Any, sizes_M: Any) -> jax.Array:
  return _in_blocks(x_SD, kernel_MDF, sizes_M, _LEFT)


def _in_blocks(
  x_SD: jax.Array, kernel_MDF: jax.Array, sizes_M: jax.Array, dims: Any
) -> jax.Array:
  """Block by block; what a block writes past its end, the next overwrites."""
  blocks = _blocks(x_SD.shape[0], sizes_M)
  padded = _padded(x_SD, blocks.width)
  width = kernel_MDF.shape[2 if dims is _LEFT else 1]

  def step(i: jax.Array, out: jax.Array) -> jax.Array:
    rows = jax.lax.dynamic_slice_in_dim(padded, blocks.start[i], blocks.width)
    one = _dot(rows, kernel_MDF[blocks.expert[i]], dims).astype(out.dtype)
    return jax.lax.dynamic_update_slice_in_dim(out, one, blocks.start[i], 0)

  out = jnp.zeros((padded.shape[0], width), x_SD.dtype)
  return jax.lax.fori_loop(0, blocks.total, step, out)[: x_SD.shape[0]]


def _blocks_backward(
  x_SD: jax.Array, kernel_MDF: jax.Array, sizes_M: jax.Array, grad_SF: jax.Array
) -> Any:
  blocks = _blocks(len(x_SD), sizes_M)
  x_padded, grad_padded = (_padded(a, blocks.width) for a in (x_SD, grad_SF))

  def step(i: jax.Array, total: jax.Array) -> jax.Array:
    start = blocks.start[i]
    own = start + jnp.arange(blocks.width) < blocks.end[i]
    x = jax.lax.dynamic_slice_in_dim(x_padded, start, blocks.width)
    grad = jax.lax.dynamic_slice_in_dim(grad_padded, start, blocks.width)
    one = _dot(jnp.where(own[:, None], x, 0).T, grad, _LEFT)
    return total.at[blocks.expert[i]].add(one)

  total = jnp.zeros(kernel_MDF.shape, jnp.float32)
  total = jax.lax.fori_loop(0, blocks.total, step, total)
  back = _in_blocks(grad_SF, kernel_MDF, sizes_M, _RIGHT)
  return back, total
