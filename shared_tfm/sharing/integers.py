"""Tensors of whole numbers with scales, and back; see `rounding.py`."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from shared_tfm.sharing.opaque import opaque
from shared_tfm.sharing.rounding import Rounding

_LEAST = float(jnp.finfo(jnp.float32).tiny)  # a scale, where all is zero


class Rounded(flax.struct.PyTreeNode):
  """Matrices (..., d_in, d_out) as whole numbers.

  Attributes:
    values: int8. Of four bits a byte holds the number of an input, in its low
      half, and that of an input half of them further on.
    scales: float32 (..., groups, d_out).
    rounding: how they were made.
    inputs: d_in.
  """

  values: jax.Array
  scales: jax.Array
  rounding: Rounding = flax.struct.field(pytree_node=False)
  inputs: int = flax.struct.field(pytree_node=False)

  def row(self, index: Any) -> jax.Array:
    """What one entry of the leading axis stands for, float32."""
    picked: Rounded = jax.tree.map(
      lambda a: jax.lax.dynamic_index_in_dim(a, index, axis=0, keepdims=False),
      self,
    )
    return picked.whole()

  def whole(self) -> jax.Array:
    """What all of it stands for, float32."""
    return opaque(_wide, self)


def rounded(tensor: jax.Array, rounding: Rounding) -> Rounded:
  """The nearest whole numbers times scales; the largest is met exactly.

  Args:
    tensor: matrices (..., d_in, d_out).
    rounding: to what.
  """
  inputs, size = tensor.shape[-2], rounding.size(tensor.shape[-2])
  groups = -(-inputs // size)
  grouped = _padded(tensor, groups * size).reshape(
    *tensor.shape[:-2], groups, size, tensor.shape[-1]
  )
  largest = jnp.max(jnp.abs(grouped), axis=-2)
  scales = jnp.maximum(largest.astype(jnp.float32) / rounding.most, _LEAST)
  numbers = jnp.round(grouped / jnp.expand_dims(scales, -2))
  numbers = jnp.clip(numbers, -rounding.most, rounding.most).astype(jnp.int8)
  values = numbers.reshape(*tensor.shape[:-2], -1, tensor.shape[-1])
  values = values[..., :inputs, :]
  if rounding.bits == 4:
    values = _packed(values)
  return Rounded(values, scales, rounding, inputs)


def _wide(stored: Rounded) -> jax.Array:
  values, scales, inputs = stored.values, stored.scales, stored.inputs
  if stored.rounding.bits == 4:
    values = _unpacked(values)[..., :inputs, :]
  if scales.shape[-2] > 1:
    scales = jnp.repeat(scales, stored.rounding.size(inputs), axis=-2)
    scales = scales[..., :inputs, :]
  return values.astype(jnp.float32) * scales


def _packed(values: jax.Array) -> jax.Array:
  """Two numbers of four bits in each byte; see `Rounded`."""
  half = -(-values.shape[-2] // 2)
  values = _padded(values, 2 * half)
  low, high = values[..., :half, :], values[..., half:, :]
  return (low & 15) | (high << 4)


def _unpacked(packed: jax.Array) -> jax.Array:
  # Shifted down again a signed byte keeps its sign.
  return jnp.concatenate([(packed << 4) >> 4, packed >> 4], axis=-2)


def _padded(tensor: jax.Array, inputs: int) -> jax.Array:
  """With zeros for the inputs that are missing."""
  pads = [(0, 0)] * tensor.ndim
  pads[-2] = (0, inputs - tensor.shape[-2])
  return jnp.pad(tensor, pads)
