"""Sweeps as files: one that a user writes, and one that a folder keeps.

A user's is TOML:

    config = 'configs/quickstart.py'
    seeds = 5
    equal = 'params'               # or flops, time; see budget.py
    adjust = 'width'               # or depth, for equal parameters
    tune = [0.5, 1, 2]             # factors of the rate; see tuning.py
    tune_steps = 100               # of 400, of each run that tunes
    train.num_steps = 400          # any field of the config, for every row

    [[row]]
    sharing = 'none'               # the first row is what others stand against

    [[row]]
    label = 'half as deep'         # else the scheme is the row's name
    sharing = 'none'
    model.num_layers = 3           # any field of the config, for this row

A folder has its sweep as sweep.json, with what was solved for its rows, so that
it is never solved otherwise when the sweep goes on.
"""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared_tfm import config as configs
from shared_tfm import config_file, files
from shared_tfm.config.ranges import leaves
from shared_tfm.errors import BadInput, need, unknown
from shared_tfm.report import sweep as sweeps
from shared_tfm.report.sweep import GROUPS, Sweep
from shared_tfm.train import runs

FILE = 'sweep.json'
WRONG = ValueError, TypeError, KeyError, AttributeError
SETTINGS = {  # of a sweep: name, and what it is in a file
  'seeds': int,
  'equal': str,
  'adjust': str,
  'tune': list,
  'tune_steps': int,
}


@dataclasses.dataclass(frozen=True)
class Solved:
  """What was found for a row.

  Attributes:
    fields: fields of the config, with dots, that the budget or the tuning set.
    note: what was adjusted and how near it came, for the table.
    tuned: whether the learning rate has been chosen.
  """

  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  note: str = ''
  tuned: bool = False


def load(path: str | Path) -> Sweep:
  """Reads a sweep file.

  Raises:
    BadInput: it is missing, no TOML, or a name or value in it is wrong.
  """
  path = Path(path)
  need(path.is_file(), f'there is no sweep file {path}')
  try:
    given = tomllib.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:  # of TOML, or of UTF-8
    raise BadInput(f'{path} is no TOML: {error}') from None
  try:
    return _from_toml(given)
  except BadInput as error:
    raise BadInput(f'{path}: {error}') from None


def _from_toml(given: dict[str, Any]) -> Sweep:
  known = {'config': str, 'row': list, **SETTINGS}
  for name, value in given.items():
    if name not in known and name not in GROUPS:
      raise unknown('setting', name, [*known, *GROUPS])
    kind = known.get(name, type(value))
    need(type(value) is kind, f'{name} is a {kind.__name__}, got {value!r}')
  need('config' in given, 'config is missing: a file in configs/')
  own = {n: v for n, v in given.items() if n in GROUPS}
  base = config_file.read(given['config'])
  fields = sweeps.merged(configs.complete(base).to_dict(), own)
  return sweeps.of(
    fields,
    given.get('row', []),
    [*configs.given(base), *(name for name, _ in leaves(own))],
    **{name: given[name] for name in SETTINGS if name in given},
  )


def write(workdir: Path, sweep: Sweep, solved: Mapping[str, Solved]) -> None:
  """Writes sweep.json, atomically; the folder must exist."""
  content = dataclasses.asdict(sweep)
  content['solved'] = {k: dataclasses.asdict(v) for k, v in solved.items()}
  files.replace(workdir / FILE, json.dumps(content, indent=2) + '\n')


def begun(workdir: Path) -> Sweep:
  """The sweep of a folder.

  Raises:
    BadInput: there is none, or it cannot be read.
  """
  need(
    (workdir / FILE).exists(),
    f'{workdir} has no sweep yet, so one of these is required: --sweep,'
    ' --config (see shared_tfm compare --help)',
  )
  return _read(workdir)[0]


def taken(sweep: Sweep, workdir: Path) -> dict[str, Solved]:
  """What was solved for the rows of a sweep when it was begun in a folder.

  Raises:
    BadInput: the folder has another sweep, whose solutions are not for this
      one. What solves nothing may have other rows each time.
  """
  if not (workdir / FILE).exists():
    return {}
  before, solved = _read(workdir)
  if not (before.solves or sweep.solves):
    return {}
  at = f'workdir {workdir} belongs to another sweep; it'
  for name in ('equal', 'adjust', 'tune', 'tune_steps'):
    there, given = getattr(before, name), getattr(sweep, name)
    there, given = (list(v) if name == 'tune' else v for v in (there, given))
    need(
      there == given,
      f'{at} differs in {name} ({there!r} there, {given!r} given)',
    )
  first = before.labels[0]
  need(
    sweep.labels[0] == first,
    f'{at} holds its rows against {first}, got {sweep.labels[0]}',
  )
  lost = [label for label in before.labels if label not in sweep.labels]
  need(not lost, f'{at} has more rows: {"; ".join(lost)}')
  ours = sweeps.crossed(sweep)
  for label, config in sweeps.crossed(before).items():
    train = dataclasses.replace(config.train, seed=ours[label].train.seed)
    there = dataclasses.replace(config, train=train)
    runs.check_same(workdir, there, ours[label])
  return solved


def _read(workdir: Path) -> tuple[Sweep, dict[str, Solved]]:
  path = workdir / FILE
  try:
    given = json.loads(path.read_text())
    solved = {k: Solved(**v) for k, v in given.pop('solved').items()}
    given['rows'] = [
      sweeps.row({**row.pop('fields'), **row}) for row in given['rows']
    ]
    sweep = Sweep(**given)
    sweeps.check(sweep)
  except (*WRONG, RecursionError) as error:
    raise BadInput(f'{path} is not a sweep: {error!r}') from None
  return sweep, solved
