"""What the report's charts draw, as JSON can hold it.

The page's script draws losses over training, and what each scheme reached
against what it cost. What was not measured, or is not finite, is None.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shared_tfm.report import results_file
from shared_tfm.report.plots import EARLY, LINES, MARKERS, Curves, Point
from shared_tfm.report.results_file import Result

MOST = 400  # points of a curve of training losses


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a scheme takes: less is better."""

  name: str
  title: str
  unit: str  # '', 'FLOP', 's' or 'B'
  of: Callable[[Result], float]


COSTS = (
  Cost('params', 'stored parameters', '', lambda run: run.stored_params),
  Cost(
    'flops',
    'training compute',
    'FLOP',
    lambda run: run.flops_per_token * run.tokens,
  ),
  Cost(
    'seconds',
    'time of training steps',
    's',
    lambda run: run.tokens / (run.tokens_per_second or math.nan),
  ),
  Cost('memory', 'peak memory', 'B', lambda run: run.peak_memory_bytes),
)


def data(
  results: Sequence[Result], curves: Curves, training: Curves
) -> dict[str, Any]:
  """Schemes, their curves and their points.

  Args:
    results: at least one.
    curves: the evaluations of each run, by scheme and seed; those of runs
      without a result are left out.
    training: the training losses of each run, so too.

  Returns:
    `schemes`, in order of first appearance, each a name with a colour and a
    marker; `curves`, of `validation` and of `training`, each a list of one for
    each run; `costs`; and `points`, one for each scheme: `loss` and each cost
    as (mean, sample standard deviation).
  """
  groups = results_file.schemes(results)
  places = {scheme: place for place, scheme in enumerate(groups)}
  losses = {'validation': curves, 'training': thinned(training)}
  return {
    'early': EARLY,
    'schemes': [
      {'name': name, 'hue': hue(place), 'mark': MARKERS[place % len(MARKERS)]}
      for name, place in places.items()
    ],
    'curves': {
      name: [
        _line(run, places[run.scheme], found[run.scheme, run.seed])
        for run in results
        if (run.scheme, run.seed) in found
      ]
      for name, found in losses.items()
    },
    'costs': [
      {'name': cost.name, 'title': cost.title, 'unit': cost.unit}
      for cost in COSTS
    ],
    'points': [
      {
        'seeds': len(runs),
        'loss': _stat([run.validation_loss for run in runs]),
        **{cost.name: _stat([cost.of(run) for run in runs]) for cost in COSTS},
      }
      for runs in groups.values()
    ],
  }


def thinned(training: Curves, most: int = MOST) -> Curves:
  """Curves of at most so many points, each the mean of some in a row.

  All have windows of one length, so that seeds keep steps in common. What was
  logged is the mean since the last time, so that this is one over longer.
  """
  longest = max(map(len, training.values()), default=0)
  window = max(math.ceil(longest / most), 1)
  return {
    run: [
      dataclasses.replace(
        curve[min(start + window, len(curve)) - 1],
        loss=statistics.fmean(p.loss for p in curve[start : start + window]),
      )
      for start in range(0, len(curve), window)
    ]
    for run, curve in training.items()
  }


def _line(run: Result, place: int, curve: Sequence[Point]) -> dict[str, Any]:
  """A curve of one run; losses in nats per target."""
  return {
    'scheme': place,
    'seed': run.seed,
    'steps': [point.step for point in curve],
    'tokens': [point.tokens for point in curve],
    'flops': [point.tokens * run.flops_per_token for point in curve],
    'loss': [_finite(point.loss) for point in curve],
  }


def hue(place: int) -> int:
  """Which of the colours the scheme at this place has."""
  return place % len(LINES)


def _stat(values: Sequence[float]) -> tuple[float | None, float | None]:
  """As the summary has them: one seed has no spread."""
  spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
  return _finite(float(np.mean(values))), _finite(spread)


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None
