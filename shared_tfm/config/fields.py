"""The fields of a network, and their defaults; sizes of 0 are derived.

`training.py` has those of a run; `choices.py` says what names are known.
"""

import dataclasses
from typing import Any

from shared_tfm.config.precision import PRECISIONS, Precision
from shared_tfm.sharing import rounding
from shared_tfm.sharing.rounding import Rounding


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
  attention_router: str = _part('attention.router')  # experts, style sut
  attention_value_router: str = _part('attention.value_router')  # ... moeut
  attention_out_router: str = _part('attention.out_router')
  cross_attention: str = _part('cross_attention')  # of a decoder to a source
  cross_attention_query: str = _part('cross_attention.query')
  cross_attention_key: str = _part('cross_attention.key')
  cross_attention_value: str = _part('cross_attention.value')
  cross_attention_out: str = _part('cross_attention.out')
  feed_forward: str = _part('feed_forward')
  feed_forward_up: str = _part('feed_forward.up')
  feed_forward_gate: str = _part('feed_forward.gate')  # swiglu and geglu
  feed_forward_down: str = _part('feed_forward.down')
  feed_forward_router: str = _part('feed_forward.router')  # experts
  norm: str = _part('norm')
  norm_attention: str = _part('norm.attention')
  norm_attention_out: str = _part('norm.attention_out')  # sandwich norms
  norm_cross_attention: str = _part('norm.cross_attention')
  norm_cross_attention_out: str = _part('norm.cross_attention_out')
  position: str = _part('position')  # learned tables at every layer
  step: str = _part('step')  # learned step signals
  norm_feed_forward: str = _part('norm.feed_forward')
  norm_feed_forward_out: str = _part('norm.feed_forward_out')

  kv_source: str = _part('kv_source')  # layers of one row read one K and V
  map_source: str = _part('map_source')  # ... and one attention map

  # Components, with commas between them, whose table runs over the layers of
  # the encoder and then over those of the decoder, as one list.
  across: str = _part('across')

  def specs(self) -> dict[str, str]:
    """The specs of weights that were given, by dotted path; 'layer' first."""
    given = {p: getattr(self, field) for p, field in SHARING_FIELDS.items()}
    return {
      path: spec
      for path, spec in given.items()
      if spec and path not in ('kv_source', 'map_source', 'across')
    }


SHARING_FIELDS = {
  f.metadata['path']: f.name for f in dataclasses.fields(Sharing)
}


@dataclasses.dataclass(frozen=True)
class Experts:
  """Mixtures of experts in place of dense maps; see layers/experts.py.

  No expert has biases, whatever `use_bias` says of the rest. In style 'sut' an
  expert has `num_kv_heads` query heads, and a token attends with `num_heads` =
  `attention_top_k` * `num_kv_heads` of them.
  """

  style: str = 'moeut'  # sigmoid gates and SwitchHead; sut: softmax, MoMHA
  num_ff: int = 0  # experts of the feed-forward network; 0: it is dense
  ff_width: int = 128  # F of each
  top_k: int = 8  # of them that a token uses
  num_attention: int = 0  # per head, in style sut of the layer; 0: dense
  attention_top_k: int = 2
  ff_balance: float = 0.01  # of the loss that keeps experts in use
  attention_balance: float = 0.001


@dataclasses.dataclass(frozen=True)
class Depth:
  """How often the core of the stack is run, and for which tokens.

  The core is what loops: C layers, R times, between a prelude of P layers and a
  coda of K. It is read off the layer's spec (all, cycle, middle_cycle,
  recurrent) unless `core` says otherwise. See model/depth.py and routing.py.
  """

  rule: str = 'fixed'
  prelude: int = 0  # P, where core is given
  core: int = 0  # C; 0: read off sharing.layer
  coda: int = 0  # K, where core is given
  injection: str = 'none'  # of the core's first input into every loop
  start: str = 'input'  # what the first loop starts from
  start_std: float = 1.0  # start normal
  norm: bool = False  # a norm after every loop
  attention: str = 'loop'  # to the loop's own keys, or all loops' so far
  act_sum: str = 'basic'  # T2T's two accumulations
  halt_bias: float = 1.0  # where the halting units of HALTING start
  halt_epsilon: float = 0.01  # act, stick_breaking: to halt at 1 - epsilon
  halt_weight: float = 0.01  # act, stick_breaking: of the loss of pondering
  prior: str = 'geometric'  # ponder: what halting is drawn to
  prior_rate: float = 0.2  # ponder: of the geometric prior
  prior_weight: float = 0.01  # ponder: of the divergence from the prior
  mean_loops: float = 32.0  # random: of the loops of a training step
  sigma: float = 0.5  # random: spread of their rate's logarithm
  backprop_loops: int = 8  # random, two_level: last loops that are trained
  exit_weight: float = 0.1  # exits: of the loss after every loop but the last
  criterion: str = 'none'  # when a token leaves the loop at evaluation
  threshold: float = 0.9  # of the criterion
  router_alpha: float = 0.1  # expert_choice: times the sigmoid gate
  router_loss: float = 0.001  # expert_choice: of predicting the selection
  router_function: str = 'softmax'  # token_choice
  balance: str = 'loss'  # token_choice: how loops are kept in use
  balance_weight: float = 0.1  # of the loss
  balance_rate: float = 0.001  # by which the bias is moved at every step
  z_loss: float = 0.0  # routing: of squared log-partition functions
  inner_loops: int = 2  # two_level: low-level runs for each high-level one
  supervision: int = 1  # two_level: segments, each scored, detached in between


@dataclasses.dataclass(frozen=True)
class Quantise:
  """Fewer bits for what layers store, read and keep; see sharing/rounding.py.

  Tables of embeddings, norms, routers, and whatever stands outside the layers
  are never rounded; nor are inputs of experts.
  """

  weights: str = 'none'  # int8, int4; int4:64 has a scale for every 64 inputs
  store: str = 'float32'  # integers: the parameter tree holds these alone
  activations: str = 'none'  # int8: inputs of linear maps; layers/ranges.py
  ranges: str = 'owner'  # one for all visits of a row, or visit: of their own
  percentile: float = 100.0  # of a batch's values that a range covers
  cache: str = 'none'  # int8: keys and values of earlier tokens

  @property
  def rounding(self) -> Rounding | None:
    """What `weights` says."""
    return rounding.parse(self.weights)

  @property
  def integers(self) -> bool:
    """Whether the parameter tree holds whole numbers, which nothing trains."""
    return self.store == 'integers'


@dataclasses.dataclass(frozen=True)
class Model:
  """The network. Letters as in layers/: N, D, H, G, K, F, V, E, L."""

  family: str = 'decoder'
  num_layers: int = 6  # N: the number of visits, however few rows are stored
  num_decoder_layers: int = 0  # of an encoder_decoder; 0: num_layers
  d_model: int = 128  # D
  num_heads: int = 4  # H
  num_kv_heads: int = 0  # G; 0: one for each head
  head_dim: int = 0  # K; 0: d_model / num_heads
  d_ff: int = 0  # F; 0: 4 * d_model; -1: layers without a feed-forward network
  d_ff_encoder: int = 0  # of an encoder_decoder's encoder; 0: d_ff; -1: none
  d_ff_decoder: int = 0  # ... and of its decoder
  vocab_size: int = 258  # V; 258 is what the tokenizer 'bytes' needs
  embed_dim: int = 0  # E; 0: d_model, else tables are factorised (ALBERT)
  embed_project: str = 'linear'  # from E to D; safe: by a small layer
  core_width: int = 0  # of all layers but the first and the last; 0: d_model
  core_ff: int = 0  # their feed-forward width; 0: 4 * core_width
  core_dropout: float = 0.05  # where the width changes
  max_len: int = 128  # L
  type_vocab_size: int = 0  # segment types (BERT); 0: none
  head: str = ''  # what is scored; '': what the task needs, or tokens
  num_classes: int = 0  # head classes; 1: a number is told
  pool: str = 'first'  # the position that classes are told from, or their mean
  pooler: bool = True  # a linear map and tanh before the classes (BERT)
  image_size: int = 32  # vision: pixels on each side
  patch_size: int = 4  # ... of a patch, which is a token
  channels: int = 3
  activation: str = 'gelu'
  norm: str = 'layernorm'
  norm_eps: float = 1e-5
  norm_position: str = 'pre'
  embed_scale: str = 'none'  # width: token vectors are read times sqrt(E)
  embed_norm: bool = False  # a norm after the sum of embeddings (BERT)
  position: str = 'learned'
  positions_at: str = 'input'  # every_layer: added before each layer, too
  step_signal: str = 'none'  # what tells a layer which visit it is
  rope_theta: float = 10000.0
  rotary_fraction: float = 1.0  # of each head's width that is rotated
  relative_buckets: int = 32  # of distances that position relative tells apart
  relative_distance: int = 128  # from which on all distances are alike
  use_bias: bool = True
  tie_embeddings: bool = True
  head_bias: bool = False  # of the logits; an encoder's head always has one
  tie_source: bool = True  # source and target have one token table
  dropout: float = 0.0
  dtype: str = 'float32'  # a policy of config/precision.py
  residual_scale: str = 'none'  # depth: sublayers add y / sqrt(2 N)
  residual_visits: int = 0  # N there; 0: as many visits as there are
  shared_gradient: str = 'sum'  # of a row's visits: sum, mean, owner's only
  tables: str = 'fixed'  # state: in the train state, as `adapt` needs it
  masked: str = ''  # parts with masks in the train state, as `prune` needs it
  attention_kernel: str = 'auto'  # what attends; see layers/kernels.py
  remat: str = 'auto'  # what backward recomputes; see model/recompute.py
  remat_group: int = 1  # keep only every k-th layer input, recompute the rest
  logits_mb: int = 256  # MiB held at once by a loss; more is made in pieces
  sharing: Sharing = Sharing()
  sharing_decoder: Sharing = Sharing(layer='')  # where it differs from sharing
  depth: Depth = Depth()
  experts: Experts = Experts()
  quantise: Quantise = Quantise()

  @property
  def precision(self) -> Precision:
    """What `dtype` says of every kind of number."""
    return PRECISIONS[self.dtype]

  @property
  def cache_dtype(self) -> str:
    """Of keys and values that are kept of earlier tokens."""
    rounded = self.quantise.cache != 'none'
    return self.quantise.cache if rounded else self.precision.compute

  @property
  def causal(self) -> bool:
    """Whether a position sees only itself and what came before."""
    return self.family in ('decoder', 'encoder_decoder')

  @property
  def patch_values(self) -> int:
    """How many numbers a patch of an image has."""
    return self.patch_size**2 * self.channels

  @property
  def sublayers(self) -> tuple[str, ...]:
    """What a layer is made of, in order: each adds to the residual stream."""
    cross = ('cross_attention',) * (self.family == 'encoder_decoder')
    feed_forward = ('feed_forward',) * (self.d_ff > 0)
    return ('attention', *cross, *feed_forward)

  @property
  def depth_applied(self) -> int:
    """Visits of the whole stack, of which this may be a part."""
    return self.num_layers

  @property
  def scaled_visits(self) -> int:
    """N of `residual_scale` depth; 0 where nothing is scaled."""
    scaled = self.residual_scale == 'depth'
    return (self.residual_visits or self.depth_applied) if scaled else 0

  @property
  def first_visit(self) -> int:
    """The number of the first visit in the whole stack."""
    return 0

  @property
  def memory_width(self) -> int:
    """D of what cross-attention reads."""
    return self.d_model
