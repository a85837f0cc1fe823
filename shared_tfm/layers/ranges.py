"""What a linear map reads, in eight bits, by a range that was seen before.

A tensor has one scale, known before it is: its range over 127, symmetric
(1712.05877, section 3.1, without a zero point). Ranges are what layers saw of
texts, a state like a batch norm's: in the collection 'ranges', one slot per
visit; see model/ranges.py for what visits of a row may have in common.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

RANGES = 'ranges'  # the collection
MOST = 127
FALL = 0.01  # of a range, towards what is seen now


def narrowed(module: nn.Module, x: jax.Array, percentile: float) -> jax.Array:
  """`x` rounded to 255 numbers of the module's range; clipped beyond it.

  Where the collection may change, the range first follows: it rises at once to
  what is seen, and falls by a hundredth of the way. A range of 0 was never
  seen, and nothing is rounded.

  Args:
    module: that has the range.
    x: anything.
    percentile: of the sizes of what is seen that the range covers.
  """
  held: Any = module.variable(RANGES, 'input', jnp.zeros, ())
  if module.is_mutable_collection(RANGES) and not module.is_initializing():
    seen = _seen(jax.lax.stop_gradient(x), percentile)
    fallen = held.value + FALL * (seen - held.value)
    held.value = jnp.maximum(seen, fallen)
  return _rounded(x, held.value)


def _seen(x: jax.Array, percentile: float) -> jax.Array:
  sizes = jnp.abs(x).astype(jnp.float32)
  if percentile == 100:
    return jnp.max(sizes)
  return jnp.percentile(sizes, percentile)


@jax.custom_vjp
def _rounded(x: jax.Array, most: jax.Array) -> jax.Array:
  scale = most / MOST
  numbers = jnp.clip(jnp.round(x.astype(jnp.float32) / scale), -MOST, MOST)
  return jnp.where(most > 0, (numbers * scale).astype(x.dtype), x)


def _rounded_fwd(x: Any, most: Any) -> Any:
  return _rounded(x, most), (jnp.abs(x) <= most) | (most == 0)


def _rounded_bwd(inside: Any, grad: Any) -> Any:
  return jnp.where(inside, grad, jnp.zeros_like(grad)), None


_rounded.defvjp(_rounded_fwd, _rounded_bwd)
