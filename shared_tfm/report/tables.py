"""The summary of a comparison: what follows from results.csv.

It has one row a scheme, in the order in which the schemes first appear, with
the mean over seeds and the sample standard deviation.
"""

from collections.abc import Sequence
from math import nan

import numpy as np

from shared_tfm.report.columns import COLUMNS, SCORES, Column, Stat, Summary
from shared_tfm.report.results_file import Result, header, schemes


def summary(results: Sequence[Result]) -> list[Summary]:
  """One row a scheme, in order of first appearance."""
  rows = []
  for scheme, runs in schemes(results).items():
    stats = {}
    for name in header(runs)[2:]:
      values = [run.scores.get(name, getattr(run, name, nan)) for run in runs]
      spread = float(np.std(values, ddof=1)) if len(runs) > 1 else None
      stats[name] = Stat(float(np.mean(values)), spread)
    rows.append(Summary(scheme, len(runs), stats))
  return rows


def note(rows: Sequence[Summary]) -> str:
  """The line under a summary: what the numbers stand against."""
  unigrams = [row.stats.get('unigram_bits_per_byte') for row in rows]
  known = [stat.mean for stat in unigrams if stat]
  unigram = ''
  if known:
    unigram = f'unigram entropy {np.mean(known):.3f} bits per byte; '
  least, most = min(r.seeds for r in rows), max(r.seeds for r in rows)
  seeds = f'{most} seed{"s" * (most > 1)}'
  seeds = f'{least} to {seeds}' if least < most else seeds
  return (
    f'{unigram}{seeds} for each scheme;'
    ' ± is the sample standard deviation over seeds'
  )


def columns(rows: Sequence[Summary]) -> list[Column]:
  """What a summary shows: `COLUMNS`, and the scores that were measured."""
  measured = [
    column
    for name, column in SCORES.items()
    if name != 'unigram_bits_per_byte' and any(name in r.stats for r in rows)
  ]
  place = 1 + [c.field for c in COLUMNS].index('validation_loss')
  return [*COLUMNS[:place], *measured, *COLUMNS[place:]]


def render(rows: Sequence[Summary]) -> str:
  """The summary as aligned text that is also a Markdown table, and its note.

  Args:
    rows: what `summary` returns; at least one.
  """
  shown = columns(rows)
  table = [['scheme', *(column.title for column in shown)]]
  for row in rows:
    name = ' '.join(row.scheme.split()).replace('|', r'\|')
    table.append([name, *(column.cell(row) for column in shown)])
  widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
  lines = []
  for name, *cells in table:
    right = map(str.rjust, cells, widths[1:])
    lines.append(f'| {" | ".join([name.ljust(widths[0]), *right])} |')
  rules = ['-' * (width + 1) for width in widths]
  lines.insert(1, f'|:{":|".join([rules[0] + "|" + rules[1], *rules[2:]])}:|')
  return '\n'.join([*lines, '', note(rows)])
