"""Presets in which a weight is a sum, or a mixture."""

from shared_tfm.sharing.presets.registry import (
  LAYER,
  Fields,
  part,
  preset,
)


@preset(
  'Bae et al. 2025, 2410.20672',
  example='relaxed_recursive:3,2',
)
def relaxed_recursive(
  num_layers: int, loops: int = 2, rank: int = 64
) -> Fields:
  """Everything, as loops over one block of layers.

  On top every layer has a low-rank delta of its own for each linear map. Rank 0
  is the strict form, without them.
  """
  rows = part('relaxed_recursive', num_layers, loops)
  return {LAYER: f'cycle:{rows}' + (f'+none@{rank}' if rank else '')}


@preset(
  'Wang & Li 2024, 2310.02489',
  example='residual_transformer:3,2',
)
def residual_transformer(
  num_layers: int, group: int = 3, rank: int = 32
) -> Fields:
  """Full-rank matrices, with `group` neighbours.

  Every layer adds a low-rank and a diagonal term of its own; its norms are its
  own too.
  """
  rows = part('residual_transformer', num_layers, group)
  return {
    LAYER: f'sequence:{rows}+none@{rank}+none@diagonal',
    'model.sharing.norm': 'none',
  }


@preset(
  'Glorioso et al. 2024, 2411.15242; Zyphra/transformers_zamba2',
  example='zamba2:2,2',
)
def zamba2(num_layers: int, blocks: int = 2, rank: int = 128) -> Fields:
  """Attention and feed-forward blocks, called in turns.

  Every call has low-rank deltas of its own. num_layers counts these calls; the
  Mamba layers that stand between them there are no part of it.
  """
  part('zamba2', num_layers, blocks)
  return {LAYER: f'cycle:{blocks}+none@{rank}'}


@preset('Zhussip et al. 2025, 2508.04581', example='masa:4')
def masa(num_layers: int, atoms: int = 0) -> Fields:
  """Query, key, value and output matrices, as mixtures of atoms.

  Each of the four has its atoms, a third as many as layers unless given, and
  every layer its coefficients. Feed-forward and norms are each layer's own.
  """
  atoms = atoms or part('masa', num_layers, 3)
  return {
    f'model.sharing.attention_{part}': f'soft:{atoms}'
    for part in ('query', 'key', 'value', 'out')
  }
