"""What the values of a config must obey, and what is derived from them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from shared_tfm.config import shapes
from shared_tfm.config.fields import CHOICES, Config, Model
from shared_tfm.errors import BadInput, need, unknown
from shared_tfm.sharing import levels, table

_MAY_BE_ZERO = {
  'model.type_vocab_size',
  'optimizer.warmup_steps',
  'train.eval_batches',
  'train.seed',
  'data.max_bytes',
}
_BELOW_ONE = {
  'model.dropout',
  'data.mask_rate',
  'optimizer.b1',
  'optimizer.b2',
}
_AT_MOST_ONE = {'optimizer.final_fraction', 'optimizer.decay_fraction'}


def checked(config: Config) -> Config:
  """The config with its derived sizes, every value checked.

  Raises:
    BadInput: the field, the rule it breaks, and the value.
  """
  for name, value in _leaves(dataclasses.asdict(config)):
    if name in CHOICES and value not in CHOICES[name]:
      raise unknown(name, value, CHOICES[name])
  config = dataclasses.replace(config, model=_derived(config.model))
  if not config.data.seq_len:
    data = dataclasses.replace(config.data, seq_len=config.model.max_len)
    config = dataclasses.replace(config, data=data)
  _check_ranges(config)
  _check_model(config.model)
  _check_training(config)
  return config


def _leaves(fields: dict[str, Any], at: str = '') -> Iterator[tuple[str, Any]]:
  """Every field with its dotted name."""
  for name, value in fields.items():
    if isinstance(value, dict):
      yield from _leaves(value, f'{at}{name}.')
    else:
      yield at + name, value


def _derived(model: Model) -> Model:
  """Fills in the sizes that were left at 0."""
  heads = model.num_heads
  need(heads > 0, f'model.num_heads must be at least 1, got {heads}')
  if not model.head_dim:
    need(
      model.d_model % heads == 0,
      'model.d_model must be divisible by num_heads unless head_dim is'
      f' given, got {model.d_model} and {heads}',
    )
  return dataclasses.replace(
    model,
    num_kv_heads=model.num_kv_heads or heads,
    head_dim=model.head_dim or model.d_model // heads,
    d_ff=model.d_ff or 4 * model.d_model,
    embed_dim=model.embed_dim or model.d_model,
  )


def _check_ranges(config: Config) -> None:
  for name, value in _leaves(dataclasses.asdict(config)):
    if type(value) is int:
      least = 0 if name in _MAY_BE_ZERO else 1
      need(value >= least, f'{name} must be at least {least}, got {value}')
    elif type(value) is float:
      need(value >= 0, f'{name} must not be negative, got {value}')
    if name in _BELOW_ONE:
      need(value < 1, f'{name} must be below 1, got {value}')
    if name in _AT_MOST_ONE:
      need(value <= 1, f'{name} must be at most 1, got {value}')


def _check_model(model: Model) -> None:
  need(
    model.num_heads % model.num_kv_heads == 0,
    'model.num_heads must be divisible by num_kv_heads, got'
    f' {model.num_heads} and {model.num_kv_heads}',
  )
  need(
    model.position != 'rotary' or model.head_dim % 2 == 0,
    f'rotary positions need an even head_dim, got {model.head_dim}',
  )
  need(
    model.num_layers % model.remat_group == 0,
    f'model.remat_group must divide num_layers {model.num_layers}, got'
    f' {model.remat_group}',
  )
  _check_sharing(model)


def _check_sharing(model: Model) -> None:
  sharing = model.sharing
  levels.check(sharing.specs(), model.num_layers, shapes.matrices(model))
  need(
    not (sharing.kv_source and sharing.map_source),
    'kv_source and map_source cannot both be given: a layer that reuses an'
    ' attention map has no keys',
  )
  for name in ('kv_source', 'map_source'):
    spec = getattr(sharing, name)
    if spec:
      try:
        table.owners(spec, model.num_layers)
      except BadInput as error:
        raise BadInput(f'model.sharing.{name}: {error}') from None


def _check_training(config: Config) -> None:
  train, data = config.train, config.data
  need(
    train.batch_size % train.accumulate == 0,
    f'train.accumulate must divide batch_size {train.batch_size}, got'
    f' {train.accumulate}',
  )
  need(
    data.seq_len <= config.model.max_len,
    f'data.seq_len must be at most model.max_len {config.model.max_len},'
    f' got {data.seq_len}',
  )
  need(
    config.optimizer.warmup_steps <= train.num_steps,
    f'optimizer.warmup_steps must be at most train.num_steps'
    f' {train.num_steps}, got {config.optimizer.warmup_steps}',
  )
