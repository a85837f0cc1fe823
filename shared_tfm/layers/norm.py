"""Normalisation: LayerNorm, RMSNorm, BatchNorm."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared_tfm.config import Model

NORMS: dict[str, type[nn.Module]] = {
  'layernorm': nn.LayerNorm,
  'rmsnorm': nn.RMSNorm,
  'batchnorm': nn.BatchNorm,
}


class Norm(nn.Module):
  """The norm a config asks for, over the last axis.

  LayerNorm (1607.06450) and RMSNorm (1910.07467) look at one position.
  BatchNorm (1502.03167) looks at all positions of the batch while training, so
  that a decoder sees ahead through its statistics then; at evaluation it uses
  running statistics, in the collection 'batch_stats', one slot per visit.
  """

  model: Model
  train: bool = False

  def setup(self) -> None:
    """Makes the library's norm, its parameters in this module's own scope."""
    m = self.model
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    options: dict[str, Any] = {
      'epsilon': m.norm_eps,
      'dtype': jnp.dtype(m.precision.compute),
      'scale_init': nn.with_logical_partitioning(ones, ('embed',)),
    }
    if m.norm != 'rmsnorm':
      options['use_bias'] = m.use_bias
      options['use_fast_variance'] = False  # it cancels where means are large
      options['bias_init'] = nn.with_logical_partitioning(zeros, ('embed',))
    if m.norm == 'batchnorm':
      options['use_running_average'] = not self.train
    self.norm: nn.Module = NORMS[m.norm](**options)
    nn.share_scope(self, self.norm)

  def __call__(
    self, x_BLD: jax.Array, mask_BL: jax.Array | None = None
  ) -> jax.Array:
    """Normalises x; no batch statistic counts where `mask_BL` is False."""
    if self.model.norm == 'batchnorm' and mask_BL is not None:
      return self.norm(x_BLD, mask=mask_BL[..., None])
    return self.norm(x_BLD)
