"""Several processes that train as one run, on one machine or many.

Each has its own devices and its share of every batch. The folder of the run is
one that all of them see; the first process alone writes to it, but for
checkpoints, which all write together.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from shared_tfm.errors import BadInput, need

HEARTBEAT = 30  # seconds of silence after which a process is taken for dead
START = 300  # seconds in which all of them must have come

Made = TypeVar('Made')


def connect(
  distributed: bool = False,
  coordinator: str = '',
  num_processes: int = 0,
  process_id: int = -1,
) -> None:
  """Joins this process to the others; before any device is asked for.

  Args:
    distributed: whether JAX is to find the others, as it can under SLURM, on a
      TPU pod, on GKE and under Open MPI.
    coordinator: else, address and port of the first process.
    num_processes: ... how many there are.
    process_id: ... which this is, from 0.

  Raises:
    BadInput: only some of them are given, or there is no cluster to be found,
      or not all processes have come in time.
  """
  explicit = coordinator, num_processes > 0, process_id >= 0
  if not distributed and not any(explicit):
    return
  need(
    distributed != any(explicit) and (distributed or all(explicit)),
    'give --distributed, or --coordinator=HOST:PORT, --num_processes=N and'
    ' --process_id=I, all three',
  )
  need(
    distributed or process_id < num_processes,
    f'--process_id must be below --num_processes {num_processes}, got'
    f' {process_id}',
  )
  try:
    jax.distributed.initialize(
      coordinator or None,
      num_processes or None,
      process_id if process_id >= 0 else None,
      initialization_timeout=START,
      heartbeat_timeout_seconds=HEARTBEAT,
      shutdown_timeout_seconds=HEARTBEAT,
    )
  except (ValueError, RuntimeError) as error:
    line = str(error).strip().split('\n')[0]
    raise BadInput(f'the processes do not come together: {line}') from None


def several() -> bool:
  """Whether there is more than this one process."""
  return jax.process_count() > 1


def is_first() -> bool:
  """Whether this is the process that writes."""
  return jax.process_index() == 0


def together(make: Callable[[], Made]) -> Made:
  """What each process makes; where one cannot, none goes on.

  Raises:
    BadInput, OSError: what this process was told, or that another was.
  """
  made, error = None, None
  try:
    made = make()
  except (BadInput, OSError) as told:
    error = told
  if not agreed(error is None):
    raise error or BadInput('another process cannot go on, and says why')
  return cast(Made, made)


def in_turn(make: Callable[[], Made]) -> Made:
  """What each process makes, the first before the others; see `together`.

  So that these find what it has left in the folder.
  """
  made = together(lambda: make() if is_first() else None)
  return together(lambda: make() if made is None else made)


def agreed(flag: bool) -> bool:
  """Whether it is so in every process; all of them must ask."""
  if not several():
    return flag
  return bool(np.all(multihost_utils.process_allgather(np.array(flag))))


def of_first(number: int) -> int:
  """The first process's number, in every process; all of them must ask."""
  if not several():
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def ending(step: int, signals: list[int]) -> bool:
  """Whether the run is to end after this step, by a signal to any process.

  Args:
    step: the same in every process, which ask at every step.
    signals: that this process has caught, where it is alone.
  """
  if not several():
    return bool(signals)
  return multihost_utils.reached_preemption_sync_point(step)


def here(tree: Any) -> Any:
  """Arrays of all processes, as arrays on this process's own device."""
  if not several():
    return tree
  whole = multihost_utils.process_allgather(tree, tiled=True)
  return jax.device_put(whole, jax.local_devices()[0])
