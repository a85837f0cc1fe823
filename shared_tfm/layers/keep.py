"""What the backward pass may keep, by name."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


def keep(x: jax.Array, name: str) -> jax.Array:
  """`x`, which a policy of recomputation knows by a name.

  A CPU has no operations on narrow floats: to store one among those of other
  visits it would convert all of them, there and back, at every visit. So what
  is kept there are bits.

  Args:
    x: a float array.
    name: for `jax.checkpoint_policies`.
  """
  if x.dtype.itemsize == 2 and jax.default_backend() == 'cpu':
    return _bits_kept(name, x)
  kept: jax.Array = checkpoint_name(x, name)
  return kept


def _through_bits(name: str, x: Any) -> jax.Array:
  bits = jax.lax.bitcast_convert_type(x, jnp.uint16)
  return jax.lax.bitcast_convert_type(checkpoint_name(bits, name), x.dtype)


_bits_kept = jax.custom_vjp(_through_bits, nondiff_argnums=(0,))


def _bits_kept_fwd(name: str, x: Any) -> Any:
  return _through_bits(name, x), None


def _bits_kept_bwd(name: str, _: None, grad: Any) -> Any:
  return (grad,)


_bits_kept.defvjp(_bits_kept_fwd, _bits_kept_bwd)
