"""Operands of eight bits, each tensor with a scale of its own.

The scale is made of what is in the tensor now (current scaling), and is a power
of two. So to divide by it and to multiply by it again loses nothing, what is
multiplied is the same number whether a machine has products of float8 or not,
and the least scale above the largest value over the dtype's largest is one that
nothing overflows with (2209.05433, section 3.1: "per-tensor scaling factors").
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

SCOPE = 'float8'  # the name that a program has such products under
_EXPONENT = 0x7F800000  # the bits of a float32 that say its power of two
_LEAST = 2.0**-126  # the smallest power of two that float32 holds in full


class Scaled(NamedTuple):
  """A tensor in eight bits.

  Attributes:
    values: as a float8 dtype, the tensor over the scale.
    scale: a float32 scalar.
  """

  values: jax.Array
  scale: jax.Array


Operand = jax.Array | Scaled


def rounded(x: jax.Array, dtype: str) -> Operand:
  """`x` as an operand of a product: in a float8 dtype, or in its own.

  Zeros stay zeros; where anything is not finite, nothing is.

  Args:
    x: of a dtype with the exponents of float32, if it is to be float8.
    dtype: of the operand.
  """
  if jnp.dtype(dtype).itemsize > 1:
    return x
  most = float(jnp.finfo(dtype).max)
  largest = jnp.max(jnp.abs(x)).astype(jnp.float32) / most
  bits = jax.lax.bitcast_convert_type(largest, jnp.uint32) & _EXPONENT
  power = jax.lax.bitcast_convert_type(bits, jnp.float32)
  scale = jnp.maximum(2 * power, _LEAST)
  return Scaled((x / scale.astype(x.dtype)).astype(dtype), scale)


def product(
  spec: str, a: Scaled, b: Scaled, compute: str, out: jnp.dtype
) -> jax.Array:
  """The product of what two operands stand for.

  On a GPU the program has a product of eight bits, which the compiler gives to
  hardware that has any (NVIDIA's from compute capability 8.9 on) and widens for
  others. Elsewhere it is widened here. The numbers are the same.

  Args:
    spec: as of `einsum`.
    a: the first operand.
    b: the second.
    compute: a dtype that holds without loss what operands stand for.
    out: of the result.
  """
  with jax.named_scope(SCOPE):
    if jax.default_backend() == 'gpu':
      y = jnp.einsum(
        spec,
        a.values,
        b.values,
        preferred_element_type=out,
        precision='highest',  # else it is summed in fewer bits than float32 has
      )
      return y * (a.scale * b.scale).astype(out)
    wide = (x.values.astype(compute) * x.scale.astype(compute) for x in (a, b))
    return jnp.einsum(spec, *wide, preferred_element_type=out)
