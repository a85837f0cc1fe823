"""The one door from a ConfigDict into the frozen Config."""

import dataclasses
import functools
import math
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import ml_collections

from shared_tfm.config import checks, loops, preset, ranges, rerun
from shared_tfm.config.choices import CHOICES
from shared_tfm.config.fields import SHARING_FIELDS, Sharing
from shared_tfm.config.ranges import LARGEST
from shared_tfm.config.training import Config
from shared_tfm.errors import BadInput, need, unknown
from shared_tfm.sharing import levels, table

Fields: TypeAlias = Mapping[str, Any] | ml_collections.ConfigDict
PRESET = '@'  # stands before a preset where a sharing scheme may stand


def default() -> ml_collections.ConfigDict:
  """Every field with its default, locked; the base of any config."""
  config = ml_collections.ConfigDict(dataclasses.asdict(Config()))
  return config.lock()


def complete(partial: Fields) -> ml_collections.ConfigDict:
  """Lays the fields a user gave over the defaults.

  Args:
    partial: nested fields, as a ConfigDict or a dict. None means not given.

  Returns:
    A locked ConfigDict with every field.

  Raises:
    BadInput: a field that does not exist or has another type.
  """
  need(
    hasattr(partial, 'items'), f'a config is a group of fields, got {partial!r}'
  )
  config = default()
  _overlay(config, partial, '')
  return config


def _overlay(
  config: ml_collections.ConfigDict, given: Fields, prefix: str
) -> None:
  for key, value in given.items():
    name = prefix + key
    if key not in config:
      raise unknown('config field', name, [prefix + k for k in config])
    inside = isinstance(config[key], ml_collections.ConfigDict)
    if inside and hasattr(value, 'items'):
      _overlay(config[key], value, f'{name}.')
    elif inside:
      raise BadInput(f'{name} is a group of fields, got {value!r}')
    elif value is not None:
      config[key] = _typed(name, value, type(config[key]))


def _typed(name: str, value: Any, kind: type) -> Any:
  """`value` as `kind`, where that loses nothing."""
  if kind is float and type(value) is int and abs(value) < LARGEST:
    return float(value)
  need(
    type(value) is kind,
    f'{name} is a {kind.__name__}, got {value!r}',
  )
  return value


def cross(config: Fields | Config, own: Collection[str] = ()) -> Config:
  """Turns a ConfigDict into the frozen Config, checking every value.

  Args:
    config: what `complete` accepts; a Config is returned as it is.
    own: fields, with dots, that were given though they may have their default,
      so that no preset changes them. Of a config that has not all fields, those
      it has are known to be; of another, those that have not their default.

  Raises:
    BadInput: a field that is unknown or mistyped, or a value that breaks a
      rule. The message names the field, the rule and the value.
  """
  if isinstance(config, Config):
    return config
  built = _build(Config, complete(config))
  ranges.check_sizes(built)
  return checks.checked(preset.lay(built, {*own, *given(config)}))


def given(config: Fields) -> set[str]:
  """The fields that a user gave, with dots; see `cross`."""
  found, every = _leaves(config), _defaults()
  if found.keys() < every.keys():
    return {name for name, value in found.items() if value is not None}
  return {name for name, value in found.items() if value != every[name]}


@functools.cache
def _defaults() -> Mapping[str, Any]:
  return _leaves(dataclasses.asdict(Config()))


def _leaves(fields: Fields, prefix: str = '') -> dict[str, Any]:
  leaves: dict[str, Any] = {}
  for key, value in fields.items():
    name = prefix + key
    if hasattr(value, 'items'):
      leaves |= _leaves(value, f'{name}.')
    else:
      leaves[name] = value
  return leaves


def scheme_name(scheme: str) -> str:
  """A sharing scheme or preset as it is known in a comparison.

  Raises:
    BadInput: neither; whether it fits a config is not asked here.
  """
  if scheme.strip().startswith(PRESET):
    return ''.join(scheme.split())
  return ' '.join(
    spec if path == table.ROOT else f'{path}={spec}'
    for path, spec in levels.assignments(scheme).items()
  )


def _build(kind: type, fields: Fields) -> Any:
  hints = typing.get_type_hints(kind)
  return kind(
    **{
      name: _build(hints[name], value)
      if dataclasses.is_dataclass(hints[name])
      else value
      for name, value in fields.items()
    }
  )


def with_loops(config: Config, times: int) -> Config:
  """The same stored weights with the core of the stack run `times` times.

  Raises:
    BadInput: see `rerun.rerun`.
  """
  model = rerun.rerun(config.model, times)
  return checks.checked(dataclasses.replace(config, model=model))


def with_exit(config: Config, text: str) -> Config:
  """The same weights with another rule for when a token leaves the loop.

  Args:
    config: of a model whose core loops.
    text: the criterion and its threshold: 'kl:0.01'; see model/leaving.py.

  Raises:
    BadInput: it says nothing of the kind, or the model's rule of depth has no
      such criterion.
  """
  criterion, _, number = text.partition(':')
  known = CHOICES['model.depth.criterion']
  try:
    threshold = float(number)
  except ValueError:
    threshold = math.nan
  need(
    criterion in known and math.isfinite(threshold),
    f'--exit needs one of {", ".join(known)}, a colon and a number, got'
    f' {text!r}',
  )
  depth = dataclasses.replace(
    config.model.depth, criterion=criterion, threshold=threshold
  )
  model = dataclasses.replace(config.model, depth=depth)
  need(
    criterion == 'none' or loops.loops(model).times > 1,
    f'--exit needs layers that loop, got {config.model.sharing.layer!r}',
  )
  return checks.checked(dataclasses.replace(config, model=model))


def with_fields(config: Config, fields: Mapping[str, Any]) -> Config:
  """The same config with other values of some fields, by dotted name.

  Raises:
    BadInput: a value breaks a rule. What was derived from others stays.
  """
  return checks.checked(replaced(config, fields))


def replaced(config: Config, fields: Mapping[str, Any]) -> Config:
  """`with_fields` without a check: for what only counts."""
  for name, value in fields.items():
    config = preset.with_field(config, name.split('.'), value)
  return config


def sharing_of(scheme: str) -> dict[str, dict[str, str]]:
  """The fields of `model` that a scheme fills in, and what it says in them.

  A preset, which has other fields besides, says nothing yet.

  Raises:
    BadInput: a component that does not exist.
  """
  both: dict[str, str] = {}
  decoder = {'layer': ''}
  if not scheme.startswith(PRESET):
    for name, spec in levels.assignments(scheme).items():
      path = name.removeprefix('decoder.')
      if path not in SHARING_FIELDS:
        raise unknown('component', path, SHARING_FIELDS)
      fields = both if path == name else decoder
      fields[SHARING_FIELDS[path]] = spec
  return {'sharing': both, 'sharing_decoder': decoder}


def with_sharing(config: Config, scheme: str) -> Config:
  """The same config under another sharing scheme.

  Args:
    config: any config; its own sharing is dropped.
    scheme: see `levels.assignments`, such as 'cycle:3' or 'attention=all'; or a
      preset, '@albert:4'. Of an encoder-decoder it is for both sides; what
      begins with 'decoder.' is for the decoder: 'all decoder.attention=none'.

  Raises:
    BadInput: a component or preset that does not exist, or one that does not
      fit.
  """
  given = sharing_of(scheme)
  model = dataclasses.replace(
    config.model,
    sharing=Sharing(**given['sharing']),
    sharing_decoder=Sharing(**given['sharing_decoder']),
  )
  config = dataclasses.replace(config, model=model)
  if scheme.startswith(PRESET):
    config = preset.put(config, scheme.removeprefix(PRESET))
  return checks.checked(config)
