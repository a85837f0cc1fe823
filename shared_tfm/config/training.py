"""The fields of a run: how, on what and for what a network is trained."""

import dataclasses

from shared_tfm.config.fields import Model


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
  decay_mask: str = 'kernel'  # names of tensors that decay; '' for every one
  clip_norm: float = 1.0  # 0: no clipping
  visit_rate_power: float = 0.0  # a row's rate is times its visits to this
  visit_decay_power: float = 0.0  # ... and so is its weight decay


@dataclasses.dataclass(frozen=True)
class Train:
  """The loop. Steps are optimizer updates."""

  num_steps: int = 1000
  batch_size: int = 16  # sequences per update
  accumulate: int = 1  # micro-batches an update is accumulated from
  eval_every: int = 100
  eval_batches: int = 16  # 0: the whole validation split
  score_every: int = 0  # what needs decoding, such as BLEU; 0: at the end
  log_every: int = 10
  checkpoint_every: int = 100
  keep: int = 2  # latest checkpoints kept, beside the best
  max_skipped: int = 100  # micro-batches dropped in a row that end it; 0: none
  loss_scale: int = 2**15  # float16: the first; see train/loss_scale.py
  loss_scale_every: int = 2000  # ... good micro-batches until it is doubled
  visit_gradients_every: int = 0  # log cosines between visits' gradients
  memory_gb: float = 0.0  # GiB of a device for remat=auto; 0: by the device
  seed: int = 0
  init_from: str = ''  # a run whose weights it starts from; train/donor.py


@dataclasses.dataclass(frozen=True)
class Mesh:
  """How many ways work is cut; the product is the number of devices.

  See train/mesh.py. All 1, a run takes one device, however many there are.
  """

  data: int = 1  # copies of the network, each with its share of a batch; 0:
  # as many as the other axes leave devices for
  fsdp: int = 1  # so too, and stored weights and optimizer state are cut
  tensor: int = 1  # heads, neurons and vocabulary are cut
  sequence: int = 1  # positions are cut
  step: str = 'auto'  # jit: by the compiler; shard_map: one gather a weight


@dataclasses.dataclass(frozen=True)
class Adapt:
  """Tables that change during training; they start as the specs say.

  Every component is adapted by itself. See train/adapt.py.
  """

  method: str = 'none'
  only: str = ''  # components, with commas between; empty: all
  step: int = 0  # of the first change or check; 0: `every`
  every: int = 100  # steps from one to the next
  threshold: float = 0.5  # unshare_when: of gradient correlation
  patience: int = 3  # unshare_when: checks in a row below it
  rows: int = 1  # merge: how many are left
  decay: float = 0.95  # q_network: of epsilon, from 1, at every round
  least: float = 0.01  # q_network: where epsilon stays
  discount: float = 0.99  # q_network: of later rewards
  width: int = 128  # q_network: of its hidden layer
  learning_rate: float = 1e-3  # q_network: its own
  replay: int = 256  # q_network: decisions remembered
  batch_size: int = 32  # q_network: of them in an update


@dataclasses.dataclass(frozen=True)
class Prune:
  """Weights that are masked while a model trains; see train/prune.py."""

  method: str = 'none'  # what a weight is scored by
  sparsity: float = 0.0  # what is masked in the end; 0: by `pattern`, or half
  schedule: str = 'once'  # at `start`; cubic: until `end`; adaptive: by losses
  start: int = 0  # updates before the first masks
  end: int = 0  # ... and before the last; 0: three quarters of the run
  every: int = 10  # updates from masks to masks
  scope: str = 'global'  # all are ranked together; tensor: each row's tensor
  pattern: str = ''  # N:M, 2:4 say: of M inputs in a row N are kept
  only: str = ''  # components or parts, with commas between; empty: all
  tolerance: float = 0.01  # adaptive: by which a loss may stay larger


@dataclasses.dataclass(frozen=True)
class Data:
  """Where text comes from and how it becomes batches."""

  # local | text | parallel | aeslc | squad | glue:TASK | trec | mnist |
  # tfds:NAME | a generator's name
  source: str = 'local'
  path: str = ''  # text: a file or folder; tfds: its data_dir
  parts: str = '90/10'  # % for training, validation and test; see corpus.py
  text_field: str = 'text'  # tfds: the feature that holds the text
  source_field: str = ''  # pairs: the feature, or file ending, that is read
  target_field: str = ''  # ... and of what is to be written
  tokenizer: str = 'bytes'
  seq_len: int = 0  # 0: model.max_len
  source_len: int = 0  # of a source, where seq_len is the target's; 0: seq_len
  buckets: str = ''  # pairs: lengths that batches are padded to, as '16,32'
  question_len: int = 64  # question_answering: tokens read of a question
  stride: int = 0  # ... from window to window; 0: half of what is left in one
  negatives: float = 1.0  # ... share of windows without the answer trained on
  augment: str = 'none'  # images: how those to train on are changed
  central_crop: float = 1.0  # ... share of the shorter side that is scored
  normalise: str = 'half'  # ... 'channels': by training images' moments
  mask_rate: float = 0.15  # encoder: the share of tokens to be predicted
  mask_ngram: int = 1  # ... the longest run that is hidden as one (ALBERT: 3)
  whole_word: bool = False  # ... runs are of words, no word hidden in part
  max_bytes: int = 0  # of text for training, 1/10 of it to validate; 0: all
  difficulty: int = 8  # generators: digits, symbols, hops or operands
  easiest: int = 0  # ... the least that is drawn; 0: all are of `difficulty`
  threads: int = 2  # that make batches; encoded pictures want one for each core

  @property
  def shares(self) -> tuple[int, ...]:
    """`parts` as numbers."""
    return tuple(map(int, self.parts.split('/')))

  @property
  def lengths(self) -> tuple[int, ...]:
    """`buckets` as numbers; the longest text's is always the last."""
    longest = max(self.source_len, self.seq_len)
    given = [int(n) for n in self.buckets.split(',') if n]
    return (*(n for n in given if n != longest), longest)


@dataclasses.dataclass(frozen=True)
class Task:
  """What is learned; see tasks/."""

  name: str = ''  # '': language_model, masked_lm or answers, by family and data
  label_smoothing: float = 0.0
  sentence_order: bool = False  # masked_lm: of two segments, too (ALBERT)
  beam_size: int = 4  # pairs: hypotheses of beam search; 1: greedy
  length_penalty: float = 0.6  # ... its alpha; see infer/beam.py
  max_decode: int = 0  # ... the most tokens it writes; 0: data.seq_len
  max_answer: int = 30  # question_answering: the most tokens of an answer
  n_best: int = 20  # ... answers kept of each question
  null_threshold: float = 0.0  # ... how much better "no answer" has to score
  stride: int = 0  # language_model: of the windows it is scored by; 0: none


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything one run needs.

  `preset` names what a published system shares; see sharing/presets/. Its
  fields are laid under the config's own, and it is '' from then on.
  """

  preset: str = ''
  model: Model = dataclasses.field(default_factory=Model)
  optimizer: Optimizer = Optimizer()
  train: Train = Train()
  mesh: Mesh = Mesh()
  adapt: Adapt = Adapt()
  prune: Prune = Prune()
  data: Data = Data()
  task: Task = Task()
