"""The one linear map of the whole model."""

import flax.linen as nn
import jax.numpy as jnp

from shared_tfm.config import Model

KERNEL_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')


def linear(
  model: Model,
  width: int,
  axes: tuple[str | None, str | None],
  init: nn.initializers.Initializer = KERNEL_INIT,
) -> nn.Dense:
  """A Dense layer with a 2-D kernel whose axes are named.

  Args:
    model: gives the dtype of the computation and whether there is a bias.
    width: the output features.
    axes: logical names of the kernel's input and output axes.
    init: of the kernel.
  """
  return nn.Dense(
    width,
    use_bias=model.use_bias,
    dtype=jnp.dtype(model.dtype),
    kernel_init=nn.with_logical_partitioning(init, axes),
    bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
  )
