"""Presets become fields of a config."""

import dataclasses
from collections.abc import Collection
from typing import Any

from shared_tfm.config.training import Config
from shared_tfm.sharing import presets


def lay(config: Config, own: Collection[str]) -> Config:
  """Lays the fields of a config's preset under its own.

  The config that comes out names no preset: it is what it says.

  Args:
    config: names the preset.
    own: the fields that it was given, with dots: they keep their values.

  Raises:
    BadInput: the preset is not one, or does not fit the number of layers.
  """
  if not config.preset:
    return config
  given = presets.fields(config.preset, config.model.num_layers)
  laid = dataclasses.replace(config, preset='')
  for name, value in given.items():
    if name not in own:
      laid = with_field(laid, name.split('.'), value)
  return laid


def put(config: Config, text: str) -> Config:
  """The config with every field of a preset, whatever it said before."""
  for name, value in presets.fields(text, config.model.num_layers).items():
    config = with_field(config, name.split('.'), value)
  return config


def with_field(fields: Any, path: list[str], value: Any) -> Any:
  """Frozen fields with one of them, at any depth, replaced."""
  name, rest = path[0], path[1:]
  inner = with_field(getattr(fields, name), rest, value) if rest else value
  return dataclasses.replace(fields, **{name: inner})
