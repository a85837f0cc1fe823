"""ALBERT: A Lite BERT (Lan et al., 1909.11942)."""

from shared_tfm.config import Model
from shared_tfm.report.published.counts import model, outside, stored
from shared_tfm.report.published.kinds import Row, Table

SOURCE = '1909.11942; code: google-research/albert, modeling.py'
ENCODER = {
  'family': 'encoder',
  'vocab_size': 30_000,
  'max_len': 512,
  'type_vocab_size': 2,
  'norm_position': 'post',
  'embed_norm': True,
}
STRATEGIES = {
  'all-shared': {'layer': 'all'},
  'shared-attention': {'attention': 'all', 'norm_attention': 'all'},
  'shared-FFN': {'feed_forward': 'all', 'norm_feed_forward': 'all'},
  'not-shared': {'layer': 'none'},
}
COUNTED = (
  'Counted as the released code does: the published encoder has a pooler,'
  ' D*D + D, which is added to our count, and no masked-LM head, which is taken'
  ' off it. Rows without sharing are printed without the pooler.'
)
WIDE = (
  'The paper overstates its wide models: no reading of the released code gives'
  ' the printed number.'
)


def encoder(
  layers: int, width: int, embed: int, sharing: dict[str, str]
) -> Model:
  """An ALBERT of any size: heads of 64, feed-forward four times as wide."""
  return model(
    ENCODER,
    num_layers=layers,
    d_model=width,
    num_heads=width // 64,
    embed_dim=embed,
    sharing=sharing,
  )


def pooler(m: Model) -> int:
  """BERT's pooler, a linear map over the first token, which we do not have."""
  return m.d_model * m.d_model + m.d_model


def without_pooler(m: Model) -> int:
  """The encoder alone: embeddings and layers."""
  return stored(m) - outside(m, 'head')


def count(m: Model) -> int:
  """The encoder with its pooler."""
  return without_pooler(m) + pooler(m)


def _row(name: str, paper: str, m: Model, why: str = '') -> Row:
  return Row(name, 'parameters', paper, count(m), why)


def _unshared(name: str, paper: str, m: Model) -> Row:
  why = f'Without the pooler, as is printed, it is {without_pooler(m):,}.'
  return _row(name, paper, m, why)


def table_1() -> Table:
  """ALBERT Table 1: configurations."""
  none, shared = STRATEGIES['not-shared'], STRATEGIES['all-shared']
  return Table(
    'ALBERT Table 1: configurations',
    SOURCE,
    (
      _unshared('BERT base', '108M', encoder(12, 768, 768, none)),
      _row('ALBERT base', '12M', encoder(12, 768, 128, shared)),
      _row('ALBERT large', '18M', encoder(24, 1024, 128, shared)),
      _row('ALBERT xlarge', '60M', encoder(24, 2048, 128, shared), WIDE),
      _row(
        'ALBERT xxlarge',
        '235M',
        encoder(12, 4096, 128, shared),
        WIDE + ' The text of section 3.2 says 233M.',
      ),
    ),
    (COUNTED,),
  )


def table_3() -> Table:
  """ALBERT Table 3: embedding widths of ALBERT-base."""
  rows = []
  for embed, paper in ((64, '87M'), (128, '89M'), (256, '93M'), (768, '108M')):
    m = encoder(12, 768, embed, STRATEGIES['not-shared'])
    name = f'not-shared, E {embed}'
    row = _row(name, paper, m)
    rows.append(row if row.agrees else _unshared(name, paper, m))
  for embed, paper in ((64, '10M'), (128, '12M'), (256, '16M'), (768, '31M')):
    m = encoder(12, 768, embed, STRATEGIES['all-shared'])
    rows.append(_row(f'all-shared, E {embed}', paper, m))
  return Table(
    'ALBERT Table 3: embedding widths of ALBERT-base',
    SOURCE,
    tuple(rows),
    (COUNTED,),
  )


def table_4() -> Table:
  """ALBERT Table 4: what is shared in ALBERT-base."""
  printed = {
    768: ('31M', '83M', '57M', '108M'),
    128: ('12M', '64M', '38M', '89M'),
  }
  rows = []
  for embed, papers in printed.items():
    for (strategy, sharing), paper in zip(
      STRATEGIES.items(), papers, strict=True
    ):
      m = encoder(12, 768, embed, sharing)
      name = f'E {embed}, {strategy}'
      row = _row(name, paper, m)
      rows.append(row if row.agrees else _unshared(name, paper, m))
  return Table(
    'ALBERT Table 4: what is shared in ALBERT-base',
    SOURCE,
    tuple(rows),
    (
      COUNTED,
      'Sharing attention or feed-forward alone is not in the released code; a'
      ' norm is shared with the sublayer it follows.',
    ),
  )


def table_12() -> Table:
  """ALBERT Table 12: widths of a 3-layer ALBERT-large."""
  rows = []
  for width, paper in (
    (1024, '18M'),
    (2048, '60M'),
    (4096, '225M'),
    (6144, '499M'),
  ):
    m = encoder(3, width, 128, STRATEGIES['all-shared'])
    rows.append(_row(f'H {width}', paper, m, WIDE if width > 1024 else ''))
  return Table(
    'ALBERT Table 12: widths of a 3-layer ALBERT-large',
    SOURCE,
    tuple(rows),
    (COUNTED,),
  )


def groups() -> Table:
  """ALBERT-base in groups of layers, E 128: the table that is not printed."""
  rows = [
    _row(
      f'{groups} group{"s" * (groups > 1)}',
      '',
      encoder(12, 768, 128, {'layer': spec}),
    )
    for groups in (1, 2, 3, 4, 6, 12)
    if (spec := f'sequence:{groups}')
  ]
  return Table(
    'ALBERT-base in groups of layers, E 128: the table that is not printed',
    SOURCE,
    tuple(rows),
    (
      COUNTED,
      'Section 4.5 says only that layers may be divided into groups, and that'
      ' smaller groups do better; the released code has them'
      ' (num_hidden_groups).',
    ),
  )
