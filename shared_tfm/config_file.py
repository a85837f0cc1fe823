"""Reading a config file and the command line's overrides of it."""

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from shared_tfm import config as configs
from shared_tfm.errors import BadInput, need, unknown

OVERRIDE = re.compile(r'--(?:no)?config\.([\w.]+)(.*)', re.DOTALL)


def load(path: str, overrides: Sequence[str]) -> configs.Config:
  """Loads a config.

  Args:
    path: a Python file with `get_config()`, which returns a ConfigDict with the
      fields that are not to keep their default; 'file.py:text' calls
      `get_config(text)`.
    overrides: '--config.model.num_layers=12' and the like.

  Raises:
    BadInput: the file is missing or no config, or a field or value is wrong.
  """
  given = read(path)
  config, named = override(configs.complete(given), overrides)
  return configs.cross(config, {*configs.given(given), *named})


def changed(config: configs.Config, overrides: Sequence[str]) -> configs.Config:
  """A config with some of its fields given anew; see `load`."""
  fields = configs.complete(dataclasses.asdict(config))
  made, named = override(fields, overrides)
  return configs.cross(made, named)


def read(path: str) -> ml_collections.ConfigDict:
  """What the `get_config()` of a file returns; see `load`.

  Raises:
    BadInput: the file is missing or no config.
  """
  file, _, argument = path.partition(':')
  need(Path(file).is_file(), f'there is no config file {file}')
  spec = importlib.util.spec_from_file_location('config', file)
  need(
    spec is not None and spec.loader is not None,
    f'the config file {file} is no Python file',
  )
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  need(
    hasattr(module, 'get_config'),
    f'the config file {file} has no get_config()',
  )
  config = module.get_config(*([argument] if argument else []))
  need(
    hasattr(config, 'items'),
    f'get_config() in {file} must return a ConfigDict, got {config!r}',
  )
  return config


def override(
  config: ml_collections.ConfigDict, overrides: Sequence[str]
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """Applies overrides; `config_flags` reads the values, by the field's type.

  Args:
    config: with every field, as `complete` returns it.
    overrides: see `load`.

  Returns:
    The config, and the fields that were named.

  Raises:
    BadInput: a field or value is wrong.
  """
  argv, named = ['shared_tfm'], []
  for word in overrides:
    match = OVERRIDE.fullmatch(word)
    if match:
      field = _field(config, match[1])
      named.append(field)
      word = word.replace(match[1], field, 1)
    argv.append(word)
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict(
    'config', config, flag_values=values, sys_argv=argv
  )
  try:
    left = values(argv)[1:]
  except (flags.Error, TypeError, ValueError) as error:
    raise BadInput(str(error).split('\n')[0]) from None
  need(not left, f'what is {" ".join(left)!r}? A flag starts with --')
  return values['config'].value, named


def _field(config: ml_collections.ConfigDict, path: str) -> str:
  """Checks that `path` leads to a field, and returns it as fields are named.

  A part of a component may be written with its dot: sharing.attention.key.
  """
  path = re.sub(r'(model\.sharing\.\w+)\.', r'\1_', path)
  value, known, at = config, list(config), ''
  for name in path.split('.'):
    need(bool(known), f'config.{at[:-1]} is no group of fields; {path} is none')
    if name not in known:
      raise unknown('config field', at + name, [at + key for key in known])
    value, at = value[name], f'{at}{name}.'
    group = isinstance(value, ml_collections.ConfigDict)
    known = list(value) if group else []
  need(not known, f'config.{path} is a group of fields: {", ".join(known)}')
  return path
