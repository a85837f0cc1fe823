"""Mixtures of experts in shared layers: MoEUT (Csordas et al., 2405.16039)."""

from typing import Any

from shared_tfm import config as configs
from shared_tfm.config import Model
from shared_tfm.report.published.counts import stored
from shared_tfm.report.published.kinds import Row, Table

SIZES = {  # width, layers, heads, FF and attention experts, head width, K, G
  '44M': (412, 16, 4, 155, 8, 82, 12, 2),
  '126M': (768, 18, 4, 254, 10, 96, 12, 2),
  '244M': (1024, 18, 4, 387, 10, 128, 16, 2),
  '727M': (1280, 36, 5, 467, 13, 128, 20, 4),
}


def moeut() -> Table:
  """MoEUT: sizes."""
  rows = [
    Row(f'MoEUT {name}', 'parameters', name, stored(sized(name)))
    for name in SIZES
  ]
  narrow = stored(sized('727M', d_model=1024))
  return Table(
    'MoEUT: sizes',
    '2405.16039; code: RobertCsordas/moeut',
    tuple(rows),
    (
      'profiles.py of the published code gives the largest model d_model 1024,'
      f' with which it has {narrow:,} parameters; its training sweep has 1280,'
      ' counted here.',
    ),
  )


def sized(name: str, **changed: Any) -> Model:
  """A published MoEUT, with other fields where they are given."""
  width, layers, heads, ff, attention, head_dim, top_k, group = SIZES[name]
  fields: dict[str, Any] = {
    'num_layers': layers,
    'd_model': width,
    'num_heads': heads,
    'head_dim': head_dim,
    'vocab_size': 8000,
    'position': 'rotary',
    'rotary_fraction': 0.5,
    'activation': 'relu',
    'tie_embeddings': False,
    'head_bias': True,
    'experts': {'attention_top_k': 2, 'top_k': top_k},
    **changed,
  }
  preset = f'moeut:{group},{ff},{attention}'
  return configs.cross({'preset': preset, 'model': fields}).model
