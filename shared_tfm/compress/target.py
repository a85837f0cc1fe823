"""The config of a run that is made by a conversion."""

import dataclasses
from collections.abc import Sequence

from shared_tfm import config as configs
from shared_tfm import config_file
from shared_tfm.config import Config
from shared_tfm.config.door import PRESET
from shared_tfm.config.loops import is_plain, loops
from shared_tfm.sharing import levels


def config_of(config: Config, sharing: str, overrides: Sequence[str]) -> Config:
  """The config of the run that is made; arguments as of `heir.make`.

  What a network loops and reuses stays as it is under any scheme.
  """
  train = dataclasses.replace(config.train, init_from='')
  config = dataclasses.replace(config, train=train)
  if sharing:
    kept = _reusing(config, sharing)
    config = configs.with_sharing(_looping(_fixed(config)), kept)
  return config_file.changed(config, overrides)


def _fixed(config: Config) -> Config:
  """The same with tables that no longer change."""
  if config.adapt.method == 'none':
    return config
  model = dataclasses.replace(config.model, tables='fixed')
  return dataclasses.replace(config, model=model, adapt=configs.Adapt())


def _looping(config: Config) -> Config:
  """The same with its loops as numbers, which no longer follow its tables."""
  model = config.model
  if model.family == 'encoder_decoder' or loops(model).times == 1:
    return config
  if is_plain(model) and model.depth.attention == 'loop':
    return config
  p, c, _, k = loops(model)
  depth = dataclasses.replace(model.depth, prelude=p, core=c, coda=k)
  model = dataclasses.replace(model, depth=depth)
  return dataclasses.replace(config, model=model)


def _reusing(config: Config, sharing: str) -> str:
  """A scheme that reuses what the network does: it has no other weights."""
  if sharing.startswith(PRESET):
    return sharing
  given = levels.assignments(sharing)
  for at, group in ('', 'sharing'), ('decoder.', 'sharing_decoder'):
    for name in ('kv_source', 'map_source'):
      spec = getattr(getattr(config.model, group), name)
      if spec and at + name not in given:
        sharing += f' {at}{name}={spec}'
  return sharing
