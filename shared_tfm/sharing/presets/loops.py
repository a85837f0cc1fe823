"""Presets that loop whole layers, and say how often and for whom."""

from shared_tfm.sharing.presets.registry import (
  LAYER,
  Fields,
  literal,
  part,
  preset,
)

_SIGNALS: Fields = {
  'model.position': 'sinusoidal',
  'model.positions_at': 'every_layer',
  'model.step_signal': 'sinusoidal',
}


@preset('Dehghani et al. 2019, 1807.03819, section 2')
def universal(num_layers: int) -> Fields:
  """Everything, in every step, with signals of position and step."""
  del num_layers
  return {LAYER: 'all', **_SIGNALS}


@preset(
  'Dehghani et al. 2019, 1807.03819, section 2.2; tensor2tensor,'
  ' universal_transformer_util.py'
)
def universal_act(num_layers: int) -> Fields:
  """Everything, in every step; each position halts by itself.

  Signals of position and step as in the other; the accumulation is
  Tensor2Tensor's basic one.
  """
  del num_layers
  return {
    LAYER: 'all',
    **_SIGNALS,
    'model.depth.rule': 'act',
    'model.depth.act_sum': 'basic',
  }


@preset('Bae et al. 2025, 2507.10524', example='mor_cycle:3')
def mor_cycle(num_layers: int, loops: int = 3) -> Fields:
  """Everything, as loops; each loop takes the tokens its router scores best."""
  return {
    LAYER: f'cycle:{part("mor_cycle", num_layers, loops)}',
    'model.depth.rule': 'expert_choice',
  }


@preset(
  'Bae et al. 2025, 2507.10524, Table 5',
  example='mor_middle_cycle:3',
  layers=8,
)
def mor_middle_cycle(num_layers: int, loops: int = 3) -> Fields:
  """Everything between the first and last layer, as loops.

  Each loop takes the tokens its router scores best.
  """
  return {
    LAYER: f'middle_cycle:{part("mor_middle_cycle", num_layers, loops, 2)}',
    'model.depth.rule': 'expert_choice',
  }


@preset('Bae et al. 2025, 2507.10524, Table 5', example='mor_sequence:2')
def mor_sequence(num_layers: int, loops: int = 3) -> Fields:
  """Everything, with neighbours; no loop goes over the whole, so no router."""
  return {LAYER: f'sequence:{part("mor_sequence", num_layers, loops)}'}


@preset(
  'Bae et al. 2025, 2507.10524, Table 5',
  example='mor_middle_sequence:3',
  layers=8,
)
def mor_middle_sequence(num_layers: int, loops: int = 3) -> Fields:
  """Everything between the first and last layer, with neighbours."""
  rows = part('mor_middle_sequence', num_layers, loops, 2)
  return {LAYER: f'middle_sequence:{rows}'}


@preset(
  'Geiping et al. 2025, 2502.05171; seal-rg/recurrent-pretraining',
  example='huginn:2,4,2',
  layers=16,
)
def huginn(
  num_layers: int, prelude: int = 2, core: int = 4, coda: int = 2
) -> Fields:
  """Everything in the core, looped between a prelude and a coda.

  The number of loops is drawn for every training step, their first input is
  injected by a linear map, and they start from noise.
  """
  loops = part('huginn', num_layers, core, prelude + coda)
  return {
    LAYER: f'recurrent:{prelude}/{core}x{loops}/{coda}',
    'model.norm_position': 'sandwich',
    'model.depth.rule': 'random',
    'model.depth.mean_loops': float(loops),
    'model.depth.backprop_loops': max(1, loops // 4),
    'model.depth.injection': 'linear',
    'model.depth.start': 'normal',
    'model.depth.norm': True,
  }


@preset('Zhu et al. 2025, 2510.25741', example='ouro:4')
def ouro(num_layers: int, loops: int = 4) -> Fields:
  """Everything: the whole stack looped, with a gate to leave after each loop.

  The loss is an expectation over exits, and their entropy is kept up.
  """
  return {
    LAYER: f'cycle:{part("ouro", num_layers, loops)}',
    'model.norm_position': 'sandwich',
    'model.depth.rule': 'ponder',
    'model.depth.prior': 'uniform',
  }


@preset(
  'Mohtashami et al. 2023, 2310.10845; epfml/CoTFormer',
  example='cotformer:3',
)
def cotformer(num_layers: int, loops: int = 2) -> Fields:
  """Everything, as loops; a loop attends to the keys of all before it, too."""
  return {
    LAYER: f'cycle:{part("cotformer", num_layers, loops)}',
    'model.depth.attention': 'all_loops',
  }


@preset(
  'Wang et al. 2025, 2506.21734; sapientinc/HRM',
  example='hrm:2,2',
)
def hrm(num_layers: int, rows: int = 4, inner: int = 2) -> Fields:
  """Two blocks of `rows` layers, in all their runs.

  The fast one runs `inner` times, then the slow one once, and again; the last
  run of each is trained. Both states start at zero, there is one segment
  (depth.supervision; up to 16 in the paper), and none of its halting.
  """
  part('hrm', num_layers, rows * (inner + 1))
  blocks = num_layers // rows
  owners = [
    row + rows * (block % (inner + 1) == inner)
    for block in range(blocks)
    for row in range(rows)
  ]
  return {LAYER: literal(owners), **_two_level(rows, inner, 2)}


@preset(
  'Jolicoeur-Martineau 2025, 2510.04871;'
  ' SamsungSAILMontreal/TinyRecursiveModels',
  example='trm:1,2',
)
def trm(num_layers: int, rows: int = 2, inner: int = 6) -> Fields:
  """One block of `rows` layers, which is the fast and the slow one.

  The last round, `inner` fast runs and a slow one, is trained. Both states
  start at zero, there is one segment (depth.supervision; up to 16 in the
  paper), and none of its halting.
  """
  part('trm', num_layers, rows * (inner + 1))
  return {LAYER: f'cycle:{rows}', **_two_level(rows, inner, inner + 1)}


def _two_level(rows: int, inner: int, trained: int) -> Fields:
  return {
    'model.depth.rule': 'two_level',
    'model.depth.start': 'zeros',
    'model.depth.core': rows,
    'model.depth.inner_loops': inner,
    'model.depth.backprop_loops': trained,
    'model.norm_position': 'post',
  }
