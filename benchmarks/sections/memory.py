"""Whether memory beyond the layers' inputs grows with depth."""

from collections.abc import Iterator
from typing import Any

from benchmarks import ours
from benchmarks.rows import Plan, Row
from shared_tfm import accounting
from shared_tfm.config.precision import BYTES

ROWS = 8
MODEL = {'d_model': 128, 'num_heads': 4, 'max_len': 128, 'remat': 'full'}


def rows(plan: Plan) -> Iterator[Row]:
  """Temporary memory of a step, as a part of one bank and one working set.

  Counted are the temporaries of the compiled training step with `remat=full`,
  less the inputs of the visits that it keeps (visits x B x L x D numbers of the
  computation's dtype). They are divided by what cannot be avoided: the bank in
  float32, for its gradient, and the working set, which is what the step of a
  single layer has beyond its own bank and its one input (logits are in it).
  Above 1, the scan holds what it need not.
  """
  one, _ = _beyond(1, 'none')
  working = one - _bank(1, 'none')
  for scheme in ('all',) if plan.quick else ('none', 'all', 'cycle:3'):
    for visits in (3, 6) if plan.quick else (12, 96):
      beyond, inputs = _beyond(visits, scheme)
      bank = _bank(visits, scheme)
      ratio = beyond / (bank + working)
      facts = {
        'MB beyond inputs': beyond / 1e6,
        'inputs': inputs / 1e6,
        'bank': bank / 1e6,
        'working set': working / 1e6,
      }
      yield Row(f'{scheme}, {visits} visits', ratio, (ratio, ratio), 0, facts)


def _model(visits: int, scheme: str) -> dict[str, Any]:
  return {**MODEL, 'num_layers': visits, 'sharing': {'layer': scheme}}


def _beyond(visits: int, scheme: str) -> tuple[int, int]:
  """Bytes of temporaries beyond the visits' inputs, and of those inputs."""
  made = ours.programs(_model(visits, scheme), ROWS)
  (step,) = made.train.compiled.values()
  model = made.config.model
  inputs = visits * ROWS * model.max_len * model.d_model
  inputs *= BYTES[model.precision.compute]
  return step.memory_analysis().temp_size_in_bytes - inputs, inputs


def _bank(visits: int, scheme: str) -> int:
  """Bytes of what layers store, in float32."""
  model = ours.programs(_model(visits, scheme), ROWS).config.model
  stored = accounting.parameters(model)['layers_stored']
  return stored * BYTES['float32']
