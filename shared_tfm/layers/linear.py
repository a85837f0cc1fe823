"""The one linear map of the whole model."""

from typing import Any

import flax.linen as nn
import jax

from shared_tfm.config import Model, Quantise
from shared_tfm.config.precision import Precision
from shared_tfm.layers import dot, ranges

KERNEL_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')


class Linear(nn.Module):
  """x @ kernel + bias, by the model's one product.

  Attributes:
    width: the output features.
    use_bias: whether there is one.
    precision: the policy.
    axes: logical names of the kernel's input and output axes.
    kernel_init: of the kernel.
    quantise: says whether what is read has eight bits; None: it has not.
  """

  width: int
  use_bias: bool
  precision: Precision
  axes: tuple[str | None, str | None]
  kernel_init: nn.initializers.Initializer = KERNEL_INIT
  quantise: Quantise | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps the last axis."""
    boxed = nn.with_logical_partitioning
    shape = x.shape[-1], self.width
    kernel: Any = self.param(
      'kernel', boxed(self.kernel_init, self.axes), shape
    )
    bias: Any = None
    if self.use_bias:
      zeros = boxed(nn.initializers.zeros, self.axes[1:])
      bias = self.param('bias', zeros, shape[1:])
    if self.quantise and self.quantise.activations != 'none':
      x = ranges.narrowed(self, x, self.quantise.percentile)
    return dot.affine(x, kernel, bias, self.precision)


def linear(
  model: Model,
  width: int,
  axes: tuple[str | None, str | None],
  init: nn.initializers.Initializer = KERNEL_INIT,
) -> Linear:
  """A layer's linear map: with a bias where the model has biases."""
  return Linear(
    width, model.use_bias, model.precision, axes, init, model.quantise
  )


def linear_outside(
  model: Model, width: int, axes: tuple[str | None, str | None]
) -> Linear:
  """The linear map of what stands before, between or behind the layers."""
  return Linear(width, model.use_bias, model.precision.outside, axes)
