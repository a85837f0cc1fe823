"""What a trained run does inside: measured, written down, drawn and told.

Each analysis is a module with five functions:

    why_not(reader)      why it says nothing of this run; '' where it does
    measure(reader)      numbers, as JSON can hold them
    rows(found)          the same as rows of a table, for a CSV file
    tell(found)          the same as text for a terminal
    draw(found, folder)  pictures
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from shared_tfm import files
from shared_tfm.errors import need, unknown
from shared_tfm.report.analysis import (
  distance,
  gradients,
  lens,
  ranks,
  similarity,
  used,
)
from shared_tfm.report.analysis.reader import Reader

__all__ = [
  'ANALYSES',
  'Reader',
  'analyse',
  'as_json',
  'asked',
  'tell',
  'write',
]

ANALYSES: dict[str, ModuleType] = {
  'cka': similarity,
  'distance': distance,
  'gradients': gradients,
  'depth': used,
  'lens': lens,
  'rank': ranks,
}
ALL = 'all'


def asked(what: str) -> tuple[str, ...]:
  """The names in a list with commas; empty for 'all'.

  Raises:
    BadInput: a name that is none.
  """
  names = [name.strip() for name in what.split(',') if name.strip()]
  need(bool(names), f'--what names analyses, or all: {", ".join(ANALYSES)}')
  if ALL in names:
    return ()
  for name in names:
    if name not in ANALYSES:
      raise unknown('analysis', name, [*ANALYSES, ALL])
  return tuple(dict.fromkeys(names))


def analyse(reader: Reader, names: Sequence[str] = ()) -> dict[str, Any]:
  """Measures a run.

  Args:
    reader: of the run.
    names: keys of ANALYSES; none for all that say something of this run.

  Returns:
    'run', what was looked at; 'left_out', of analyses that say nothing of it
    why not; and by name what the others found.

  Raises:
    BadInput: an analysis that was named says nothing of this run.
  """
  left_out = {}
  for name in names or ANALYSES:
    why = ANALYSES[name].why_not(reader)
    need(not (why and names), f'--what={name}: {why}')
    if why:
      left_out[name] = why
  wanted = [name for name in names or ANALYSES if name not in left_out]
  return {
    'run': reader.described(),
    'left_out': left_out,
    **{name: ANALYSES[name].measure(reader) for name in wanted},
  }


def write(found: dict[str, Any], folder: Path) -> list[Path]:
  """Writes analysis.json, and for each analysis a CSV file and pictures.

  Args:
    found: what `analyse` returns.
    folder: made if need be; files of these names are replaced.

  Returns:
    The files, in that order.
  """
  folder.mkdir(parents=True, exist_ok=True)
  files.replace(folder / 'analysis.json', as_json(found) + '\n')
  paths = [folder / 'analysis.json']
  for name in _measured(found):
    path = folder / f'{name}.csv'
    files.replace(path, _csv(ANALYSES[name].rows(found[name])))
    paths += [path, *ANALYSES[name].draw(found[name], folder)]
  return paths


def as_json(found: dict[str, Any]) -> str:
  """What was found, as one object; null for what is not finite."""
  return json.dumps(_finite(found))


def tell(found: dict[str, Any]) -> str:
  """What was found, as text for a terminal."""
  run = found['run']
  read = f'{run["examples"]} examples of the {run["split"]} split'
  parts = [f'{run["workdir"]}, step {run["step"]}: {read}']
  for name in _measured(found):
    title = (ANALYSES[name].__doc__ or '').splitlines()[0]
    parts.append(f'{name}: {title}\n\n{ANALYSES[name].tell(found[name])}')
  parts += [f'{name}: {why}' for name, why in found['left_out'].items()]
  return '\n\n'.join(parts)


def _measured(found: dict[str, Any]) -> list[str]:
  return [name for name in ANALYSES if name in found]


def _finite(found: Any) -> Any:
  if isinstance(found, dict):
    return {name: _finite(value) for name, value in found.items()}
  if isinstance(found, list | tuple):
    return [_finite(value) for value in found]
  if isinstance(found, float) and not math.isfinite(found):
    return None
  return found


def _csv(rows: Sequence[dict[str, Any]]) -> str:
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()
