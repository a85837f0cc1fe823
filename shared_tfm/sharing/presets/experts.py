"""Presets with mixtures of experts in shared layers."""

from shared_tfm.sharing.presets.registry import (
  LAYER,
  Fields,
  part,
  preset,
)


@preset(
  'Csordas et al. 2024, 2405.16039; RobertCsordas/moeut',
  example='moeut:2,8,4',
)
def moeut(
  num_layers: int,
  group: int = 2,
  experts: int = 155,
  attention_experts: int = 8,
) -> Fields:
  """Everything, `group` layers in turns, with experts in both sublayers."""
  part('moeut', num_layers, group)
  return {
    LAYER: f'cycle:{group}',
    'model.norm_position': 'peri',
    'model.activation': 'relu',
    'model.experts.num_ff': experts,
    'model.experts.num_attention': attention_experts,
  }


@preset('Tan et al. 2023, 2310.07096; shawntan/SUT', example='sut:8,2')
def sut(num_layers: int, experts: int = 24, top_k: int = 4) -> Fields:
  """Everything, in every step, with experts in both sublayers and halting.

  num_heads of the config is `top_k` times num_kv_heads. A position halts by
  stick-breaking and is attended to as its expected state; the halting unit is
  one linear map, where the released code has a layer of width D before it.
  """
  del num_layers
  return {
    LAYER: 'all',
    'model.experts.style': 'sut',
    'model.experts.num_ff': experts,
    'model.experts.top_k': top_k,
    'model.experts.num_attention': experts,
    'model.experts.attention_top_k': top_k,
    'model.experts.ff_balance': 0.1,
    'model.experts.attention_balance': 0.1,
    'model.depth.rule': 'stick_breaking',
    'model.depth.halt_bias': 0.0,
    'model.depth.halt_epsilon': 0.001,
  }
