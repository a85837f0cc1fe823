"""Presets in which layers reuse keys and values."""

from shared_tfm.errors import need
from shared_tfm.sharing.presets.registry import (
  KV_SOURCE,
  Fields,
  literal,
  part,
  preset,
)


@preset('Brandon et al. 2024, 2405.12981', example='cla:3')
def cla(num_layers: int, factor: int = 2) -> Fields:
  """Keys and values of one layer, by the `factor` - 1 layers after it."""
  return {KV_SOURCE: f'sequence:{part("cla", num_layers, factor)}'}


@preset(
  'Zuhri et al. 2024, 2406.09297; zaydzuhri/pythia-mlkv', example='mlkv:4'
)
def mlkv(num_layers: int, layers_with_kv: int) -> Fields:
  """Keys and values of `layers_with_kv` layers, by equally many neighbours.

  num_kv_heads of the config says how many heads such a layer has.
  """
  part('mlkv', num_layers, layers_with_kv)
  return {KV_SOURCE: f'sequence:{layers_with_kv}'}


@preset('Sun et al. 2024, 2405.05254')
def yoco(num_layers: int) -> Fields:
  """Keys and values of the middle layer, by all layers after it.

  The first half makes its own; its local windows are no part of this.
  """
  return {KV_SOURCE: f'prefix:{part("yoco", num_layers, 2) + 1}'}


@preset(
  'google-deepmind/gemma, gm/nn/gemma3n/_config.py',
  example='gemma3n:10',
  layers=15,
)
def gemma3n(num_layers: int, own: int, period: int = 5) -> Fields:
  """Keys and values of the last global and local layer that make their own.

  The first `own` layers do; every `period`-th layer is a global one. Later ones
  read the last of their kind; that local ones see a window is no part of this.
  """
  need(
    0 < period <= own <= num_layers,
    f'gemma3n needs from {max(period, 1)} to {num_layers} layers of own keys'
    f' and a period of at least 1, got {own} and {period}',
  )
  makers = list(range(own))
  for layer in range(own, num_layers):
    makers.append(
      max(
        i
        for i in range(own)
        if (i % period == period - 1) == (layer % period == period - 1)
      )
    )
  return {KV_SOURCE: literal(makers)}
