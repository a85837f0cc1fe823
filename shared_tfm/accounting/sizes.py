"""Bytes of what is stored, and of what a decoder keeps."""

import math

from shared_tfm.accounting.flops import makers
from shared_tfm.accounting.parameters import parameters
from shared_tfm.config import Model, loops, shapes, sides
from shared_tfm.config.precision import BYTES
from shared_tfm.sharing import levels
from shared_tfm.sharing.rounding import SCALE_BYTES


def kv_bytes_per_token(model: Model) -> int:
  """Bytes of keys and values a decoder keeps for each token, one set a visit.

  G K keys and as many values, in the compute dtype, for every layer that
  makes its own; one that reuses an attention map needs no keys. In eight bits
  a key, and a value, has a scale besides. An encoder
  keeps none; what a decoder keeps of a source is not counted.
  """
  if not model.causal:
    return 0
  entries = 0.0
  for name, stack in sides.stacks(model).items():
    if name.startswith('encoder'):
      continue
    sharing = stack.sharing
    kept: float = makers(stack, sharing.kv_source)
    kept += makers(stack, sharing.kv_source or sharing.map_source)
    kept *= sum(loops.shares(stack)) / stack.num_layers
    entries += kept * stack.num_kv_heads * stack.head_dim
  if model.quantise.cache == 'none':
    return round(entries * BYTES[model.precision.compute])
  scales = entries / model.head_dim  # one for each token and head
  return round(entries + SCALE_BYTES * scales)


def weight_bytes(model: Model) -> int:
  """Bytes of what the parameter tree holds, scales of whole numbers with it."""
  each, rounding = BYTES[model.precision.param], model.quantise.rounding
  total = each * parameters(model)['stored']
  if rounding is None or not model.quantise.integers:
    return total
  for stack in sides.stacks(model).values():
    for path, tensor in shapes.layer(stack).items():
      if not shapes.is_multiplied(path.split('.')):
        continue
      stored = shapes.component_of(stack, path).tensors(
        tensor.shape, tensor.units, tensor.axis
      )
      for suffix, shape in stored:
        if suffix != levels.DIAGONAL:
          total += rounding.bytes_of(shape) - each * math.prod(shape)
  return total
