"""Mixture-of-Recursions (Bae et al., 2507.10524)."""

import dataclasses
from typing import Any

from shared_tfm.accounting import kv_bytes_per_token
from shared_tfm.config import Model
from shared_tfm.config.loops import shares
from shared_tfm.report.published.counts import (
  LLAMA,
  embedding,
  model,
  non_embedding,
)
from shared_tfm.report.published.kinds import Row, Table
from shared_tfm.report.published.recursive import prefix

SOURCE = '2507.10524'
SIZES = {  # layers, width, heads, key/value heads, feed-forward
  '135M': (30, 576, 9, 3, 1536),
  '360M': (32, 960, 15, 5, 2560),
  '730M': (26, 1536, 24, 8, 4096),
}
DEPTH = (
  "Where the loops do not come out at the backbone's depth the paper rounds the"
  ' rows: 360M looped three times has 10 rows and 30 visits, and its middle'
  ' looped four times 8 rows between two, 34 visits.'
)
LORA = 'middle_cycle:10+none@64'
ALL_RUN = (
  "Where keys and values are the first loop's, the authors' code runs the whole"
  ' sequence in every loop and then takes the selected tokens, and so do we.'
)
UNUSED = (
  'The published count is that of whole layers; ours has no key and value'
  ' projections where a layer reads those of another.'
)


def backbone(
  size: str,
  sharing: str = 'none',
  depth: int = 0,
  rule: str = 'fixed',
  **more: Any,
) -> Model:
  """A SmolLM-like decoder under a sharing spec and a rule of depth."""
  layers, width, heads, kv_heads, d_ff = SIZES[size]
  return model(
    LLAMA,
    num_layers=depth or layers,
    d_model=width,
    num_heads=heads,
    num_kv_heads=kv_heads,
    d_ff=d_ff,
    vocab_size=49_152,
    sharing={'layer': sharing, **more},
    depth={'rule': rule},
  )


def looped(
  size: str, order: str, rows: int, loops: int, rule: str = 'fixed'
) -> Model:
  """`rows` stored and read `loops` times; middle_* has two rows more."""
  ends = 2 if order.startswith('middle') else 0
  return backbone(size, f'{order}:{rows}', rows * loops + ends, rule)


def _row(name: str, paper: str, m: Model) -> Row:
  return Row(name, 'non-embedding', paper, non_embedding(m))


def table_2() -> Table:
  """MoR Table 2: cache and attention relative to the vanilla model."""
  rows = []
  for loops, kept, reused in (
    (2, '0.75', '0.5'),
    (3, '0.667', '0.333'),
    (4, '0.625', '0.25'),
  ):
    full = kv_bytes_per_token(looped('360M', 'cycle', 8, loops))
    routed = backbone('360M', 'cycle:8', 8 * loops, rule='expert_choice')
    shared = backbone(
      '360M', 'cycle:8', 8 * loops, rule='expert_choice', kv_source='cycle:8'
    )
    name = f'{loops} recursions'
    rows += [
      Row(
        name,
        'KV memory, recursion-wise',
        kept,
        kv_bytes_per_token(routed) / full,
      ),
      Row(name, 'KV memory, shared', reused, kv_bytes_per_token(shared) / full),
    ]
    rows += [  # of the last loop, where k of N tokens run
      Row(
        f'{name}, the last',
        'attention FLOPs, recursion-wise',
        {2: '0.25', 3: '0.111', 4: '0.0625'}[loops],
        shares(routed)[-1] ** 2,
      ),
      Row(
        f'{name}, the last, KV shared',
        'attention FLOPs, shared',
        reused,
        shares(shared)[-1],
        why=ALL_RUN,
      ),
    ]
  return Table(
    'MoR Table 2: cache and attention relative to the vanilla model',
    SOURCE,
    tuple(rows),
    (
      'The paper prints formulas: (Nr + 1) / 2 Nr and 1 / Nr of the memory,'
      ' (k/N)^2 and k/N of the attention FLOPs, here for the last recursion,'
      ' k/N = 1/Nr.',
      'Recursion-wise, loop r of Nr keeps (Nr - r + 1) / Nr of the tokens.',
    ),
  )


def table_3() -> Table:
  """MoR Table 3: main results, parameters."""
  rows = [_row('Vanilla', '315M', backbone('360M'))]
  for loops, middle, paper in ((2, 15, '167M'), (3, 10, '118M'), (4, 8, '98M')):
    rows += [
      _row(
        f'{name}, Nr {loops}',
        paper,
        looped('360M', 'middle_cycle', middle, loops, rule),
      )
      for name, rule in (
        ('Recursive', 'fixed'),
        ('MoR, expert choice', 'expert_choice'),
        ('MoR, token choice', 'token_choice'),
      )
    ]
  shared = backbone(
    '360M',
    'middle_cycle:10',
    32,
    rule='expert_choice',
    kv_source='middle_cycle:10',
  )
  rows.append(_row('MoR, expert choice, KV shared, Nr 3', '118M', shared))
  return Table(
    'MoR Table 3: main results, parameters', SOURCE, tuple(rows), (DEPTH,)
  )


def table_6() -> Table:
  """MoR Table 6: backbones."""
  rows = []
  for size, inside, outside in (
    ('135M', '106M', '28M'),
    ('360M', '315M', '47M'),
  ):
    m = backbone(size)
    rows.append(_row(size, inside, m))
    rows.append(Row(size, 'embedding', outside, embedding(m)))
  return Table('MoR Table 6: backbones', SOURCE, tuple(rows))


def table_10() -> Table:
  """MoR Table 10: orders of sharing."""
  rows = []
  for size, full, halves, thirds in (
    ('135M', '106M', (15, '53M', 14, '57M'), (10, '35M', 9, '39M')),
    ('360M', '315M', (16, '157M', 15, '167M'), (10, '98M', 10, '118M')),
  ):
    rows.append(_row(f'{size}, full', full, backbone(size)))
    for loops, (own, paper, middle, middle_paper) in ((2, halves), (3, thirds)):
      reduced = backbone(size, 'none', own)
      rows.append(_row(f'{size}, R {loops}, reduced', paper, reduced))
      for order in ('cycle', 'sequence', 'middle_cycle', 'middle_sequence'):
        is_middle = order.startswith('middle')
        m = looped(size, order, middle if is_middle else own, loops)
        printed = middle_paper if is_middle else paper
        rows.append(_row(f'{size}, R {loops}, {order}', printed, m))
  return Table('MoR Table 10: orders of sharing', SOURCE, tuple(rows), (DEPTH,))


def table_11() -> Table:
  """MoR Table 11: equal unique parameters, 730M backbone."""
  cycle = looped('730M', 'cycle', 10, 3)
  middle = looped('730M', 'middle_cycle', 8, 3)
  return Table(
    'MoR Table 11: equal unique parameters, 730M backbone',
    SOURCE,
    (
      _row('Cycle, 10 x 3', '252M', cycle),
      _row('Middle-Cycle, 1 + 8 x 3 + 1', '252M', middle),
    ),
  )


def table_15() -> Table:
  """MoR Table 15: sharing of keys and values, parameters."""
  rows = []
  for name, weights, source, depth, paper in (
    ('Vanilla', 'none', '', 32, '315M'),
    ('Vanilla, KV Cycle 2', 'none', 'cycle:16', 32, '315M'),
    ('Vanilla, KV Sequence 2', 'none', 'sequence:16', 32, '315M'),
    ('Recursive M-Cyc 3', 'middle_cycle:10', '', 32, '118M'),
    ('Recursive M-Cyc 3, KV', 'middle_cycle:10', 'middle_cycle:10', 32, '118M'),
    ('Recursive M-Cyc 2', 'middle_cycle:15', '', 32, '167M'),
    ('Recursive M-Cyc 2, KV', 'middle_cycle:15', 'middle_cycle:15', 32, '167M'),
    ('Recursive Seq 2', 'sequence:16', '', 32, '157M'),
    ('Recursive Seq 2, KV', 'sequence:16', 'sequence:16', 32, '157M'),
  ):
    row = _row(name, paper, backbone('360M', weights, depth, kv_source=source))
    why = '' if row.agrees else UNUSED
    rows.append(dataclasses.replace(row, why=why))
  return Table(
    'MoR Table 15: sharing of keys and values, parameters',
    SOURCE,
    tuple(rows),
  )


def table_16() -> Table:
  """MoR Table 16: relaxations of M-Cyc 3, parameters."""
  base = looped('360M', 'middle_cycle', 10, 3)
  delta: dict[str, Any] = {'attention_query': LORA, 'attention_value': LORA}
  lora = backbone('360M', 'middle_cycle:10', **delta)
  everywhere = non_embedding(backbone('360M', LORA))
  return Table(
    'MoR Table 16: relaxations of M-Cyc 3, parameters',
    SOURCE,
    (
      _row('None', '118M', base),
      _row('LoRA, rank 64', '124M', lora),
      Row(
        'Adaptation prompt, 256 tokens',
        'non-embedding',
        '126M',
        non_embedding(base) + prefix(base, 256),
      ),
    ),
    (
      'With deltas for query and value, as adapters have by default, the size'
      f' is the printed one; for all seven maps it is {everywhere:,}.',
      'Prompts are not a scheme of ours: length * N * D of the config is'
      ' added.',
      "The table's own base row prints the loss of Table 15's KV-shared model,"
      ' 2.8854, and not the 2.8760 of M-Cyc 3.',
    ),
  )
