"""Checkpoints: state and data position, each with its own content hash.

Orbax writes them; the hash is ours, because a flipped byte restores there
without an error. The newest checkpoint whose content is what was saved is used;
a bad one is named and set aside.
"""

import contextlib
import functools
import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from shared_tfm.errors import BadInput
from shared_tfm.train import hosts, orbax
from shared_tfm.train.fingerprint import fingerprint

logger = logging.getLogger(__name__)


class Checkpoints:
  """The checkpoints of one run: the latest few and the best.

  Attributes:
    damaged: steps that were found to be, and have not been saved anew.
  """

  def __init__(self, folder: Path, latest: int | None = None):
    """Opens `folder`.

    Args:
      folder: made if need be, where it is to be written in.
      latest: how many are kept beside the best. None: the folder is only read,
        and may be another process's, or no one's, to write in.
    """
    self.folder, self.latest = folder.resolve(), latest
    self.damaged: list[int] = []
    self.saves, self.hushed = False, contextlib.ExitStack()
    if latest is not None:
      self.folder.mkdir(parents=True, exist_ok=True)
      self._sweep()

  def save(
    self, step: int, state: Any, data: dict[str, Any], loss: float | None
  ) -> None:
    """Saves one step; returns before it is on disk. See `check` and `close`.

    Args:
      step: updates done.
      state: a tree of arrays.
      data: the data iterator's position, as JSON.
      loss: what the best is chosen by; None if it was not measured. One that
        is not finite is never the best.

    Raises:
      OSError: this one, or the one before, could not be written.
    """
    loss = loss if loss is not None and math.isfinite(loss) else None
    # A copy, which is what is written: the caller's `data` may go on changing.
    note = json.loads(json.dumps({'data': data, 'loss': loss}))
    note['hash'] = content_hash(state, note)
    with self._writing():
      self._manager.wait_until_finished()
      self._sweep()
      saved = self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), note=ocp.args.JsonSave(note)
        ),
        metrics=None if loss is None else {'loss': loss},
      )
    if not saved:
      raise RuntimeError(f'step {step} was not saved in {self.folder}')
    self.saves = True
    self.damaged = [other for other in self.damaged if other != step]

  def check(self) -> None:
    """Raises what the last save, if it is over, could not do; waits for none.

    Raises:
      OSError: it could not be written.
    """
    if self.saves and not self._manager.is_saving_in_progress():
      with self._writing():
        self._manager.wait_until_finished()
        self._sweep()
      self.saves = False

  def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """The newest good checkpoint, or None where there is none at all.

    Args:
      like: the state's shapes, dtypes and shardings (`jax.ShapeDtypeStruct`).

    Returns:
      (step, state, data position).

    Raises:
      BadInput: there are checkpoints and not one can be used.
    """
    return self._newest_or('latest', like)

  def load(self, which: str, like: Any) -> Any:
    """The state of the 'best' checkpoint, by loss, or of the 'latest'.

    Raises:
      BadInput: there is no checkpoint that can be used.
    """
    found = self._newest_or(which, like)
    if found is None:
      raise BadInput(f'there is no checkpoint in {self.folder}')
    return found[1]

  def close(self) -> None:
    """Waits until everything is on disk.

    Raises:
      OSError: the last save could not be written.
    """
    if '_manager' in self.__dict__:
      with self._writing():
        self._manager.close()
        del self._manager
      self.hushed.close()
      self._sweep()

  @functools.cached_property
  def _manager(self) -> ocp.CheckpointManager:
    """Made for the first save; what is damaged is out of its way."""
    self._losses()
    self._set_aside()
    self.hushed.enter_context(orbax.hushed())
    return orbax.manager(self.folder, self.latest)

  def _newest_or(
    self, which: str, like: Any
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """The 'best' good one, or else the newest."""
    while (step := hosts.of_first(self._chosen(which))) >= 0:
      found, error = None, Exception('another process cannot read it')
      try:
        found = self._read(step, like)
      except Exception as told:  # whatever a damaged file makes Orbax raise
        error = told
      if hosts.agreed(found is not None) and found:
        self._set_aside()
        return step, *found
      self._leave_out(step, error)
    # Nothing is moved where nothing else is left: what cannot be read today, of
    # a disk that is away say, may be read tomorrow.
    if hosts.of_first(len(self.damaged)):
      raise BadInput(
        f'no checkpoint in {self.folder} can be used; damaged:'
        f' {", ".join(map(str, self.damaged))}'
      )
    return None

  def _chosen(self, which: str) -> int:
    """The step to be read next; -1: there is none."""
    losses = self._losses()
    measured = [step for step, loss in losses.items() if loss is not None]
    if which == 'best' and measured:
      return min(measured, key=lambda step: losses[step])
    return max(losses, default=-1)

  def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    handler = ocp.CompositeCheckpointHandler()
    with orbax.hushed(), ocp.Checkpointer(handler) as reader:
      restored = reader.restore(
        self.folder / f'{step}',
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(like), note=ocp.args.JsonRestore()
        ),
      )
    state, note = restored['state'], restored['note']
    if note.pop('hash') != content_hash(state, note):
      raise ValueError('its content is not what was saved')
    return state, note['data']

  def _losses(self) -> dict[int, Any]:
    """The loss of every step, where it was measured and is what was saved."""
    steps = [
      int(path.name)
      for path in self.folder.glob('*')
      if re.fullmatch('0|[1-9][0-9]*', path.name) and path.is_dir()
    ]
    losses = {}
    for step in sorted(set(steps) - set(self.damaged), reverse=True):
      path = self.folder / f'{step}'
      try:
        loss = path / 'metrics' / 'metrics'  # Orbax takes its word for it
        found = json.loads(loss.read_text()) if loss.exists() else None
        note = json.loads((path / 'note' / 'metadata').read_text())
        if found != (None if note['loss'] is None else {'loss': note['loss']}):
          raise ValueError('its loss is not what was saved')
        losses[step] = note['loss']
      except Exception as error:
        self._leave_out(step, error)
    return losses

  def _leave_out(self, step: int, error: Exception) -> None:
    """Names a damaged checkpoint."""
    path = self.folder / f'{step}'
    if not path.exists():  # who writes here has just now pruned it
      return
    reason = str(error).strip().split('\n')[0][:200]
    logger.warning('checkpoint %s is damaged (%s); left out', path, reason)
    self.damaged.append(step)

  def _set_aside(self) -> None:
    """Moves what is damaged, but for who only reads; nothing is deleted."""
    if self.latest is None or not hosts.is_first():
      return
    damaged = self.folder.parent / 'damaged'
    for step in self.damaged:
      path, place = self.folder / f'{step}', damaged / f'{step}'
      if path.exists():
        damaged.mkdir(exist_ok=True)
        while place.exists():
          place = place.with_name(f'{place.name}+')
        shutil.move(path, place)

  def _sweep(self) -> None:
    """Deletes what was pruned, and saves that were cut."""
    if not hosts.is_first():
      return
    for path in self.folder.glob('*.orbax-checkpoint-tmp*'):
      shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(self.folder / orbax.PRUNED, ignore_errors=True)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Says in one line what could not be written, and what there is."""
    try:
      yield
    except Exception as error:
      manager, self.saves = self.__dict__.pop('_manager', None), False
      if manager is not None:
        with contextlib.suppress(Exception):  # what follows from the first
          manager.close()
      self._sweep()  # half a checkpoint may be what the disk is full of
      number, reason = orbax.reason(error)
      newest = max(self._losses(), default=None)
      there = 'there is none' if newest is None else f'the newest is {newest}'
      said = f'no checkpoint was written ({reason}); {there}'
      raise OSError(number, said, str(self.folder)) from error


def content_hash(state: Any, note: dict[str, Any]) -> str:
  """The state's fingerprint, and SHA-256 of the note."""
  digest = hashlib.sha256(json.dumps(note, sort_keys=True).encode())
  return f'{fingerprint(state)} {digest.hexdigest()}'
