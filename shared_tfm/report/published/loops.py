"""Models that loop a block: Huginn, Ouro, and small recursive reasoners."""

from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.config import Model
from shared_tfm.report.published.counts import (
  LLAMA,
  layers,
  model,
  outside,
  part,
  stored,
)
from shared_tfm.report.published.kinds import Row, Table

HUGINN = LLAMA | {
  'd_model': 5280,
  'num_heads': 55,
  'd_ff': 17_920,
  'vocab_size': 65_536,
  'norm_position': 'sandwich',
}


def huginn() -> Table:
  """Huginn: sizes in its registry."""
  looped = {loops: _huginn(loops) for loops in (32, 64)}
  block = model(HUGINN, num_layers=4)
  rows = [
    Row(
      'merseburg 3.5b',
      'parameters without norms',
      '3,508,961,280',
      stored(looped[32]) - _norms(looped[32]),
    ),
    Row(
      'its recurrent block',
      'parameters without norms',
      '1,581M',
      layers(block) - part(block, 'norm'),
    ),
  ]
  for loops, paper in ((32, '52,534M'), (64, '103,141M')):
    m = looped[loops]
    applied = accounting.parameters(m)['applied']
    # Every visit of a layer applies its norms again.
    once = part(model(HUGINN, num_layers=1), 'norm')
    norms = once * m.num_layers + outside(m, 'norm')
    rows.append(
      Row(
        f'unfolded, {loops} loops',
        'applied parameters without norms',
        paper,
        applied - norms,
      )
    )
  rows.append(
    Row('huginn-0125, released', 'parameters', '3.5B', stored(released(32)))
  )
  return Table(
    'Huginn: sizes in its registry',
    '2502.05171; seal-rg/recurrent-pretraining, model_registry.py',
    tuple(rows),
    (
      'The registry counts matrices alone, with the input added to the state:'
      ' our norms (four a layer and the last one) are taken off. What was'
      ' released has norms, and a linear map of state and input, 2 D D; its'
      ' biases of queries and keys we have not.',
    ),
  )


def _huginn(loops: int) -> Model:
  return model(
    HUGINN,
    num_layers=4 + 4 * loops,
    sharing={'layer': f'recurrent:2/4x{loops}/2'},
  )


def released(loops: int) -> Model:
  """Huginn with all that its preset has: norms, and a linear injection."""
  fields = HUGINN | {'num_layers': 4 + 4 * loops}
  return configs.cross({'preset': 'huginn', 'model': fields}).model


def _norms(m: Model) -> int:
  return part(m, 'norm') + outside(m, 'norm')


def ouro() -> Table:
  """Ouro (LoopLM)."""
  rows = []
  for depth, paper in ((24, '1.4B'), (48, '2.6B')):
    fields = LLAMA | {
      'num_layers': 4 * depth,
      'd_model': 2048,
      'num_heads': 16,
      'd_ff': 5632,
      'vocab_size': 49_152,
      'tie_embeddings': False,
    }
    m = configs.cross({'preset': 'ouro:4', 'model': fields}).model
    rows.append(Row(f'{depth} layers', 'parameters', paper, stored(m)))
  return Table(
    'Ouro (LoopLM)',
    '2510.25741; ByteDance/Ouro-1.4B and -2.6B',
    tuple(rows),
    ('The exit gate, D + 1, is counted.',),
  )


REASONER = LLAMA | {
  'family': 'encoder',
  'd_model': 512,
  'num_heads': 8,
  'd_ff': 1536,
  'norm_position': 'post',
}
UNSCALED = (
  'Parameters inside the layers: token tables are tiny, and puzzle embeddings'
  ' belong to a data set. The published norms have no scale; ours do, D each,'
  ' and are taken off.'
)


def hrm() -> Table:
  """HRM: Hierarchical Reasoning Model."""
  m = _reasoner('hrm:4,2', 24)
  return Table(
    'HRM: Hierarchical Reasoning Model',
    '2506.21734; code: sapientinc/HRM',
    (Row('HRM', 'in layers', '27M', layers(m) - part(m, 'norm')),),
    (UNSCALED,),
  )


def trm() -> Table:
  """TRM: Tiny Recursive Model."""
  m = _reasoner('trm:2,6', 42)
  return Table(
    'TRM: Tiny Recursive Model',
    '2510.04871; code: SamsungSAILMontreal/TinyRecursiveModels',
    (Row('TRM', 'in layers', '7M', layers(m) - part(m, 'norm')),),
    (UNSCALED,),
  )


def _reasoner(preset: str, visits: int) -> Model:
  fields = {**REASONER, 'num_layers': visits}
  return configs.cross({'preset': preset, 'model': fields}).model
