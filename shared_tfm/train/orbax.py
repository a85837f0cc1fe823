"""What Orbax has to be told, and how to take what it says."""

import contextlib
import errno
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

PRUNED = '.pruned'  # what is no longer kept, until it is deleted


def manager(folder: Path, latest: int | None) -> ocp.CheckpointManager:
  """Writes checkpoints, and keeps the latest few and the best, by 'loss'.

  What is pruned is moved to `PRUNED`, for the caller to delete: were it deleted
  where it lies, a kill would leave half a checkpoint.
  """

  def loss(metrics: Any) -> float:
    return metrics['loss']

  best = keep.BestN(
    get_metric_fn=loss,
    reverse=True,  # the smaller the better
    n=1,
    keep_checkpoints_without_metrics=False,
  )
  return ocp.CheckpointManager(
    folder,
    options=ocp.CheckpointManagerOptions(
      best_fn=loss,
      best_mode='min',
      todelete_subdir=PRUNED,
      preservation_policy=keep.AnyPreservationPolicy(
        [keep.LatestN(latest), best]
      ),
    ),
  )


def reason(error: BaseException) -> tuple[int, str]:
  """The system's error behind one of Orbax, as a number and in words."""
  chain: BaseException | None = error
  while chain:
    code = re.search(r"os_error_code='(\d+)'", str(chain))
    number = chain.errno if isinstance(chain, OSError) else None
    number = number or (int(code[1]) if code else None)
    if number:
      return number, os.strerror(number)
    chain = chain.__cause__ or chain.__context__
  first = str(error).strip().split('\n')[0][:200]
  return errno.EIO, f'{type(error).__name__}: {first}'


@contextlib.contextmanager
def hushed() -> Iterator[None]:
  """Where one read or write fails, Orbax leaves others that print tracebacks.

  They do so from other threads, when they end or are collected. So once one
  has failed they stay unheard; all else is reported as it was before.
  """
  report, asyncio_logger = sys.unraisablehook, logging.getLogger('asyncio')
  level = asyncio_logger.level

  def hook(unraisable: Any) -> None:
    said = f'{unraisable.exc_value} {unraisable.object}'
    known = 'Event loop is closed', 'reading array index', '_read_array_index'
    if not any(text in said for text in known):
      report(unraisable)

  sys.unraisablehook = hook
  asyncio_logger.setLevel(logging.CRITICAL)
  try:
    yield
  except Exception:
    warnings.filterwarnings('ignore', 'coroutine .* was never awaited')
    raise
  sys.unraisablehook = report
  asyncio_logger.setLevel(level)
