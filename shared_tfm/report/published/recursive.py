"""Relaxed Recursive Transformers (Bae et al., 2410.20672)."""

from typing import Any

from shared_tfm.config import Model
from shared_tfm.report.published.counts import (
  LLAMA,
  embedding,
  model,
  non_embedding,
)
from shared_tfm.report.published.kinds import Row, Table

SOURCE = '2410.20672'
BACKBONES: dict[str, dict[str, Any]] = {
  'Gemma 2B': LLAMA
  | {
    'activation': 'geglu',
    'num_layers': 18,
    'd_model': 2048,
    'num_heads': 8,
    'num_kv_heads': 1,
    'head_dim': 256,
    'd_ff': 16_384,
    'vocab_size': 256_000,
  },
  'TinyLlama 1.1B': LLAMA
  | {
    'num_layers': 22,
    'd_model': 2048,
    'num_heads': 32,
    'num_kv_heads': 4,
    'd_ff': 5632,
    'vocab_size': 32_000,
    'tie_embeddings': False,
  },
  'Pythia 1B': {
    'position': 'rotary',
    'num_layers': 16,
    'd_model': 2048,
    'num_heads': 8,
    'd_ff': 8192,
    'vocab_size': 50_304,
    'tie_embeddings': False,
  },
}
RANKS = (64, 128, 256, 512)
BLOCKS = (  # model, blocks, the printed size at each rank
  ('Gemma 2B', 2, ('1.07B', '1.15B', '1.30B', '1.60B')),
  ('TinyLlama 1.1B', 2, ('0.53B', '0.58B', '0.68B', '0.86B')),
  ('Pythia 1B', 2, ('0.44B', '0.48B', '0.55B', '0.70B')),
  ('Gemma 2B', 3, ('0.74B', '0.82B', '0.97B', '1.27B')),
)


def recursive(name: str, blocks: int, rank: int = 0) -> Model:
  """A backbone as that many loops, each layer with deltas of a rank."""
  backbone = BACKBONES[name]
  rows = backbone['num_layers'] // blocks
  deltas = f'+none@{rank}' if rank else ''
  return model(backbone, sharing={'layer': f'cycle:{rows}{deltas}'})


def table_1() -> Table:
  """Relaxed Recursive Transformers Table 1: backbones."""
  rows = []
  for name, outside, full, looped in (
    ('Gemma 2B', '0.52B', '1.98B', ('0.99B', '0.66B')),
    ('TinyLlama 1.1B', '0.13B', '0.97B', ('0.48B',)),
    ('Pythia 1B', '0.21B', '0.81B', ('0.40B',)),
  ):
    m = model(BACKBONES[name])
    rows.append(Row(name, 'embedding', outside, embedding(m)))
    rows.append(Row(name, 'non-embedding', full, non_embedding(m)))
    for blocks, paper in enumerate(looped, 2):
      rows.append(
        Row(
          f'{name}, {blocks} blocks',
          'non-embedding',
          paper,
          non_embedding(recursive(name, blocks)),
        )
      )
  return Table(
    'Relaxed Recursive Transformers Table 1: backbones',
    SOURCE,
    tuple(rows),
    ('Table F.1 of the same paper prints 1.99B for the 1.98B of Gemma.',),
  )


def table_g2() -> Table:
  """Relaxed Recursive Transformers Table G.2: ranks of the deltas."""
  rows = [
    Row(
      f'{name}, {blocks} blocks, rank {rank}',
      'non-embedding',
      paper,
      non_embedding(recursive(name, blocks, rank)),
    )
    for name, blocks, papers in BLOCKS
    for rank, paper in zip(RANKS, papers, strict=True)
  ]
  return Table(
    'Relaxed Recursive Transformers Table G.2: ranks of the deltas',
    SOURCE,
    tuple(rows),
    (
      'A rank is capped at min(d_in, d_out): the keys and values of Gemma are'
      ' 256 wide, so that rank 512 is 256 there.',
      'Query, key and value are three matrices, each with its own delta, in'
      ' Pythia too, whose code fuses them.',
    ),
  )


def prefix(m: Model, length: int) -> int:
  """Trained prefix tokens: `length` vectors of width D for every layer."""
  return length * m.num_layers * m.d_model


def table_h1() -> Table:
  """Relaxed Recursive Transformers Table H.1: prefix sizes."""
  rows = [
    Row(
      f'{name}, {length} tokens',
      'prefix',
      paper,
      prefix(model(BACKBONES[name]), length),
    )
    for name, papers in (
      ('Gemma 2B', ('9.4M', '18.9M', '37.7M', '75.5M')),
      ('TinyLlama 1.1B', ('11.5M', '23.1M', '46.1M', '92.3M')),
    )
    for length, paper in zip((256, 512, 1024, 2048), papers, strict=True)
  ]
  return Table(
    'Relaxed Recursive Transformers Table H.1: prefix sizes',
    SOURCE,
    tuple(rows),
    (
      'Prefix tuning is not a scheme of ours: the size is length * N * D of the'
      " backbone's config.",
    ),
  )
