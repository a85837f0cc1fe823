"""What a layer of a model holds, and how it is shared: from the config alone.

Letters: D model width, H query heads, G key/value heads, K head width, F
feed-forward width.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from shared_tfm.config.choices import GATED
from shared_tfm.config.fields import Model
from shared_tfm.config.sides import Side, readers
from shared_tfm.sharing import component, table
from shared_tfm.sharing.component import Component


class Tensor(NamedTuple):
  """One tensor of a layer.

  Attributes:
    shape: its axes; the last two of a matrix, or of several, are (d_in, d_out).
    units: how many heads or neurons one axis is made of; 0: none is.
    axis: of the units.
    used: the share of it that one token is multiplied with.
  """

  shape: tuple[int, ...]
  units: int = 0
  axis: int = 0
  used: float = 1.0

  @property
  def size(self) -> int:
    """The number of its parameters."""
    return math.prod(self.shape)


@functools.lru_cache
def layer(model: Model) -> dict[str, Tensor]:
  """Every tensor of one layer, by dotted path such as 'attention.key.bias'."""
  d, f = model.d_model, model.d_ff
  heads, kv_heads = model.num_heads, model.num_kv_heads
  norms = list(model.sublayers)
  if model.norm_position == 'sandwich':
    norms += [f'{name}_out' for name in model.sublayers]
  found: dict[str, Tensor] = {}

  def linear(
    part: str, inputs: int, outputs: int, units: int, axis: int
  ) -> None:
    found[f'{part}.kernel'] = Tensor((inputs, outputs), units, axis)
    if model.use_bias:
      found[f'{part}.bias'] = Tensor((outputs,), units if axis else 0)

  experts = {}
  if model.experts.num_attention:
    experts.update(_attention_experts(model))
  if model.experts.num_ff:
    experts.update(_feed_forward_experts(model))
  replaced = {path.partition('.')[0] for path in experts}
  for name in model.sublayers:
    if name != 'feed_forward' and name not in replaced:
      read = d if name == 'attention' else model.memory_width
      linear(f'{name}.query', d, heads * model.head_dim, heads, 1)
      linear(f'{name}.key', read, kv_heads * model.head_dim, kv_heads, 1)
      linear(f'{name}.value', read, kv_heads * model.head_dim, kv_heads, 1)
      linear(f'{name}.out', heads * model.head_dim, d, heads, 0)
  if 'feed_forward' in model.sublayers and 'feed_forward' not in replaced:
    linear('feed_forward.up', d, f, f, 1)
    if model.activation in GATED:
      linear('feed_forward.gate', d, f, f, 1)
    linear('feed_forward.down', f, d, f, 0)
  found.update(experts)
  for name in norms:
    found[f'norm.{name}.scale'] = Tensor((d,))
    if model.norm != 'rmsnorm' and model.use_bias:
      found[f'norm.{name}.bias'] = Tensor((d,))
  if (model.position, model.positions_at) == ('learned', 'every_layer'):
    found['position.embedding'] = Tensor((model.max_len, d), used=0)
  if model.step_signal == 'learned':
    found['step.signal'] = Tensor((d,))
  return found


def _feed_forward_experts(model: Model) -> dict[str, Tensor]:
  """The tensors of a mixture of feed-forward experts."""
  d, e = model.d_model, model.experts
  experts, f, used = e.num_ff, e.ff_width, e.top_k / e.num_ff
  found = {'feed_forward.up.kernel': Tensor((experts, d, f), f, 2, used)}
  if model.activation in GATED:
    found['feed_forward.gate.kernel'] = Tensor((experts, d, f), f, 2, used)
  found['feed_forward.down.kernel'] = Tensor((experts, f, d), f, 1, used)
  return {**found, **_router(model, 'feed_forward.router', experts)}


def _attention_experts(model: Model) -> dict[str, Tensor]:
  """The tensors of SwitchHead, or of a mixture of heads."""
  d, k, e = model.d_model, model.head_dim, model.experts
  heads, kv_heads = model.num_heads, model.num_kv_heads
  experts, used = e.num_attention, e.attention_top_k / e.num_attention
  found = {'attention.key.kernel': Tensor((d, kv_heads * k), kv_heads, 1)}
  if e.style == 'sut':
    wide = kv_heads * k
    found['attention.query.kernel'] = Tensor(
      (experts, d, wide), kv_heads, 2, used
    )
    found['attention.value.kernel'] = Tensor((d, wide), kv_heads, 1)
    found['attention.out.kernel'] = Tensor(
      (experts, wide, d), kv_heads, 1, used
    )
    return {**found, **_router(model, 'attention.router', experts)}
  found['attention.query.kernel'] = Tensor((d, heads * k), heads, 1)
  for name, count, shape in (
    ('value', kv_heads, (kv_heads * experts, d, k)),
    ('out', heads, (heads * experts, k, d)),
  ):
    found[f'attention.{name}.kernel'] = Tensor(shape, count, 0, used)
    router = f'attention.{name}_router'
    found.update(_router(model, router, count * experts, count))
  return found


def _router(
  model: Model, name: str, experts: int, heads: int = 0
) -> dict[str, Tensor]:
  """A linear router; in style sut, one with a hidden layer."""
  d = model.d_model
  if model.experts.style == 'moeut':
    return {f'{name}.kernel': Tensor((d, experts), heads, 1)}
  return {
    f'{name}.hidden.kernel': Tensor((d, d)),
    f'{name}.hidden.bias': Tensor((d,)),
    f'{name}.scores.kernel': Tensor((d, experts)),
  }


def is_multiplied(path: Sequence[str]) -> bool:
  """Whether a layer's tensor is a matrix in the compute dtype when it is used.

  Args:
    path: of names.
  """
  return path[-1] == 'kernel' and not any('router' in name for name in path)


def matrices(model: Model) -> dict[str, tuple[int, ...]]:
  """The shape of every matrix of a layer, by dotted part."""
  return {
    path.rpartition('.')[0]: tensor.shape
    for path, tensor in layer(model).items()
    if len(tensor.shape) > 1
  }


def units(model: Model) -> dict[str, int]:
  """How many heads or neurons every matrix has, by dotted part; 0: none."""
  return {
    path.rpartition('.')[0]: tensor.units
    for path, tensor in layer(model).items()
    if len(tensor.shape) > 1
  }


@functools.lru_cache
def components(model: Model) -> dict[str, Component]:
  """The components that have a spec, and the parts that not all layers have.

  Args:
    model: one stack, see `sides.stacks`.
  """
  joint = dict(model.joint) if isinstance(model, Side) else {}
  given = model.sharing.specs().items()
  own = {name: spec for name, spec in given if name not in joint}
  own = {table.ROOT: 'none', **own}
  found = component.components(own, model.num_layers, readers(model))
  if model.tables == 'state':
    found = {name: _with_room(found[name]) for name in found}
  return {**found, **joint}


def _with_room(component: Component) -> Component:
  """A component that has a row for every layer, were none to share."""
  rows = len(component.owners[0]) if component.owners else 0
  return dataclasses.replace(component, capacity=rows)


def mixes(model: Model) -> dict[str, tuple[int, int]]:
  """The shape of the coefficients of every soft component with a matrix."""
  found = components(model)
  names = {table.resolve(found, part) for part in matrices(model)}
  return {name: found[name].mix for name in sorted(names) if found[name].mix[0]}


def component_of(model: Model, path: str) -> Component:
  """The component that a dotted path inside a layer follows."""
  found = components(model)
  return found[table.resolve(found, path)]
