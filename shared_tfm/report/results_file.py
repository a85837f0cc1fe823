"""What a comparison measured: results.csv.

One `Result` is one row: one scheme trained from one seed. To add a measurement,
add a field; to show it, a `Column` in columns.py.
"""

import csv
import dataclasses
import functools
import io
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_tfm import files
from shared_tfm.errors import BadInput, need
from shared_tfm.report.columns import SCORES

ADJUSTED = 'adjusted'


@dataclasses.dataclass(frozen=True)
class Result:
  """One scheme trained from one seed: a row of results.csv, in this order."""

  scheme: str
  seed: int
  stored_params: int
  applied_params: int
  non_embedding_params: int  # of the stored ones
  sharing_ratio: float  # applied / stored, layers only
  flops_per_token: int  # of training: one forward and one backward pass
  train_loss: float  # nats per target
  validation_loss: float  # nats per target
  steps: int
  tokens: int  # seen in training
  tokens_per_second: float
  peak_memory_bytes: int
  scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
  adjusted: str = ''  # what a budget or a tuning set, and how near it came


FIELDS = typing.get_type_hints(Result)  # name -> str, int or float
del FIELDS['scores']  # whose names are columns of their own
del FIELDS[ADJUSTED]  # a column where something was


def write(path: Path, results: Sequence[Result]) -> None:
  """Writes results.csv, atomically; its folder must exist."""
  text = io.StringIO(newline='')
  rows = csv.writer(text, lineterminator='\n')
  rows.writerow(header(results))
  rows.writerows(map(functools.partial(cells, header(results)), results))
  files.replace(path, text.getvalue())


def header(results: Sequence[Result]) -> list[str]:
  """The names of all columns: `Result`'s, the scores, what was adjusted."""
  scores = dict.fromkeys(name for r in results for name in r.scores)
  return [*FIELDS, *scores, *[ADJUSTED] * any(r.adjusted for r in results)]


def cells(names: Sequence[str], result: Result) -> list[Any]:
  """One row of results.csv; empty where a score was not measured."""
  values = {**dataclasses.asdict(result), **result.scores}
  return [values.get(name, '') for name in names]


def read(path: Path) -> list[Result]:
  """Reads results.csv.

  Args:
    path: a file that `write` wrote. Its columns may stand in another order,
      and columns of names that are nobody's are passed over.

  Raises:
    BadInput: the file is missing, empty or malformed, or has a seed of a scheme
      twice. The message names the file, the line and the column.
  """
  try:
    with path.open(encoding='utf-8', newline='') as file:
      results = list(_rows(path, file))
  except OSError as error:
    raise BadInput(f'{path}: {error.strerror}') from None
  except UnicodeDecodeError:
    raise BadInput(f'{path} is not text in UTF-8') from None
  need(bool(results), f'{path} holds no results')
  return results


def _rows(path: Path, file: typing.TextIO) -> Iterator[Result]:
  lines = csv.reader(file, strict=True)
  seen = set()
  try:
    names = next(lines, [])
    for name in FIELDS:
      need(name in names, f'{path}, line 1: there is no column {name}')
    for line in lines:
      where = f'{path}, line {lines.line_num}'
      need(
        len(line) == len(names),
        f'{where}: needs {len(names)} columns, got {len(line)}',
      )
      given = dict(zip(names, line, strict=True))
      result = Result(
        **{
          name: _value(f'{where}, column {name}', given[name], kind)
          for name, kind in FIELDS.items()
        },
        scores={
          name: _value(f'{where}, column {name}', given[name], float)
          for name in names
          if name in SCORES and given[name]
        },
        adjusted=given.get(ADJUSTED, ''),
      )
      run = (result.scheme, result.seed)
      need(
        run not in seen,
        f'{where}, column seed: {run[1]} is there twice for {run[0]!r}',
      )
      seen.add(run)
      yield result
  except csv.Error as error:
    raise BadInput(f'{path}, line {lines.line_num}: {error}') from None


def _value(where: str, text: str, kind: type) -> Any:
  try:
    return kind(text)
  except ValueError:
    raise BadInput(f'{where}: needs {kind.__name__}, got {text!r}') from None


def schemes(results: Sequence[Result]) -> dict[str, list[Result]]:
  """The results of each scheme, schemes in order of first appearance."""
  groups: dict[str, list[Result]] = {}
  for result in results:
    groups.setdefault(result.scheme, []).append(result)
  return groups
