"""Presets that share whole layers."""

from shared_tfm.errors import need
from shared_tfm.sharing.presets.registry import (
  LAYER,
  Fields,
  literal,
  part,
  preset,
)


@preset(
  'Lan et al. 2020, 1909.11942, section 4.5; google-research/albert,'
  ' modeling.py',
  example='albert:6',
)
def albert(num_layers: int, groups: int = 1, inner: int = 1) -> Fields:
  """Everything in a layer, with all layers of its group.

  A group of `inner` different layers is run as a whole each time, and
  num_layers counts every run: num_hidden_layers * inner_group_num there.
  """
  steps = part('albert', num_layers, inner)
  need(
    0 < groups <= steps,
    f'albert needs from 1 to {steps} groups for {num_layers} layers, got'
    f' {groups}',
  )
  if inner == 1 and num_layers % groups == 0:
    return {LAYER: 'all' if groups == 1 else f'sequence:{groups}'}
  return {
    LAYER: literal(
      [
        step * groups // steps * inner + place
        for step in range(steps)
        for place in range(inner)
      ]
    )
  }


@preset(
  'Takase & Kiyono 2023, 2104.06022; takase/share_layer_params',
  example='takase_sequence:6',
)
def takase_sequence(num_layers: int, rows: int = 0) -> Fields:
  """Everything, with neighbours: A A B B; half as many rows unless given."""
  return {LAYER: f'sequence:{rows or part("takase", num_layers, 2)}'}


@preset(
  'Takase & Kiyono 2023, 2104.06022; takase/share_layer_params',
  example='takase_cycle:4',
)
def takase_cycle(num_layers: int, rows: int = 0) -> Fields:
  """Everything, in turns: A B A B; half as many rows unless given."""
  return {LAYER: f'cycle:{rows or part("takase", num_layers, 2)}'}


@preset(
  'Takase & Kiyono 2023, 2104.06022; takase/share_layer_params',
  example='takase_cycle_rev:3',
)
def takase_cycle_rev(num_layers: int, rows: int = 0) -> Fields:
  """Everything, in turns, the last one backwards: A B A B B A."""
  return {LAYER: f'cycle_rev:{rows or part("takase", num_layers, 2)}'}


@preset('Reid et al. 2021, 2101.00234; machelreid/subformer')
def subformer(num_layers: int) -> Fields:
  """Attention and feed-forward of all but the first and last layer.

  Norms stay each layer's own. Its sandwich width and self-attentive embeddings
  are sizes of the config: core_width, and embed_project safe.
  """
  del num_layers
  return {LAYER: 'sandwich', 'model.sharing.norm': 'none'}


@preset('Liu et al. 2024, 2402.14905; facebookresearch/MobileLLM')
def mobilellm_ls(num_layers: int) -> Fields:
  """Everything, each stored layer run twice in a row."""
  return {LAYER: f'sequence:{part("mobilellm_ls", num_layers, 2)}'}


@preset(
  'Saunshi et al. 2025, 2502.17416',
  example='looped:4',
)
def looped(num_layers: int, rows: int = 1) -> Fields:
  """Everything: k layers looped L times, num_layers = k L."""
  return {LAYER: f'cycle:{rows}'}
