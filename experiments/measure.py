"""Runs a claim of experiments/ and writes what was measured beside it.

Command: python -m experiments.measure CLAIM [--form=cpu-params]
           [--processes=2] [--workdir=runs/claims]

What its sweep file says is trained as `compare --sweep` does, in
WORKDIR/CLAIM-FORM; what is done is not done again, and a run that was cut goes
on. Rows that are made of trained ones are scored by their last weights, on the
same batches of the validation split.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any

from experiments import claims, overview
from experiments.claims import Claim, Derived
from shared_tfm import compile_cache, config_file, files, heap, tasks
from shared_tfm import config as configs
from shared_tfm.__main__ import main as command
from shared_tfm.errors import BadInput, Interrupted, need, unknown
from shared_tfm.report import compare, results_file, trained
from shared_tfm.report.columns import SCORES
from shared_tfm.report.results_file import Result
from shared_tfm.report.sweep import SEPARATORS
from shared_tfm.train import loop, runs
from shared_tfm.train.programs import evaluate, programs

DIVERGED = 3  # what the command then ends with
UNTRAINED = {
  'train_loss': nan,
  'steps': 0,
  'tokens': 0,
  'tokens_per_second': nan,
  'peak_memory_bytes': 0,
}


def measure(
  claim: Claim, form: str, processes: int, workdir: Path
) -> list[Result]:
  """Trains and scores all rows of a form, seeds inside rows."""
  folder = workdir / f'{claim.folder.name}-{form}'
  results = compare.run(claim.sweeps[form], folder, processes)
  seeds = sorted({result.seed for result in results})
  rows = claim.derived(form)
  if not rows:
    return results
  with runs.alone(folder / 'converted'):
    return [*results, *_derived(rows, seeds, folder)]


def _derived(
  rows: tuple[Derived, ...], seeds: list[int], folder: Path
) -> Iterator[Result]:
  """The rows that are made of trained ones."""
  for row in rows:
    for seed in seeds:
      print(f'{row.label}, seed {seed}', file=sys.stderr, flush=True)
      there = _place(folder / 'runs', row.of, seed)
      ended = (there / runs.RESULT).exists()
      if ended and row.converts:
        made = _place(folder / 'converted', row.label, seed)
        ended = _convert(row, seed, there, made)
        there = made if ended else there
      yield _scored(row, seed, there) if ended else _lost(row, seed, there)


def _place(folder: Path, label: str, seed: int) -> Path:
  return folder / label.translate(SEPARATORS) / f'seed-{seed}'


def _convert(row: Derived, seed: int, source: Path, made: Path) -> bool:
  """Runs the verb `convert`, its table not shown; False where it diverged.

  Raises:
    BadInput: it failed, or the row was converted otherwise before.
  """
  done = made.with_name(f'{made.name}-done')
  told = ' '.join(row.flags)
  if done.exists():
    before = done.read_text()
    need(before == told, f'{made} was made by {before}, not by {told}')
    return True
  if '--tune' not in row.flags and made.exists():  # cut before it was said
    shutil.rmtree(made)
  words = ['convert', f'--from={source}', f'--workdir={made}']
  words += ['--checkpoint=latest', f'--seed={seed}', *row.flags]
  with contextlib.redirect_stdout(io.StringIO()):
    status = command(words)
  need(
    status in (0, DIVERGED),
    f'{row.label}: {" ".join(words)} ended with {status}',
  )
  if status == 0:
    files.replace(done, told)
  return status == 0


def _lost(row: Derived, seed: int, source: Path) -> Result:
  """A row that nothing came of, as what it is made of diverged, or it did."""
  run = trained.Run(row.label, seed, runs.read_config(source), source)
  return trained.result(run, UNTRAINED | {'validation_loss': nan}, '')


def _scored(row: Derived, seed: int, folder: Path) -> Result:
  """What a run scores as it is, or as it is read."""
  config, state = loop.load(folder, 'latest')
  if not row.converts:
    config = config_file.changed(config, row.flags)
    if row.loops:
      config = configs.with_loops(config, row.loops)
  dataset = tasks.prepare(config, folder)
  batches = config.train.eval_batches
  scores = evaluate(programs(config), state, dataset, batches)
  measured: dict[str, Any] = UNTRAINED
  if (folder / runs.RESULT).exists():
    measured = measured | json.loads((folder / runs.RESULT).read_text())
  measured = measured | {'validation_loss': scores['loss']}
  made = trained.result(
    trained.Run(row.label, seed, config, folder), measured, ''
  )
  found = {name: scores[name] for name in SCORES if name in scores}
  return dataclasses.replace(made, scores=found)


def main() -> int:
  """Measures, and writes the csv file and the pages."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  parser.add_argument('claim', metavar='CLAIM', help=', '.join(claims.names()))
  parser.add_argument('--form', default='cpu')
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--workdir', type=Path, default=Path('runs/claims'))
  args = parser.parse_args()
  compile_cache.turn_on(os.environ)
  heap.keep()
  try:
    claim = claims.read(args.claim)
    if args.form not in claim.sweeps:
      raise unknown(f'--form of {args.claim}', args.form, [*claim.sweeps])
    results = measure(claim, args.form, args.processes, args.workdir)
    results_file.write(claim.folder / f'{args.form}.csv', results)
    overview.write()
  except BadInput as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except Interrupted as stopped:
    return 128 + stopped.signal
  return 0


if __name__ == '__main__':
  sys.exit(main())
