"""Keys, values and attention weights shared between layers."""

from shared_tfm import config as configs
from shared_tfm.accounting import describe, kv_bytes_per_token
from shared_tfm.config import Model
from shared_tfm.report.published.counts import (
  LLAMA,
  model,
  model_of_depth,
  part,
)
from shared_tfm.report.published.kinds import Row, Table


def cla() -> Table:
  """Cross-Layer Attention: the 1B models."""
  rows = []
  for name, kv_heads, width, source, paper in (
    ('H128-MHA', 16, 128, '', '163840'),
    ('H128-GQA4', 4, 128, '', '40960'),
    ('H128-GQA2', 2, 128, '', '20480'),
    ('H128-MQA', 1, 128, '', '10240'),
    ('H64-MQA', 1, 64, '', '5120'),
    ('H46-MQA', 1, 46, '', '3680'),
    ('H32-MQA', 1, 32, '', '2560'),
    ('H128-MQA-CLA2', 1, 128, 'sequence:10', '5120'),
    ('H90-MQA-CLA2', 1, 90, 'sequence:10', '3600'),
    ('H64-MQA-CLA2', 1, 64, 'sequence:10', '2560'),
  ):
    m = model(
      LLAMA,
      num_layers=20,
      d_model=2048,
      num_heads=16,
      num_kv_heads=kv_heads,
      head_dim=width,
      dtype='bfloat16',
      sharing={'kv_source': source},
    )
    rows.append(Row(name, 'KV bytes per token', paper, kv_bytes_per_token(m)))
  return Table(
    'Cross-Layer Attention: the 1B models',
    '2405.12981',
    tuple(rows),
    (
      'The number of query heads, which the cache does not see, is 16'
      ' throughout.',
    ),
  )


def mlkv() -> Table:
  """MLKV: Pythia-160M with fewer heads of keys and values."""
  rows = []
  for name, with_kv, kv_heads, bytes_per_token in (
    ('MHA', 12, 12, '36864'),
    ('GQA', 12, 4, '12288'),
    ('MLKV', 4, 12, '12288'),
    ('MQA', 12, 1, '3072'),
    ('MLKV', 4, 3, '3072'),
    ('MLKV', 6, 1, '1536'),
    ('MLKV', 4, 1, '1024'),
    ('MLKV', 2, 1, '512'),
    ('MLKV', 1, 1, '256'),
  ):
    m = _pythia(kv_heads, with_kv)
    heads = _kv_heads(m)
    name = f'{name}-{with_kv * kv_heads}'
    rows += [
      Row(name, 'KV heads in all layers', str(with_kv * kv_heads), heads),
      Row(name, 'KV bytes per token', bytes_per_token, kv_bytes_per_token(m)),
    ]
  return Table(
    'MLKV: Pythia-160M with fewer heads of keys and values',
    '2406.09297; code: zaydzuhri/pythia-mlkv',
    tuple(rows),
    (
      "The README's table has the six of 144, 48, 12 and 2 heads; 6, 4 and 1"
      ' are in its results, one head a layer. The heads are printed; the bytes'
      ' follow from them in fp16.',
    ),
  )


def _pythia(kv_heads: int, layers_with_kv: int) -> Model:
  source = f'sequence:{layers_with_kv}' if layers_with_kv < 12 else ''
  return model(
    num_layers=12,
    d_model=768,
    num_heads=12,
    num_kv_heads=kv_heads,
    vocab_size=50_304,
    position='rotary',
    tie_embeddings=False,
    dtype='bfloat16',
    sharing={'kv_source': source},
  )


def _kv_heads(m: Model) -> int:
  """Heads of keys in all layers, from the stored key projections."""
  one_head = m.d_model * m.head_dim + m.head_dim * m.use_bias
  return part(m, 'attention.key') // one_head


def gemma3n() -> Table:
  """Gemma3n: owners of keys and values."""
  early = '0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19'
  late = '18 18 18 18 19'
  rows = []
  for name, depth, paper in (
    ('E4B, 35 layers', 35, f'{early} {late} {late} {late}'),
    ('E2B, 30 layers', 30, f'{early} {late} {late}'),
  ):
    m = configs.cross({'preset': 'gemma3n:20', 'model': {'num_layers': depth}})
    owners = describe(m)['owners']['kv_source']
    one = kv_bytes_per_token(model_of_depth(m.model, 1))
    makers = kv_bytes_per_token(m.model) // one
    rows += [
      Row(name, 'layer whose KV is read', paper, tuple(owners)),
      Row(name, 'layers that keep KV', '20', makers),
    ]
  return Table(
    'Gemma3n: owners of keys and values',
    'google-deepmind/gemma, gm/nn/gemma3n/_config.py',
    tuple(rows),
    ('The last of every five layers is a global one.',),
  )


def masa() -> Table:
  """MASA: compression of attention, 12 layers."""
  rows = []
  for parts, papers in (
    (('query', 'key', 'value', 'out'), ('83.3%', '66.7%', '50.0%', '33.3%')),
    (('query', 'key', 'value'), ('62.5%', '50.0%', '37.5%', '25.0%')),
  ):
    for atoms, paper in zip((2, 4, 6, 8), papers, strict=True):
      own = _masa({})
      mixed = _masa({f'attention_{name}': f'soft:{atoms}' for name in parts})
      saved = 100 * (1 - part(mixed, 'attention') / part(own, 'attention'))
      letters = ''.join(name[0].upper() for name in parts)
      rows.append(
        Row(f'{letters}, S {atoms}', 'compression of attention', paper, saved)
      )
  return Table(
    'MASA: compression of attention, 12 layers',
    '2508.04581',
    tuple(rows),
    (
      'Coefficients, atoms * N for each of the matrices, are not counted, nor'
      ' are they in the paper.',
      'O is the output projection.',
    ),
  )


def _masa(sharing: dict[str, str]) -> Model:
  return model(LLAMA, num_layers=12, d_model=768, num_heads=12, sharing=sharing)
