"""What a claim of the literature is, and what our measurements say of it.

A folder of `experiments/` with a claim.toml is a claim:

    question = 'Which half of a layer is shared for less?'
    metric = 'bits_per_byte'        # a column of the csv files; less is better

    [[says]]
    who = 'ALBERT, Table 4'
    claim = 'attention costs less to share than the feed-forward network'
    better = 'attention=all'        # the labels of two rows
    than = 'feed_forward=all'

Beside it, cpu.toml and gpu.toml are what `compare --sweep` trains for it, small
and large. With `equal = ['params']` in claim.toml each has one more form, such
as cpu-params, in which all rows have as many parameters (or, by `flops`, train
with as many FLOPs; see budget.py), and not as many steps. `measure.py` runs a
form and writes its csv file, and `overview.py` makes the pages. Verdicts follow
from these files alone.

Of what was trained there may be more rows: runs that are read otherwise
(`[[read]]`) or converted (`[[convert]]`), see `Derived`; `[[gpu.read]]` are
those of gpu.toml. What is converted with `tune = true` is trained on, as
`[tuned]` says for each size. In `[[says]]` stand `as_good_as` and `within` in
place of `than` where a claim is that nothing is lost, `metric` and
`higher = true` where it is of another column, and `less`, two labels, where it
is of what was lost since.
"""

import dataclasses
import functools
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_tfm.errors import BadInput, need
from shared_tfm.report import interval, sweep_file
from shared_tfm.report import sweep as sweeps
from shared_tfm.report.results_file import Result
from shared_tfm.report.sweep import Sweep

HERE = Path(__file__).parent
SIZES = ('cpu', 'gpu')


@dataclasses.dataclass(frozen=True)
class Says:
  """One comparison that somebody's claim comes down to.

  Attributes:
    who: the paper, and where in it.
    claim: what it says, in a sentence without its stop.
    better: the label of the row that is to be better, or as good.
    than: ... of the other one.
    within: how much worse it may be; 0: it is to be better.
    less: the labels of what is subtracted from both, if anything is.
    metric: the column they are compared by.
    higher: whether more of it is better.
  """

  who: str
  claim: str
  better: str
  than: str
  within: float
  less: tuple[str, ...]
  metric: str
  higher: bool


@dataclasses.dataclass(frozen=True)
class Derived:
  """A row that is made of a trained one, for each of its seeds.

  Attributes:
    label: its name in the csv file.
    of: the label of the trained row.
    converts: whether it is converted and then scored, and not read otherwise.
    flags: words of `convert`; of what is read otherwise, `--config....`
    loops: how often its core is run then; 0: as in training.
  """

  label: str
  of: str
  converts: bool
  flags: tuple[str, ...] = ()
  loops: int = 0


@dataclasses.dataclass(frozen=True)
class Claim:
  """A folder of `experiments/`.

  Attributes:
    folder: its path.
    question: what it asks.
    metric: the column that rows are compared by.
    says: what is said, comparison by comparison.
    rows: what is made of trained rows, by the size, `cpu` or `gpu`.
    shown: more columns of its table.
    equal: what else than steps its rows are to have alike, each time a form.
  """

  folder: Path
  question: str
  metric: str
  says: tuple[Says, ...]
  rows: Mapping[str, tuple[Derived, ...]]
  shown: tuple[str, ...] = ()
  equal: tuple[str, ...] = ()

  @functools.cached_property
  def sweeps(self) -> dict[str, Sweep]:
    """What each form trains."""
    found = {}
    for size in SIZES:
      path = self.folder / f'{size}.toml'
      if not path.exists():
        continue
      found[size] = sweep = sweep_file.load(path)
      for equal in self.equal:
        found[f'{size}-{equal}'] = sweeps.changed(sweep, [], equal=equal)
    return found

  def derived(self, form: str) -> tuple[Derived, ...]:
    """The rows of a form that are made of trained ones."""
    return self.rows[form.split('-')[0]]

  def labels(self, form: str) -> list[str]:
    """Of all rows of a form, in order."""
    derived = [row.label for row in self.derived(form)]
    return [*self.sweeps[form].labels, *derived]


def names() -> list[str]:
  """The folders that are claims."""
  return sorted(path.parent.name for path in HERE.glob('*/claim.toml'))


def read(name: str) -> Claim:
  """The claim in a folder of `experiments/`.

  Raises:
    BadInput: there is none, or its rows and what is said do not fit together.
  """
  file = HERE / name / 'claim.toml'
  need(file.is_file(), f'there is no claim {name}; {", ".join(names())}')
  try:
    given = tomllib.loads(file.read_text())
    claim = Claim(
      file.parent,
      given['question'],
      given['metric'],
      tuple(_says(each, given) for each in given['says']),
      {size: tuple(_derived(given, size)) for size in SIZES},
      tuple(given.get('shown', ())),
      tuple(given.get('equal', ())),
    )
  except tomllib.TOMLDecodeError as error:
    raise BadInput(f'{file}: {error}') from None
  except KeyError as error:
    raise BadInput(f'{file}: there is no {error}') from None
  for form, sweep in claim.sweeps.items():
    labels = claim.labels(form)
    for label in labels:
      need(labels.count(label) == 1, f'{file}: the row {label} is there twice')
    for row in claim.derived(form):
      need(
        row.of in sweep.labels,
        f'{file}: {row.label} is made of {row.of}, which is not trained',
      )
    for each in claim.says:
      for label in (each.better, each.than, *each.less):
        need(label in labels, f'{file}: there is no row {label}')
  return claim


def _says(given: Mapping[str, Any], claim: Mapping[str, Any]) -> Says:
  return Says(
    given['who'],
    given['claim'],
    given['better'],
    given['as_good_as'] if 'within' in given else given['than'],
    given.get('within', 0.0),
    tuple(given.get('less', ())),
    given.get('metric', claim['metric']),
    given.get('higher', claim.get('higher', False)),
  )


def _derived(claim: Mapping[str, Any], size: str) -> Iterator[Derived]:
  """The rows that are not trained; the size's own, where it has some."""
  tuned = '--tune', *claim.get('tuned', {}).get(size, ())
  for kind in ('read', 'convert'):
    for given in claim.get(size, {}).get(kind, claim.get(kind, ())):
      for of in given['of'] if isinstance(given['of'], list) else [given['of']]:
        yield Derived(
          given['label'].format(of=of),
          of,
          kind == 'convert',
          (*given.get('flags', ()), *(tuned if given.get('tune') else ())),
          given.get('loops', 0),
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What the measurements say of one comparison.

  Attributes:
    says: the comparison.
    difference: how much worse `than` is than `better`, the mean over seeds.
    low: the lower end of its interval; None where there are too few seeds.
    high: the higher end, so too.
  """

  says: Says
  difference: float
  low: float | None
  high: float | None

  @property
  def word(self) -> str:
    """Reproduced where all of the interval is on the claim's side.

    Not reproduced where all is on the other, and else not decidable by as much
    training, or as many seeds, as there were.
    """
    least = -self.says.within
    if self.low is None or self.high is None:
      return 'not decidable'
    if self.low > least:
      return 'reproduced'
    return 'not reproduced' if self.high < least else 'not decidable'


def verdicts(claim: Claim, results: Sequence[Result]) -> Iterator[Verdict]:
  """What the results of one form say of each comparison.

  Raises:
    BadInput: there is none of a row, as of a csv file that is older than it.
  """
  measured = {result.scheme for result in results}
  for says in claim.says:
    for label in (says.better, says.than, *says.less):
      need(
        label in measured,
        f'{claim.folder.name} was not measured with the row {label}',
      )
  for says in claim.says:
    sign = -1 if says.higher else 1
    known: dict[str, dict[int, float]] = {}
    for result in results:
      of_row = known.setdefault(result.scheme, {})
      of_row[result.seed] = sign * value(result, says.metric)
    better, than = known[says.better], known[says.than]
    if says.less:
      before, after = (known[label] for label in says.less)
      better = {seed: v - before[seed] for seed, v in better.items()}
      than = {seed: v - after[seed] for seed, v in than.items()}
    found = interval.difference(than, better)
    yield Verdict(says, found.mean, found.low, found.high)


def value(result: Result, metric: str) -> float:
  """A column of a result, measured or counted; nan where a run diverged."""
  return result.scores.get(metric, getattr(result, metric, math.nan))
