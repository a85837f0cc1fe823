"""The ranges that the numbers of a config must lie in."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from shared_tfm.config.training import Config
from shared_tfm.errors import need

LARGEST = 2**63  # what a program's integers are below
_BELOW = {  # what is listed has a bound of its own
  'model.num_layers': 2**16,
  'model.num_decoder_layers': 2**16,
  'train.loss_scale': 2**40,  # the most it grows to
}
_MAY_BE_ZERO = {
  'model.core_width',
  'model.core_ff',
  'model.residual_visits',
  'model.type_vocab_size',
  'model.num_classes',
  'model.vocab_size',  # of a network that reads pixels
  'model.depth.prelude',
  'model.depth.core',
  'model.depth.coda',
  'model.num_decoder_layers',
  'model.experts.num_ff',
  'model.experts.num_attention',
  'mesh.data',
  'optimizer.warmup_steps',
  'train.eval_batches',
  'train.max_skipped',
  'train.score_every',
  'train.seed',
  'train.visit_gradients_every',
  'adapt.step',
  'prune.start',
  'prune.end',
  'data.easiest',
  'data.max_bytes',
  'data.stride',
  'task.max_decode',
  'task.stride',
}
_MAY_BE_NONE = {  # -1, written for none
  'model.d_ff',
  'model.d_ff_encoder',
  'model.d_ff_decoder',
}
_MAY_BE_NEGATIVE = {
  'task.null_threshold',
  'optimizer.visit_rate_power',
  'optimizer.visit_decay_power',
}
_BELOW_ONE = {
  'model.core_dropout',
  'model.dropout',
  'task.label_smoothing',
  'model.depth.halt_epsilon',
  'data.mask_rate',
  'prune.sparsity',
  'optimizer.b1',
  'optimizer.b2',
}
_AT_MOST_ONE = {
  'data.central_crop',
  'data.negatives',
  'model.rotary_fraction',
  'optimizer.final_fraction',
  'optimizer.decay_fraction',
  'adapt.threshold',
  'adapt.decay',
  'adapt.least',
  'adapt.discount',
}


def check_sizes(config: Config) -> None:
  """Checks what must hold before anything is made of a config's numbers.

  Raises:
    BadInput: a number that no model, key or memory is made for.
  """
  for name, value in leaves(dataclasses.asdict(config)):
    if type(value) is int:
      most = _BELOW.get(name, LARGEST)
      need(value < most, f'{name} must be below {most}, got {value}')
    elif type(value) is float:
      need(math.isfinite(value), f'{name} must be finite, got {value}')


def check(config: Config) -> None:
  """Checks every number that has its derived value.

  Raises:
    BadInput: the field, its bound, and the value.
  """
  for name, value in leaves(dataclasses.asdict(config)):
    if name in _MAY_BE_NONE:
      need(value >= -1, f'{name} must be at least -1, got {value}')
    elif type(value) is int:
      least = 0 if name in _MAY_BE_ZERO else 1
      need(value >= least, f'{name} must be at least {least}, got {value}')
    elif type(value) is float and name not in _MAY_BE_NEGATIVE:
      need(value >= 0, f'{name} must not be negative, got {value}')
    if name in _BELOW_ONE:
      need(value < 1, f'{name} must be below 1, got {value}')
    if name in _AT_MOST_ONE:
      need(value <= 1, f'{name} must be at most 1, got {value}')


def leaves(fields: dict[str, Any], at: str = '') -> Iterator[tuple[str, Any]]:
  """Every field with its dotted name."""
  for name, value in fields.items():
    if isinstance(value, dict):
      yield from leaves(value, f'{at}{name}.')
    else:
      yield at + name, value
