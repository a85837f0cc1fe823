"""Choosing each row's learning rate from a grid, before its runs are made.

Networks that share want other rates than those that do not. Each row's own
rate, times each factor, trains one run from a seed that is none of the sweep's;
the lowest validation loss at its end decides. The same validation data decides
and is reported, for all rows alike.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from shared_tfm import config as configs
from shared_tfm.config import Config
from shared_tfm.report import budget, trained
from shared_tfm.report.sweep import Row, Sweep
from shared_tfm.report.sweep_file import Solved
from shared_tfm.report.trained import Run

logger = logging.getLogger(__name__)

SEEDS = 10_000  # from the first of a sweep to the one that rates are tuned with
RATE = 'optimizer.learning_rate'


def runs_of(sweep: Sweep, row: Row, config: Config, workdir: Path) -> list[Run]:
  """The runs that a row's rate is chosen by.

  Args:
    sweep: with `tune` and `tune_steps`, which are of a run of the sweep's own
      length: a row that trains for longer is tuned for longer.
    row: of the sweep.
    config: that the row is trained with, but for its rate.
    workdir: the folder of the sweep.
  """
  if sweep.tune_steps:
    part = sweep.tune_steps / sweep.fields['train']['num_steps']
    fields = budget.steps(config, round(part * config.train.num_steps))
    config = configs.with_fields(config, fields)
  seed = config.train.seed + SEEDS
  found = []
  for factor in sorted(sweep.tune):
    rate = config.optimizer.learning_rate * factor
    init = trained.donor(config.train.init_from, row, seed)
    fields = {RATE: rate, 'train.seed': seed, 'train.init_from': init}
    found.append(
      Run(
        f'{row.label} rate {rate:.3g}',
        seed,
        configs.with_fields(config, fields),
        workdir / 'tune' / row.folder / f'rate-{rate:.6g}',
      )
    )
  return found


def chosen(
  label: str, solved: Solved, losses: Mapping[Run, float | None]
) -> Solved:
  """What a row is to have, its learning rate with it.

  Args:
    label: the row's.
    solved: without the rate.
    losses: of validation, by the runs of `runs_of`; None: it diverged.
  """
  rates = {
    one.config.optimizer.learning_rate: math.inf if loss is None else loss
    for one, loss in losses.items()
  }
  best = min(rates, key=lambda rate: (rates[rate], rate))
  note = f'rate {best:.3g}'
  if len(rates) > 1 and best in (min(rates), max(rates)):
    note += ' at the edge'
    logger.warning(
      '%s: the best learning rate, %.3g, is at the edge of the grid of --tune;'
      ' there may be better ones beyond',
      label,
      best,
    )
  return dataclasses.replace(
    solved,
    fields={**solved.fields, RATE: best},
    note=', '.join(filter(None, [solved.note, note])),
    tuned=True,
  )
