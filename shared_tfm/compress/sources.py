"""Where weights come from: a run's folder, or one of Hugging Face's."""

import dataclasses
from pathlib import Path
from typing import Any

from shared_tfm.compress.hugging_face import reading
from shared_tfm.config import Config, pruning
from shared_tfm.train import loop, prune, runs


@dataclasses.dataclass(frozen=True)
class Source:
  """A trained network.

  Attributes:
    folder: where it is from; a learned tokenizer lies there, too.
    config: its own.
    params: its parameters, unboxed.
    variables: its other collections.
    opt_state: the optimizer's; None where none is known.
    step: after how many updates.
  """

  folder: Path
  config: Config
  params: Any
  variables: Any
  opt_state: Any = None
  step: int = 0


def config(folder: Path) -> Config:
  """The config of the network in a folder; its zeros are no longer masks.

  Raises:
    BadInput: there is none that can be read.
  """
  if reading.is_theirs(folder):
    return reading.config_of(folder)
  return pruning.without(runs.read_config(folder))


def load(folder: Path, which: str = 'best') -> Source:
  """The network in a folder.

  Args:
    folder: of a run, or with a config.json and safetensors of theirs.
    which: of a run's checkpoints, 'best' or 'latest'.

  Raises:
    BadInput: there is none that can be read.
  """
  if reading.is_theirs(folder):
    own, params = reading.read(folder)
    return Source(folder, own, params, {})
  own, state = loop.load(folder, which)
  fixed, params, variables = prune.baked(own, state)
  return Source(
    folder,
    fixed,
    params,
    variables,
    state.opt_state,
    int(state.step),
  )
