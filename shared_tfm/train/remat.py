"""What the backward pass recomputes, by the memory there is.

Policies are tried from the fastest to the one that keeps least, and the first
whose training step fits by the compiler's own count is taken. On a CPU `none`
and `dots` took the same time where it was measured (benchmarks/NOTES.md), so
what never keeps scores is tried first; elsewhere to keep most is taken to be
fastest.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax

from shared_tfm.config import Config

MARGIN = 0.9  # of a device's memory; what else is on it is not ours to know


def policies(config: Config, platform: str) -> Sequence[str]:
  """What to try, the fastest first; the config's own where it has one."""
  if config.model.remat != 'auto':
    return (config.model.remat,)
  return ('dots', 'full') if platform == 'cpu' else ('none', 'dots', 'full')


def under(config: Config, policy: str) -> Config:
  """The config with a policy of `model.remat`."""
  model = dataclasses.replace(config.model, remat=policy)
  return dataclasses.replace(config, model=model)


def budget(config: Config, device: Any) -> float:
  """Bytes that a training step may take of a device.

  `train.memory_gb`, or a part of what the device has; 0 where it does not say.
  A CPU has its host's, in equal shares if it stands for several devices.
  """
  if config.train.memory_gb:
    return config.train.memory_gb * 2**30
  if device.platform != 'cpu':
    stats = device.memory_stats() or {}
    return MARGIN * int(stats.get('bytes_limit', 0))
  host = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return MARGIN * host / jax.local_device_count()
