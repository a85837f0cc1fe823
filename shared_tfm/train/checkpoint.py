"""Checkpoints: state and data position, each with its own content hash.

Orbax writes them; the hash is ours, because a flipped byte restores there
without an error. The newest checkpoint whose content is what was saved is used;
a bad one is named and set aside.
"""

import contextlib
import hashlib
import json
import logging
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from shared_tfm.errors import BadInput
from shared_tfm.train.fingerprint import fingerprint

logger = logging.getLogger(__name__)


class Checkpoints:
  """The checkpoints of one run: the latest few and the best."""

  def __init__(self, folder: Path, latest: int = 1):
    """Opens `folder`, which is made if need be, to keep `latest` and best."""

    def loss(metrics: Any) -> float:
      return metrics['loss']

    self.folder = folder.resolve()
    self.damaged: list[int] = []  # steps set aside by this object
    self._check_losses()
    self.manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        best_fn=loss,
        best_mode='min',
        preservation_policy=keep.AnyPreservationPolicy(
          [
            keep.LatestN(latest),
            keep.BestN(
              get_metric_fn=loss,
              reverse=True,  # the smaller the better
              n=1,
              keep_checkpoints_without_metrics=False,
            ),
          ]
        ),
      ),
    )

  def save(
    self, step: int, state: Any, data: dict[str, Any], loss: float | None
  ) -> None:
    """Saves one step; returns before it is on disk. See `close`.

    Args:
      step: updates done.
      state: a tree of arrays.
      data: the data iterator's position, as JSON.
      loss: what the best is chosen by; None if it was not measured. One that
        is not finite is never the best.
    """
    loss = loss if loss is not None and math.isfinite(loss) else None
    note: dict[str, Any] = {'data': data, 'loss': loss}
    note['hash'] = content_hash(state, note)
    saved = self.manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), note=ocp.args.JsonSave(note)
      ),
      metrics=None if loss is None else {'loss': loss},
    )
    if not saved:
      raise RuntimeError(f'step {step} was not saved in {self.folder}')

  def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """The newest good checkpoint, or None where there is none at all.

    Args:
      like: the state's shapes, dtypes and shardings (`jax.ShapeDtypeStruct`).

    Returns:
      (step, state, data position).

    Raises:
      BadInput: there are checkpoints and not one can be used.
    """
    for step in sorted(self.manager.all_steps(), reverse=True):
      try:
        state, data = self._read(step, like)
      except Exception as error:  # whatever a damaged file makes Orbax raise
        self._set_aside(step, error)
      else:
        return step, state, data
    if self.damaged:
      raise BadInput(
        f'no checkpoint in {self.folder} can be used; damaged:'
        f' {", ".join(map(str, self.damaged))}'
      )
    return None

  def load(self, which: str, like: Any) -> Any:
    """The state of the 'best' checkpoint, by loss, or of the 'latest'.

    Raises:
      BadInput: there is no checkpoint that can be used.
    """
    while which == 'best' and (best := self.manager.best_step()) is not None:
      try:
        return self._read(best, like)[0]
      except Exception as error:
        self._set_aside(best, error)
    restored = self.restore(like)
    if restored is None:
      raise BadInput(f'there is no checkpoint in {self.folder}')
    return restored[1]

  def close(self) -> None:
    """Waits until everything is on disk."""
    self.manager.close()

  def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    with _hushed():
      restored = self.manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(like), note=ocp.args.JsonRestore()
        ),
      )
    state, note = restored['state'], restored['note']
    if note.pop('hash') != content_hash(state, note):
      raise ValueError('its content is not what was saved')
    return state, note['data']

  def _check_losses(self) -> None:
    """Sets aside checkpoints whose loss, which Orbax trusts, is not ours."""
    for path in sorted(self.folder.glob('*')):
      if not path.name.isdigit() or not path.is_dir():
        continue
      try:
        loss = path / 'metrics' / 'metrics'
        found = json.loads(loss.read_text()) if loss.exists() else None
        note = json.loads((path / 'note' / 'metadata').read_text())
        if found != (None if note['loss'] is None else {'loss': note['loss']}):
          raise ValueError('its loss is not what was saved')
      except Exception as error:
        self._set_aside(int(path.name), error)

  def _set_aside(self, step: int, error: Exception) -> None:
    reason = str(error).strip().split('\n')[0][:200]
    logger.warning(
      'checkpoint %s is damaged (%s); set aside',
      self.folder / f'{step}',
      reason,
    )
    damaged = self.folder.parent / 'damaged'
    damaged.mkdir(exist_ok=True)
    place = damaged / f'{step}'
    while place.exists():  # nothing is deleted
      place = place.with_name(f'{place.name}+')
    shutil.move(self.folder / f'{step}', place)
    self.damaged.append(step)
    if hasattr(self, 'manager'):
      self.manager.reload()


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
  """Where one read fails, Orbax leaves others behind that print tracebacks.

  They do so from other threads, when they end or are collected. So once a read
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
  yield
  sys.unraisablehook = report
  asyncio_logger.setLevel(level)


def content_hash(state: Any, note: dict[str, Any]) -> str:
  """The state's fingerprint, and SHA-256 of the note."""
  digest = hashlib.sha256(json.dumps(note, sort_keys=True).encode())
  return f'{fingerprint(state)} {digest.hexdigest()}'
