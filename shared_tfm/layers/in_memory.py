"""What a CPU's memory asks of products: how operands lie, how long sums are.

XLA's library, YNNPACK, takes a product whose first operand has the contracted
axis last, in memory too. Narrow floats of any other form are widened first, or
copied while they are computed, in strides that no cache holds.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

ROWS = 128  # that a cache holds of any array, one line of each
APART = 2048  # bytes: rows a multiple of it apart share few sets of a cache
TERMS = 1024  # of a part of a long sum
# How many parts sums have that are faster so, as measured, by `has_tiles`.
PARTS = {True: range(3, 9), False: (2, 4, 8)}
CPUINFO = pathlib.Path('/proc/cpuinfo')


def turned(x: jax.Array, *axes: int) -> jax.Array:
  """`x.transpose(axes)`, a copy that stays one.

  A transposed array is the same array in another order to XLA, and it folds the
  order into a product that it then has no form of. The axis of 1 makes it
  choose the order anew, and the barrier keeps the two apart.
  """
  apart = jax.lax.optimization_barrier(jnp.expand_dims(x.transpose(axes), -1))
  return jnp.squeeze(apart, -1)


def transposed(x: jax.Array) -> jax.Array:
  """A matrix (N, D) turned into (D, N)."""
  rows = x.shape[0]
  if x.shape[1] * x.dtype.itemsize % APART or rows <= ROWS or rows % ROWS:
    return turned(x, 1, 0)
  # A loop also keeps what computes x out of it, and bits are moved as they are:
  # narrow floats would be widened for it.
  bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}')
  pieces = jax.lax.map(jnp.transpose, bits.reshape(-1, ROWS, x.shape[1]))
  bits = turned(pieces, 1, 0, 2).reshape(-1, rows)
  return jax.lax.bitcast_convert_type(bits, x.dtype)


def product(spec: str, a: Any, b: Any, out: Any) -> jax.Array:
  """`jnp.einsum` into a wider dtype, between barriers.

  No order of what is around it can be folded into it then. A sum over some
  multiples of TERMS is made in parts (benchmarks/NOTES.md), so that rounding
  depends on the processor.

  Args:
    spec: such as 'abd,df->abf'.
    a: the first operand; of its last axis alone a sum is made in parts.
    b: of the same dtype.
    out: the dtype of sums and of the result.
  """
  a, b = jax.lax.optimization_barrier((a, b))
  terms, result = spec.split('->')
  first, second = terms.split(',')
  parts, rest = divmod(a.shape[-1], TERMS)
  pairs = [(a, b)]
  if not rest and parts in PARTS[has_tiles()] and first[-1] not in result:
    axis = second.index(first[-1])
    pairs = list(
      zip(jnp.split(a, parts, -1), jnp.split(b, parts, axis), strict=True)
    )
  sums = [jnp.einsum(spec, x, y, preferred_element_type=out) for x, y in pairs]
  whole: jax.Array = jax.lax.optimization_barrier(sum(sums[1:], sums[0]))
  return whole


@functools.cache
def has_tiles() -> bool:
  """Whether this processor multiplies tiles of narrow floats (AMX)."""
  return CPUINFO.is_file() and 'amx_bf16' in CPUINFO.read_text().split()
