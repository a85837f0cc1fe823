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


def turned_whole(x: jax.Array, *axes: int) -> jax.Array:
  """The same, of an x that is in memory before it is turned.

  Else XLA computes x along the strides of the copy, and has a fast copy only of
  what is there. A branch keeps the two apart, whose sides are alike.
  """

  def turn(x: jax.Array) -> jax.Array:
    return turned(x, *axes)

  return jax.lax.cond(x[(0,) * x.ndim] != 0, turn, turn, x)


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
