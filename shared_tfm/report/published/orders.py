"""Papers about the order in which layers share, decoders among them."""

from typing import Any

from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.report.published.counts import LLAMA, layer_flops, stored
from shared_tfm.report.published.kinds import Row, Table

MOBILELLM = LLAMA | {'vocab_size': 32_000, 'max_len': 2048}
SIZES: dict[str, dict[str, Any]] = {
  '125M': {
    'num_layers': 30,
    'd_model': 576,
    'num_heads': 9,
    'num_kv_heads': 3,
    'd_ff': 1536,
  },
  '350M': {
    'num_layers': 32,
    'd_model': 960,
    'num_heads': 15,
    'num_kv_heads': 5,
    'd_ff': 2560,
  },
}


def mobilellm() -> Table:
  """MobileLLM and MobileLLM-LS."""
  rows = []
  for name, paper, run in (('125M', '124.6M', '60'), ('350M', '345.3M', '64')):
    plain = configs.cross({'model': MOBILELLM | SIZES[name]})
    twice = {'num_layers': 2 * plain.model.num_layers}
    shared = configs.cross(
      {'preset': 'mobilellm_ls', 'model': MOBILELLM | SIZES[name] | twice}
    )
    flops = layer_flops(shared.model) / layer_flops(plain.model)
    weights, base_weights = (
      accounting.describe(config)['weight_bytes'] for config in (shared, plain)
    )
    rows += [
      Row(name, 'parameters', paper, stored(plain.model)),
      Row(f'LS-{name}', 'parameters', paper, stored(shared.model)),
      Row(f'LS-{name}', 'layers run', run, shared.model.num_layers),
      Row(f'LS-{name}', 'FLOPs in layers / base', '2.0', flops),
      Row(f'LS-{name}', 'weight bytes / base', '1.0', weights / base_weights),
    ]
  return Table(
    'MobileLLM and MobileLLM-LS',
    '2402.14905; code: facebookresearch/MobileLLM',
    tuple(rows),
    (
      'The ratios are what the paper says in words: twice the computation, and'
      ' no more weights to be read.',
      'The published code gives both visits of a layer one slot of the cache'
      ' (layer_idx), so that its decoding with a cache is not the model that'
      ' was trained; here every visit has its own.',
    ),
  )


def takase_orders() -> Table:
  """Takase & Kiyono: the three orders."""
  rows = []
  for preset, layers, stored_rows, paper in (
    ('sequence', 6, 3, '0 0 1 1 2 2'),
    ('cycle', 6, 3, '0 1 2 0 1 2'),
    ('cycle_rev', 6, 3, '0 1 2 2 1 0'),
    ('sequence', 12, 6, '0 0 1 1 2 2 3 3 4 4 5 5'),
    ('cycle', 12, 6, '0 1 2 3 4 5 0 1 2 3 4 5'),
    ('cycle_rev', 12, 6, '0 1 2 3 4 5 5 4 3 2 1 0'),
    ('sequence', 18, 6, '0 0 0 1 1 1 2 2 2 3 3 3 4 4 4 5 5 5'),
    ('cycle', 18, 6, '0 1 2 3 4 5 0 1 2 3 4 5 0 1 2 3 4 5'),
    ('cycle_rev', 18, 6, '0 1 2 3 4 5 0 1 2 3 4 5 5 4 3 2 1 0'),
  ):
    config = configs.cross(
      {
        'preset': f'takase_{preset}:{stored_rows}',
        'model': {'num_layers': layers},
      }
    )
    owners = accounting.describe(config)['owners']['attention']
    name = f'{preset}, M {stored_rows}, N {layers}'
    rows.append(Row(name, 'owner of each layer', paper, tuple(owners)))
  return Table(
    'Takase & Kiyono: the three orders',
    '2104.06022; code: takase/share_layer_params',
    tuple(rows),
    ('Of CYCLE (REV) only the last block runs backwards.',),
  )
