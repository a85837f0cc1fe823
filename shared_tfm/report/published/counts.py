"""Models as their papers configure them, and the counts that tables ask for."""

import dataclasses
from typing import Any

from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.config import Model, shapes, sides

# Llama's layer, which most published decoders have.
LLAMA = {
  'activation': 'swiglu',
  'norm': 'rmsnorm',
  'position': 'rotary',
  'use_bias': False,
}


def model(*parts: dict[str, Any], **fields: Any) -> Model:
  """The checked model of a config: `parts` over each other, then `fields`."""
  merged: dict[str, Any] = {}
  for part in (*parts, fields):
    merged.update(part)
  return configs.cross({'model': merged}).model


def stored(m: Model) -> int:
  """Every stored parameter."""
  return accounting.parameters(m)['stored']


def embedding(m: Model) -> int:
  """Parameters of the tables, an untied output table among them."""
  return accounting.parameters(m)['embedding']


def non_embedding(m: Model) -> int:
  """Stored parameters without `embedding`."""
  return accounting.parameters(m)['non_embedding']


def layers(m: Model) -> int:
  """Stored parameters inside the layers."""
  return accounting.parameters(m)['layers_stored']


def part(m: Model, name: str) -> int:
  """Stored parameters of a component or a part of it, without coefficients."""
  return sum(
    shapes.component_of(stack, path).stored(
      tensor.shape, tensor.units, tensor.axis
    )
    for stack in sides.stacks(m).values()
    for path, tensor in shapes.layer(stack).items()
    if f'{path}.'.startswith(f'{name}.')
  )


def outside(m: Model, name: str) -> int:
  """Parameters outside the layers whose dotted path starts with `name`."""
  return sum(
    size
    for path, size in accounting.outer_parameters(m).items()
    if f'{path}.'.startswith(f'{name}.')
  )


def layer_flops(m: Model) -> int:
  """Forward FLOPs of a token inside the layers, scores with `max_len` keys."""
  one_layer = model_of_depth(m, 1)
  two_layers = model_of_depth(m, 2)
  once = accounting.flops_per_token(one_layer)['forward']
  outer = 2 * once - accounting.flops_per_token(two_layers)['forward']
  return accounting.flops_per_token(m)['forward'] - outer


def model_of_depth(m: Model, num_layers: int) -> Model:
  """The same layers, that many of them, nothing shared."""
  plain = dataclasses.replace(
    m, num_layers=num_layers, sharing=configs.Sharing()
  )
  return configs.cross({'model': dataclasses.asdict(plain)}).model
