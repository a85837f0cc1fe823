"""How much of a step is spent waiting for its batch."""

import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks.data_throughput import timed
from benchmarks.rows import Plan, Row
from shared_tfm import config_file

TOP = Path(__file__).parents[2]
STEPS = 50
OVERRIDES = (
  '--config.data.source=text',
  f'--config.data.path={TOP / "shared_tfm"}',
)
QUICK = '--config.model.d_model=16', '--config.model.num_layers=2'


def rows(plan: Plan) -> Iterator[Row]:
  """The part of a training step in which it waits for its data; at most 0.02.

  The quickstart's model on the text of this project's own code, 50 steps a
  round, by `benchmarks/data_throughput.py`. Means over steps, the median over
  rounds. 'Asking' is the same of the time for which a batch was asked for,
  whether or not a step was computed meanwhile; on one device of a CPU none is,
  and both are one.
  """
  config = config_file.load(
    str(TOP / 'configs' / 'quickstart.py'),
    [*OVERRIDES, *QUICK * plan.quick],
  )
  runs = [timed(config, 5 if plan.quick else STEPS) for _ in range(plan.few)]
  for name, which in ('waiting', 'waits'), ('asking', 'asks'):
    parts = [sum(getattr(run, which)) / sum(run.each) for run in runs]
    yield Row(
      name,
      statistics.median(parts),
      (min(parts), max(parts)),
      len(parts),
      seconds={
        'step': [second for run in runs for second in run.each],
        name: [second for run in runs for second in getattr(run, which)],
      },
    )
