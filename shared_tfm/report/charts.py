"""What the report's charts draw, as JSON can hold it.

The page's script draws losses over training, and what each scheme reached
against what it cost. What was not measured, or is not finite, is None.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shared_tfm.report import results_file
from shared_tfm.report.plots import EARLY, LINES, MARKERS, Curves
from shared_tfm.report.results_file import Result


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


def data(results: Sequence[Result], curves: Curves) -> dict[str, Any]:
  """Schemes, their curves and their points.

  Args:
    results: at least one.
    curves: the evaluations of each run, by scheme and seed; those of schemes
      without a result are left out.

  Returns:
    `schemes`, in order of first appearance, each a name with a colour and a
    marker; `curves`, one for each run; `costs`; and `points`, one for each
    scheme: `loss` and each cost as (mean, sample standard deviation).
  """
  groups = results_file.schemes(results)
  places = {scheme: place for place, scheme in enumerate(groups)}
  flops = {run.scheme: run.flops_per_token for run in results}
  return {
    'early': EARLY,
    'schemes': [
      {'name': name, 'hue': hue(place), 'mark': MARKERS[place % len(MARKERS)]}
      for name, place in places.items()
    ],
    'curves': [
      {
        'scheme': places[scheme],
        'seed': seed,
        'steps': [point.step for point in curve],
        'tokens': [point.tokens for point in curve],
        'flops': [point.tokens * flops[scheme] for point in curve],
        'loss': [_finite(point.validation_loss) for point in curve],
      }
      for (scheme, seed), curve in curves.items()
      if scheme in places
    ],
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


def hue(place: int) -> int:
  """Which of the colours the scheme at this place has."""
  return place % len(LINES)


def _stat(values: Sequence[float]) -> tuple[float | None, float | None]:
  """As the summary has them: one seed has no spread."""
  spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
  return _finite(float(np.mean(values))), _finite(spread)


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None
