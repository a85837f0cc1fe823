"""The pages of all claims, from their csv files: tables and verdicts.

Command: python -m experiments.overview

Between the two marks of the README.md of each claim, and of the README.md of
experiments/, all is written anew, and nothing else.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments import claims
from experiments.claims import HERE, Claim, Verdict, value
from shared_tfm import files
from shared_tfm.errors import need
from shared_tfm.report import results_file
from shared_tfm.report.columns import COLUMNS, SCORES, Column
from shared_tfm.report.results_file import Result

BEGIN, END = '<!-- measured -->', '<!-- end of what was measured -->'
SHOWN = {column.field: column for column in (*COLUMNS, *SCORES.values())}
HEAD = (
  '| question | who says what | verdict | by how much | seeds | form |',
  '|:--|:--|:--|--:|--:|:--|',
)


def write() -> None:
  """Writes all pages."""
  lines = list(HEAD)
  for name in claims.names():
    claim = claims.read(name)
    lines += _rows(claim)
    page = claim.folder / 'README.md'
    files.replace(page, put(page, lines_of(claim)))
  files.replace(HERE / 'README.md', put(HERE / 'README.md', lines))


def put(page: Path, lines: Sequence[str]) -> str:
  """A page with these lines between its marks."""
  text = page.read_text()
  need(
    text.count(BEGIN) == text.count(END) == 1,
    f'{page} needs one {BEGIN} and one {END} after it',
  )
  before, rest = text.split(BEGIN)
  _, after = rest.split(END)
  made = '\n'.join(lines).strip()
  return f'{before}{BEGIN}\n\n{made}\n\n{END}{after}'


def measured(claim: Claim) -> dict[str, list[Result]]:
  """The results of every form that was run."""
  paths = {form: claim.folder / f'{form}.csv' for form in claim.sweeps}
  return {
    form: results_file.read(path)
    for form, path in paths.items()
    if path.exists()
  }


def _rows(claim: Claim) -> Iterator[str]:
  """The lines of a claim in the overview."""
  found = measured(claim)
  link = f'[{claim.question}]({claim.folder.name}/README.md)'
  if not found:
    yield f'| {link} | | not run | | | |'
  for form, results in found.items():
    seeds = len({result.seed for result in results})
    for each in claims.verdicts(claim, results):
      yield (
        f'| {link} | {each.says.who}: {each.says.claim} | {each.word}'
        f' | {_by(each)} | {seeds} | {form} |'
      )
      link = ''


def lines_of(claim: Claim) -> list[str]:
  """The tables and verdicts of a claim's forms."""
  lines: list[str] = []
  for form, results in measured(claim).items():
    lines += ['', *_table(claim, results), '']
    lines += [_sentence(each) for each in claims.verdicts(claim, results)]
    lines += ['', f'Form `{form}`, {_told(claim, form, results)}.']
  return lines or ['Not run yet.']


def _table(claim: Claim, results: Sequence[Result]) -> Iterator[str]:
  metrics = dict.fromkeys([claim.metric, *(s.metric for s in claim.says)])
  columns = [SHOWN[name] for name in (*claim.shown, *metrics)]
  adjusted = any(result.adjusted for result in results)
  titles = [*(column.title for column in columns), *['adjusted'] * adjusted]
  yield f'| | {" | ".join(titles)} |'
  yield f'|:--|{"--:|" * len(columns)}{":--|" * adjusted}'
  for label, rows in results_file.schemes(results).items():
    cells = [_cell(column, rows) for column in columns]
    cells += [rows[0].adjusted] * adjusted
    name = label.replace('|', r'\|')
    yield f'| {name} | {" | ".join(cells)} |'


def _cell(column: Column, rows: Sequence[Result]) -> str:
  """The mean over seeds, and the standard deviation of what is measured."""
  values = [value(row, column.field) for row in rows]
  mean = float(np.mean(values))
  text = column.show(mean, mean)
  if column.spread and len(values) > 1:
    text += f' ± {column.show(float(np.std(values, ddof=1)), mean)}'
  return text


def _sentence(each: Verdict) -> str:
  return f'* {each.says.who}: {each.says.claim}. **{each.word}** ({_by(each)}).'


def _by(each: Verdict) -> str:
  """How much better the one row is than the other, with the interval.

  And the least that it may be, where the claim is that nothing is lost.
  """
  text = f'{each.difference:+.3f}'
  if each.low is not None and each.high is not None:
    text += f' [{each.low:+.3f}, {each.high:+.3f}]'
  return text + (f', -{each.says.within:g} allowed' if each.says.within else '')


def _told(claim: Claim, form: str, results: Sequence[Result]) -> str:
  seeds = len({result.seed for result in results})
  return (
    f'{seeds} seeds; in brackets the 95 % interval of the paired difference:'
    f' `python -m experiments.measure {claim.folder.name} --form={form}`'
  )


if __name__ == '__main__':
  write()
