"""Presets become fields of a config."""

import dataclasses
from typing import Any

from shared_tfm.config.training import Config
from shared_tfm.sharing import presets


def lay(config: Config) -> Config:
  """Lays the fields of a config's preset under its own.

  A field that was changed keeps its value; what still has its default takes the
  preset's. The config that comes out names no preset: it is what it says.

  Raises:
    BadInput: the preset is not one, or does not fit the number of layers.
  """
  if not config.preset:
    return config
  given = presets.fields(config.preset, config.model.num_layers)
  default, laid = Config(), dataclasses.replace(config, preset='')
  for name, value in given.items():
    path = name.split('.')
    if _get(config, path) == _get(default, path):
      laid = _set(laid, path, value)
  return laid


def put(config: Config, text: str) -> Config:
  """The config with every field of a preset, whatever it said before."""
  for name, value in presets.fields(text, config.model.num_layers).items():
    config = _set(config, name.split('.'), value)
  return config


def _get(fields: Any, path: list[str]) -> Any:
  for name in path:
    fields = getattr(fields, name)
  return fields


def _set(fields: Any, path: list[str], value: Any) -> Any:
  name, rest = path[0], path[1:]
  inner = _set(getattr(fields, name), rest, value) if rest else value
  return dataclasses.replace(fields, **{name: inner})
