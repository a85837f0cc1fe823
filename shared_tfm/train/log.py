"""What a run writes down: metrics.jsonl and TensorBoard events.

A resumed run forgets what came after the step it goes on from, in both, so that
there is one line and one event for each step that was told, in one file each.
How large they get is `train.log_every`'s to say: a line is about 300 bytes.
"""

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared_tfm import files
from shared_tfm.train.events import Events

METRICS = 'metrics.jsonl'
LARGEST = 2**63  # whole numbers are below it
ABOUT = ('kind', 'step', 'time')  # what a line says beside its metrics
logger = logging.getLogger(__name__)


class Log:
  """Appends metrics by step; a resumed run continues where its state does."""

  def __init__(self, workdir: Path, step: int):
    """Opens the log of `workdir`, forgetting what came after `step`."""
    self.path = workdir / METRICS
    kept = [line for line in read(workdir) if line['step'] <= step]
    files.replace(self.path, ''.join(json.dumps(line) + '\n' for line in kept))
    self.file = self.path.open('ab', buffering=0)  # a kill loses no line
    self.events = Events(workdir / 'tensorboard')
    for line in kept:
      self._show(line)
    self.events.alone()

  def write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes one line of a kind ('train', 'validation') for one step.

    What is no number, such as tables, is for metrics.jsonl alone.
    """
    line = {'kind': kind, 'step': step, 'time': time.time(), **finite(metrics)}
    with files.named(self.path):
      files.append(self.file, f'{json.dumps(line)}\n'.encode())
    self._show(line)

  def _show(self, line: dict[str, Any]) -> None:
    """The numbers of a line, on TensorBoard."""
    kind, step, seconds = (line[name] for name in ABOUT)
    scalars = {
      f'{kind}/{name}': value
      for name, value in line.items()
      if isinstance(value, int | float) and name not in ABOUT
    }
    self.events.write(step, seconds, scalars)

  def close(self) -> None:
    """Closes the files, in which everything is already."""
    self.file.close()
    self.events.close()


class Unwritten:
  """The log of a process that is not the first."""

  def write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes nothing."""

  def close(self) -> None:
    """Has nothing to close."""


def finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
  """Numbers as JSON can hold them: null for what is not finite."""
  return {
    name: None if isinstance(n, float) and not math.isfinite(n) else n
    for name, n in numbers.items()
  }


def read(workdir: Path) -> list[dict[str, Any]]:
  """The lines written so far, in the order they were written in.

  A last line that was cut is left out. So is any other that is damaged; it is
  named, and those after it are kept.
  """
  path = workdir / METRICS
  texts = path.read_bytes().split(b'\n') if path.exists() else []
  lines = []
  for number, text in enumerate(texts, 1):
    try:
      lines.append(_sound(json.loads(text)))
    except (ValueError, TypeError, KeyError, RecursionError):
      if number < len(texts):  # what follows the last newline was cut
        logger.warning('%s: line %s is damaged; left out', path, number)
  return lines


def _sound(line: dict[str, Any]) -> dict[str, Any]:
  """The line, if it is one that `Log` can have written.

  Raises:
    KeyError, TypeError, ValueError: it is not.
  """
  kind, step, seconds = (line[name] for name in ABOUT)
  numbers = [n for n in line.values() if isinstance(n, int | float)]
  if not (
    isinstance(kind, str)
    and type(step) is int
    and 0 <= step < LARGEST
    and isinstance(seconds, int | float)
    and all(abs(n) < LARGEST for n in numbers if not isinstance(n, float))
  ):
    raise ValueError('not of the kinds that are written')
  json.dumps(line, ensure_ascii=False).encode()  # no halves of a character
  return line
