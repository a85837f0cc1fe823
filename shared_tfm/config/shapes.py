"""What a layer of a model holds, and how it is shared: from the config alone.

Letters: D model width, H query heads, G key/value heads, K head width, F
feed-forward width.
"""

import functools
import math
from typing import NamedTuple

from shared_tfm.config.fields import GATED, Model
from shared_tfm.sharing import levels, reuse, table


class Tensor(NamedTuple):
  """One tensor of a layer.

  Attributes:
    shape: its axes; two of them are a matrix, (d_in, d_out).
    units: how many heads or neurons one axis is made of; 0: none is.
    axis: of the units.
  """

  shape: tuple[int, ...]
  units: int = 0
  axis: int = 0

  @property
  def size(self) -> int:
    """The number of its parameters."""
    return math.prod(self.shape)


@functools.lru_cache
def layer(model: Model) -> dict[str, Tensor]:
  """Every tensor of one layer, by dotted path such as 'attention.key.bias'."""
  d, f = model.d_model, model.d_ff
  heads, kv_heads = model.num_heads, model.num_kv_heads
  norms = ['attention', 'feed_forward']
  if model.norm_position == 'sandwich':
    norms += ['attention_out', 'feed_forward_out']
  found: dict[str, Tensor] = {}

  def linear(
    part: str, inputs: int, outputs: int, units: int, axis: int
  ) -> None:
    found[f'{part}.kernel'] = Tensor((inputs, outputs), units, axis)
    if model.use_bias:
      found[f'{part}.bias'] = Tensor((outputs,), units if axis else 0)

  linear('attention.query', d, heads * model.head_dim, heads, 1)
  linear('attention.key', d, kv_heads * model.head_dim, kv_heads, 1)
  linear('attention.value', d, kv_heads * model.head_dim, kv_heads, 1)
  linear('attention.out', heads * model.head_dim, d, heads, 0)
  linear('feed_forward.up', d, f, f, 1)
  if model.activation in GATED:
    linear('feed_forward.gate', d, f, f, 1)
  linear('feed_forward.down', f, d, f, 0)
  for name in norms:
    found[f'norm.{name}.scale'] = Tensor((d,))
    if model.norm != 'rmsnorm' and model.use_bias:
      found[f'norm.{name}.bias'] = Tensor((d,))
  return found


def matrices(model: Model) -> dict[str, tuple[int, ...]]:
  """The shape of every matrix of a layer, by dotted part."""
  return {
    path.rpartition('.')[0]: tensor.shape
    for path, tensor in layer(model).items()
    if len(tensor.shape) > 1
  }


@functools.lru_cache
def components(model: Model) -> dict[str, levels.Component]:
  """The components that have a spec, and the parts that not all layers have.

  A layer that reuses keys and values has no such projections, one that reuses
  an attention map no queries and keys.
  """
  sharing, readers = model.sharing, {}
  for spec, parts in (
    (sharing.kv_source, ('attention.key', 'attention.value')),
    (sharing.map_source, ('attention.query', 'attention.key')),
  ):
    if spec:
      own = reuse.plan(table.owners(spec, model.num_layers)).own
      readers.update({part: own for part in parts})
  return levels.components(sharing.specs(), model.num_layers, readers)


def component_of(model: Model, path: str) -> levels.Component:
  """The component that a dotted path inside a layer follows."""
  found = components(model)
  return found[table.resolve(found, path)]
