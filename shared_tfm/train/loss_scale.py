"""Dynamic loss scaling, by which gradients in float16 are neither 0 nor inf.

float16 ends at 65,504, and below 6e-8 there is only 0, where most gradients of
a mean over a batch's tokens would be. So the loss is multiplied by a scale, and
the gradient of the stored weights, which is float32, is divided by it before
anything else is done with it (1710.03740, section 3.2). Where the scaled
gradient is not finite, the micro-batch is dropped and the scale halved; after
`train.loss_scale_every` good ones in a row it is doubled. Other dtypes have the
range of float32 and no scale.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from shared_tfm.config import Config

LEAST, MOST = 1.0, 2.0**40


class Scale(flax.struct.PyTreeNode):
  """The scale, as a part of the training state.

  Attributes:
    value: by which the loss is multiplied.
    good: micro-batches in a row with a finite gradient since it last changed.
  """

  value: jax.Array
  good: jax.Array


def initial(config: Config) -> Scale | None:
  """The first scale of a run; None where its dtype needs none."""
  if config.model.precision.compute != 'float16':
    return None
  value = jnp.full((), config.train.loss_scale, jnp.float32)
  return Scale(value, jnp.zeros((), jnp.int32))


def scaled(loss: jax.Array, scale: Scale | None) -> jax.Array:
  """What the gradient is taken of."""
  return loss if scale is None else loss * scale.value


def unscaled(grads: Any, scale: Scale | None) -> Any:
  """The loss's own gradient, from the scaled loss's."""
  if scale is None:
    return grads
  return jax.tree.map(lambda g: g / scale.value.astype(g.dtype), grads)


def after(scale: Scale | None, finite: jax.Array, every: int) -> Scale | None:
  """The scale after a micro-batch.

  Args:
    scale: before.
    finite: whether the gradient was.
    every: how many good micro-batches in a row double the scale.
  """
  if scale is None:
    return None
  good = jnp.where(finite, scale.good + 1, 0)
  grows = good >= every
  factor = jnp.where(finite, jnp.where(grows, 2.0, 1.0), 0.5)
  value = jnp.clip(scale.value * factor, LEAST, MOST)
  return Scale(value, jnp.where(grows, 0, good))
