"""What a run writes down: metrics.jsonl and TensorBoard events."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from shared_tfm import files

METRICS = 'metrics.jsonl'


class Log:
  """Appends metrics by step; a resumed run continues where its state does."""

  def __init__(self, workdir: Path, step: int):
    """Opens the log of `workdir`, forgetting what came after `step`."""
    path = workdir / METRICS
    kept = [line for line in read(workdir) if line['step'] <= step]
    files.replace(path, ''.join(json.dumps(line) + '\n' for line in kept))
    self.file = path.open('a', buffering=1)
    self.events = SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=step + 1, flush_secs=10
    )

  def write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes one line of a kind ('train', 'validation') for one step.

    What is no number, such as tables, is for metrics.jsonl alone.
    """
    metrics = finite(metrics)
    line = {'kind': kind, 'step': step, 'time': time.time(), **metrics}
    self.file.write(json.dumps(line) + '\n')
    for name, value in metrics.items():
      if isinstance(value, int | float):
        self.events.add_scalar(f'{kind}/{name}', value, step)

  def close(self) -> None:
    """Writes out what is buffered."""
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
  """The lines written so far; a last line that was cut is left out."""
  path = workdir / METRICS
  lines = []
  for text in path.read_text().splitlines() if path.exists() else []:
    try:
      line = json.loads(text)
      if not {'kind', 'step'} <= line.keys():
        break
    except (ValueError, AttributeError, RecursionError):
      break
    lines.append(line)
  return lines
