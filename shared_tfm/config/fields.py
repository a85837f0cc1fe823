"""The fields of a configuration, their defaults, and what they may hold.

Sizes that are 0 are derived; `cross` fills them in.
"""

import dataclasses
from typing import Any

CHOICES = {
  'model.family': ('decoder', 'encoder'),
  'model.activation': ('gelu', 'gelu_tanh', 'relu', 'swiglu', 'geglu'),
  'model.norm': ('layernorm', 'rmsnorm', 'batchnorm'),
  'model.norm_position': ('pre', 'post', 'sandwich'),
  'model.position': ('learned', 'sinusoidal', 'rotary', 'none'),
  'model.dtype': ('float32', 'bfloat16'),
  'model.residual_scale': ('none', 'depth'),
  'model.shared_gradient': ('sum', 'mean', 'owner'),
  'model.remat': ('none', 'full', 'dots'),
  'optimizer.name': ('adamw', 'adafactor', 'lion', 'lamb', 'muon'),
  'optimizer.schedule': (
    'constant',
    'linear',
    'exponential',
    'cosine',
    'rsqrt',
    'wsd',
  ),
  'data.tokenizer': ('bytes', 'bpe'),
}
GATED = ('swiglu', 'geglu')  # activations with a third projection


def _part(path: str) -> Any:
  """A sharing spec for `path`; empty, it follows its nearest ancestor."""
  return dataclasses.field(default='', metadata={'path': path})


@dataclasses.dataclass(frozen=True)
class Sharing:
  """A spec for the layer and, where they differ, its components and parts.

  `sharing/levels.py` has the grammar. `kv_source` and `map_source` are tables
  of activations: of the layers with one row, the first makes what all read.
  A ConfigDict key cannot hold the dot of 'attention.key', so fields have '_'.
  """

  layer: str = dataclasses.field(default='none', metadata={'path': 'layer'})
  attention: str = _part('attention')
  attention_query: str = _part('attention.query')
  attention_key: str = _part('attention.key')
  attention_value: str = _part('attention.value')
  attention_out: str = _part('attention.out')
  feed_forward: str = _part('feed_forward')
  feed_forward_up: str = _part('feed_forward.up')
  feed_forward_gate: str = _part('feed_forward.gate')  # swiglu and geglu
  feed_forward_down: str = _part('feed_forward.down')
  norm: str = _part('norm')
  norm_attention: str = _part('norm.attention')
  norm_attention_out: str = _part('norm.attention_out')  # sandwich norms
  norm_feed_forward: str = _part('norm.feed_forward')
  norm_feed_forward_out: str = _part('norm.feed_forward_out')

  kv_source: str = _part('kv_source')  # layers of one row read one K and V
  map_source: str = _part('map_source')  # ... and one attention map

  def specs(self) -> dict[str, str]:
    """The specs of weights that were given, by dotted path; 'layer' first."""
    given = {p: getattr(self, field) for p, field in SHARING_FIELDS.items()}
    return {
      path: spec
      for path, spec in given.items()
      if spec and path not in ('kv_source', 'map_source')
    }


SHARING_FIELDS = {
  f.metadata['path']: f.name for f in dataclasses.fields(Sharing)
}


@dataclasses.dataclass(frozen=True)
class Model:
  """The network. Letters as in design: N, D, H, G, K, F, V, E, L."""

  family: str = 'decoder'
  num_layers: int = 6  # N: the number of visits, however few rows are stored
  d_model: int = 128  # D
  num_heads: int = 4  # H
  num_kv_heads: int = 0  # G; 0: one for each head
  head_dim: int = 0  # K; 0: d_model / num_heads
  d_ff: int = 0  # F; 0: 4 * d_model
  vocab_size: int = 258  # V; 258 is what the tokenizer 'bytes' needs
  embed_dim: int = 0  # E; 0: d_model, else tables are factorised (ALBERT)
  max_len: int = 128  # L
  type_vocab_size: int = 0  # segment types (BERT); 0: none
  activation: str = 'gelu'
  norm: str = 'layernorm'
  norm_eps: float = 1e-5
  norm_position: str = 'pre'
  embed_norm: bool = False  # a norm after the sum of embeddings (BERT)
  position: str = 'learned'
  rope_theta: float = 10000.0
  use_bias: bool = True
  tie_embeddings: bool = True
  dropout: float = 0.0
  dtype: str = 'float32'  # of the computation; parameters stay float32
  residual_scale: str = 'none'  # depth: sublayers add y / sqrt(2 N)
  shared_gradient: str = 'sum'  # of a row's visits: sum, mean, owner's only
  remat: str = 'none'  # what backward recomputes; see model/stack.py
  remat_group: int = 1  # keep only every k-th layer input, recompute the rest
  sharing: Sharing = Sharing()


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """The update rule and its learning-rate schedule."""

  name: str = 'adamw'
  learning_rate: float = 1e-3  # the peak
  schedule: str = 'cosine'
  warmup_steps: int = 0  # linear, from 0
  final_fraction: float = 0.1  # of the peak, where the schedule ends
  decay_fraction: float = 0.2  # wsd: the part of the run in which it decays
  b1: float = 0.9
  b2: float = 0.98
  eps: float = 1e-8
  weight_decay: float = 0.01
  decay_mask: str = 'kernel'  # leaf names that decay; '' for every one
  clip_norm: float = 1.0  # 0: no clipping


@dataclasses.dataclass(frozen=True)
class Train:
  """The loop. Steps are optimizer updates."""

  num_steps: int = 1000
  batch_size: int = 16  # sequences per update
  accumulate: int = 1  # micro-batches an update is accumulated from
  eval_every: int = 100
  eval_batches: int = 16  # 0: the whole validation split
  log_every: int = 10
  checkpoint_every: int = 100
  keep: int = 2  # latest checkpoints kept, beside the best
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Data:
  """Where text comes from and how it becomes batches."""

  source: str = 'local'  # local | text | tfds:NAME | a generator's name
  path: str = ''  # text: a file or folder; tfds: its data_dir
  text_field: str = 'text'  # tfds: the feature that holds the text
  tokenizer: str = 'bytes'
  seq_len: int = 0  # 0: model.max_len
  mask_rate: float = 0.15  # encoder: the share of tokens to be predicted
  max_bytes: int = 0  # of text for training, 1/10 of it to validate; 0: all
  difficulty: int = 8  # generators: digits, symbols, hops or operands


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything one run needs."""

  model: Model = Model()
  optimizer: Optimizer = Optimizer()
  train: Train = Train()
  data: Data = Data()
