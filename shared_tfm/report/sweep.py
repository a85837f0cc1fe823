"""What a comparison is of: a config, labelled rows, seeds, and a budget.

A row is a sharing scheme with fields of the config that it alone has, under a
label. Its config is crossed with these fields once, before anything is solved.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shared_tfm import config as configs
from shared_tfm import config_file
from shared_tfm.config import Config
from shared_tfm.config.ranges import leaves
from shared_tfm.errors import BadInput, need, unknown

EQUAL = ('steps', 'params', 'flops', 'time')
ADJUST = ('width', 'depth')
LABEL = re.compile(r'(?!\.)[\w.,=@+:|/ -]+')  # what can name a folder
SEPARATORS = str.maketrans(':|/', '-!~') | {ord(' '): '--'}
GROUPS = tuple(field.name for field in dataclasses.fields(Config))


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a comparison.

  Attributes:
    label: its name in all tables.
    sharing: its scheme, as `config.scheme_name` has it.
    fields: nested fields of the config that it alone has.
  """

  label: str
  sharing: str
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def folder(self) -> str:
    """A name for its folder, another for every row of a sweep."""
    return self.label.translate(SEPARATORS)


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What is asked for.

  Attributes:
    fields: the config, nested, with every field, before it is crossed.
    own: the fields that were given, with dots; see `config.cross`.
    rows: the first is the one that the others are held against.
    seeds: with how many each row is trained; the first is `train.seed`.
    equal: what all rows have alike; see budget.py.
    adjust: what is adjusted for equal parameters.
    tune: factors of a row's learning rate to choose from; see tuning.py.
    tune_steps: of a run that a rate is judged by, where a row trains for the
      config's `train.num_steps`, and in proportion to a row's own steps; 0: as
      many as the row's.
  """

  fields: Mapping[str, Any]
  own: Sequence[str]
  rows: Sequence[Row]
  seeds: int = 1
  equal: str = 'steps'
  adjust: str = 'width'
  tune: Sequence[float] = ()
  tune_steps: int = 0

  @property
  def labels(self) -> list[str]:
    """Of the rows, in order."""
    return [row.label for row in self.rows]

  @property
  def solves(self) -> bool:
    """Whether a row's config has fields that are not asked for but found."""
    return self.equal != 'steps' or bool(self.tune)


def of(
  config: Any,
  rows: Sequence[str | Mapping[str, Any]],
  own: Sequence[str] = (),
  **settings: Any,
) -> Sweep:
  """A sweep of a config.

  Args:
    config: a ConfigDict, a dict of fields or a Config; its own sharing plays no
      part.
    rows: schemes, or dicts with `sharing`, maybe `label`, and fields.
    own: fields, with dots, that were given though they have their default.
    **settings: those of `Sweep`.

  Raises:
    BadInput: a row or a setting is wrong.
  """
  if isinstance(config, Config):
    config = dataclasses.asdict(config)
  given = {*own, *configs.given(config)} if hasattr(config, 'items') else ()
  fields = configs.complete(config).to_dict()
  sweep = Sweep(fields, sorted(given), [*map(row, rows)], **settings)
  check(sweep)
  return sweep


def changed(sweep: Sweep, overrides: Sequence[str], **settings: Any) -> Sweep:
  """A sweep with some fields of its config, and settings, given anew."""
  made, named = config_file.override(configs.complete(sweep.fields), overrides)
  own = sorted({*sweep.own, *named})
  sweep = dataclasses.replace(sweep, fields=made.to_dict(), own=own, **settings)
  check(sweep)
  return sweep


def row(given: str | Mapping[str, Any]) -> Row:
  """A row from a scheme, or from a dict with `sharing`, `label` and fields."""
  if isinstance(given, str):
    name = configs.scheme_name(given)
    return Row(name, name)
  need(isinstance(given, Mapping), f'a row is a table, got {given!r}')
  sharing, label = given.get('sharing'), given.get('label', '')
  if not isinstance(sharing, str):
    raise BadInput(
      f"a row needs its scheme, such as sharing = 'cycle:3', got {given!r}"
    )
  name = configs.scheme_name(sharing)
  fields = {k: v for k, v in given.items() if k not in ('sharing', 'label')}
  for key, value in fields.items():
    if key not in GROUPS:
      raise unknown('key of a row', key, ['label', 'sharing', *GROUPS])
    need(
      key == 'preset' or isinstance(value, Mapping),
      f'{key} is a group of fields, got {value!r}',
    )
  inside = [path for path, _ in leaves(fields)]
  for path in inside:
    need(
      not path.startswith(('model.sharing', 'preset')),
      f"a row says what is shared by its sharing = '...', got {path}",
    )
    need(
      path != 'train.seed',
      'train.seed is for all rows, which are told apart seed by seed',
    )
  need(isinstance(label, str), f'a label is a text, got {label!r}')
  return Row(' '.join(label.split()) or name, name, fields)


def check(sweep: Sweep) -> None:
  """Raises BadInput where rows cannot stand beside each other."""
  need(bool(sweep.rows), 'there is no scheme to compare')
  need(sweep.seeds > 0, f'--seeds must be at least 1, got {sweep.seeds}')
  if sweep.equal not in EQUAL:
    raise unknown('--equal', sweep.equal, EQUAL)
  if sweep.adjust not in ADJUST:
    raise unknown('--adjust', sweep.adjust, ADJUST)
  need(
    sweep.adjust == 'width' or sweep.equal == 'params',
    f'--adjust={sweep.adjust} needs --equal=params, got {sweep.equal}',
  )
  need(
    all(type(f) in (int, float) and 0 < f < 1e6 for f in sweep.tune)
    and len({*sweep.tune}) == len(sweep.tune),
    f'--tune needs different positive factors, got {sweep.tune}',
  )
  need(
    sweep.tune_steps >= 0 and (bool(sweep.tune) or not sweep.tune_steps),
    f'--tune_steps needs --tune, and 0 or more, got {sweep.tune_steps}',
  )
  for label in sweep.labels:
    need(sweep.labels.count(label) == 1, f'the scheme {label} is given twice')
    need(
      bool(LABEL.fullmatch(label)),
      'a label has letters, digits, spaces and .,=@+:|/-_ and does not begin'
      f' with a dot, got {label!r}',
    )
  folders = {row.folder: row.label for row in sweep.rows}
  for row in sweep.rows:
    other = folders[row.folder]
    need(
      other == row.label,
      f'the labels {row.label!r} and {other!r} make one folder, {row.folder}',
    )


def crossed(sweep: Sweep) -> dict[str, Config]:
  """The config of each row as it is asked for, by label.

  Raises:
    BadInput: one of them breaks a rule.
  """
  base = configs.cross(sweep.fields, sweep.own)
  found = {}
  for row in sweep.rows:
    if not row.fields:
      found[row.label] = _shared(base, row)
      continue
    try:
      found[row.label] = _shared(_laid(sweep, row), row)
    except BadInput as error:
      raise BadInput(f'row {row.label!r}: {error}') from None
  return found


def _laid(sweep: Sweep, row: Row) -> Config:
  """The config with a row's fields and scheme, which may need each other."""
  laid = merged(sweep.fields, row.fields)
  laid['model'] = {**laid['model'], **configs.sharing_of(row.sharing)}
  return configs.cross(
    laid, {*sweep.own, *(name for name, _ in leaves(dict(row.fields)))}
  )


def _shared(config: Config, row: Row) -> Config:
  made = configs.with_sharing(config, row.sharing)
  need(
    made.model.family == config.model.family,
    f'{row.sharing} is for model.family {made.model.family!r}, got'
    f' {config.model.family!r}',
  )
  ours = dict(leaves(dataclasses.asdict(made)))
  for name, value in leaves(dict(row.fields)):
    derived = value in (0, '') and type(value) is not bool
    need(
      ours[name] == value or derived,
      f'{name} is {ours[name]!r} by {row.sharing}, and {value!r} by the row',
    )
  return made


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
  """Nested fields with others laid over them."""
  found = dict(under)
  for name, value in over.items():
    inside = found.get(name)
    both = isinstance(value, Mapping) and isinstance(inside, Mapping)
    found[name] = merged(inside, value) if both and inside else value
  return found
