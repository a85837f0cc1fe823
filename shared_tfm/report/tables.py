"""The summary of a comparison: what follows from results.csv.

It has one row a scheme, in the order in which the schemes first appear, with
the mean over seeds and the sample standard deviation.
"""

from collections.abc import Sequence
from math import isfinite, nan

import numpy as np

from shared_tfm.report.columns import (
  COLUMNS,
  JUDGED,
  SCORES,
  Column,
  Said,
  Stat,
  Summary,
  adjusted,
  versus,
)
from shared_tfm.report.interval import FEWEST, LEVEL, difference
from shared_tfm.report.results_file import ADJUSTED, Result, header, schemes


def summary(results: Sequence[Result]) -> list[Summary]:
  """One row a scheme, in order of first appearance."""
  rows: list[Summary] = []
  for scheme, runs in schemes(results).items():
    stats = {}
    for name in header(runs)[2:]:
      if name == ADJUSTED:
        continue
      values = {
        run.seed: run.scores.get(name, getattr(run, name, nan)) for run in runs
      }
      every = [*values.values()]
      spread = float(np.std(every, ddof=1)) if len(runs) > 1 else None
      stats[name] = Stat(float(np.mean(every)), spread, values)
    first = rows[0].stats if rows else {}
    against = (
      difference(stats[JUDGED].by_seed, first[JUDGED].by_seed) if rows else None
    )
    rows.append(Summary(scheme, len(runs), stats, against, runs[0].adjusted))
  return rows


def note(rows: Sequence[Summary]) -> str:
  """The line under a summary: what the numbers stand against."""
  known = [
    value
    for row in rows
    for value in _by_seed(row, 'unigram_bits_per_byte')
    if isfinite(value)  # those of a run that diverged are not
  ]
  unigram = ''
  if known:
    unigram = f'unigram entropy {np.mean(known):.3f} bits per byte; '
  least, most = min(r.seeds for r in rows), max(r.seeds for r in rows)
  seeds = f'{most} seed{"s" * (most > 1)}'
  seeds = f'{least} to {seeds}' if least < most else seeds
  told = ''
  if len(rows) > 1 and most >= FEWEST:
    told = (
      f'; vs {rows[0].scheme}: the difference in validation loss seed by seed,'
      f' its {100 * LEVEL:.0f} % interval by bootstrap-t over seeds, and better'
      ' or worse where 0 lies outside'
    )
  if len(rows) > 1 and least < FEWEST:
    told += f'; fewer than {FEWEST} seeds tell no schemes apart'
  return (
    f'{unigram}{seeds} for each scheme;'
    f' ± is the sample standard deviation over seeds{told}{_lost(rows)}'
  )


def _lost(rows: Sequence[Summary]) -> str:
  """Which schemes have no mean, since runs of theirs diverged."""
  lost = {
    row.scheme: (sum(not isfinite(v) for v in _by_seed(row, JUDGED)), row.seeds)
    for row in rows
  }
  named = [f'{name} ({n} of {of} seeds)' for name, (n, of) in lost.items() if n]
  return f'; diverged, so without a mean: {", ".join(named)}' if named else ''


def _by_seed(row: Summary, field: str) -> list[float]:
  """What each seed of a scheme measured; nothing where none did."""
  return [*row.stats[field].by_seed.values()] if field in row.stats else []


def columns(rows: Sequence[Summary]) -> list[Column | Said]:
  """What a summary shows: `COLUMNS`, scores that were measured, verdicts."""
  measured = [
    column
    for name, column in SCORES.items()
    if name != 'unigram_bits_per_byte' and any(name in r.stats for r in rows)
  ]
  place = 1 + [c.field for c in COLUMNS].index('validation_loss')
  found: list[Column | Said] = [*COLUMNS[:place], *measured, *COLUMNS[place:]]
  if any(row.versus for row in rows):
    found.insert(place, Said(f'vs {rows[0].scheme}', 'versus', versus))
  if any(row.adjusted for row in rows):
    found.append(Said('adjusted', 'adjusted', adjusted))
  return found


def render(rows: Sequence[Summary]) -> str:
  """The summary as aligned text that is also a Markdown table, and its note.

  Args:
    rows: what `summary` returns; at least one.
  """
  shown = columns(rows)
  table = [['scheme', *(column.title for column in shown)]]
  table += [[row.scheme, *(c.cell(row) for c in shown)] for row in rows]
  table = [
    [' '.join(cell.split()).replace('|', r'\|') for cell in line]
    for line in table
  ]
  widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
  lines = []
  for name, *cells in table:
    right = map(str.rjust, cells, widths[1:])
    lines.append(f'| {" | ".join([name.ljust(widths[0]), *right])} |')
  rules = ['-' * (width + 1) for width in widths]
  lines.insert(1, f'|:{":|".join([rules[0] + "|" + rules[1], *rules[2:]])}:|')
  return '\n'.join([*lines, '', note(rows)])
