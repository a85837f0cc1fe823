"""What fewer bits cost a trained run: a table for weights, one for activations.

Command: python -m experiments.quantisation.measure RUN [RUN ...]

Of every run it rounds the best checkpoint, without training, and scores the
same batches of the validation split; ranges are those of some training batches.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from shared_tfm import accounting, config_file, tasks
from shared_tfm.compress import begin, convert, sources
from shared_tfm.compress.calibrate import calibrated
from shared_tfm.config import Config
from shared_tfm.layers.ranges import RANGES
from shared_tfm.train.programs import evaluate, programs

WEIGHTS = 'int8', 'int4', 'int4:32', 'int4:16'
PERCENTILES = 100.0, 99.9, 99.0
BATCHES = 8  # that ranges are taken from
SCORED = 32  # of the validation split


def rounded(
  source: sources.Source, dataset: Any, **fields: Any
) -> tuple[Config, Any, float]:
  """The config, the state and the loss of a run with some of `quantise`."""
  given = [f'--config.model.quantise.{k}={v}' for k, v in fields.items()]
  config = config_file.changed(source.config, given)
  fitted = convert.convert(
    source.config.model, source.params, {}, config.model, None
  )
  state = begin.state_of(config, fitted.params, source.variables)
  if config.model.quantise.activations != 'none':
    state = calibrated(config, state, dataset, BATCHES)
  return (
    config,
    state,
    evaluate(programs(config), state, dataset, SCORED)['loss'],
  )


def weights(source: sources.Source, dataset: Any, loss: float) -> Iterator[str]:
  """Lines of the table of weights."""
  yield '| weights | bytes of weights | loss | more than float32 |'
  yield '|:--|--:|--:|--:|'
  whole = accounting.describe(source.config)['weight_bytes']
  yield f'| float32 | {whole:,} | {loss:.4f} | |'
  for spec in WEIGHTS:
    config, state, found = rounded(
      source, dataset, weights=spec, store='integers'
    )
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert held == accounting.describe(config)['weight_bytes']
    yield f'| {spec} | {held:,} | {found:.4f} | {found - loss:+.4f} |'


def activations(
  source: sources.Source, dataset: Any, loss: float
) -> Iterator[str]:
  """Lines of the table of activations, weights being float32."""
  yield '| a range for each | percentile | more than float32 | wider |'
  yield '|:--|--:|--:|--:|'
  for ranges in ('owner', 'visit'):
    for percentile in PERCENTILES:
      _, state, found = rounded(
        source,
        dataset,
        activations='int8',
        ranges=ranges,
        percentile=percentile,
      )
      # A map's widest range over its visits' geometric mean.
      of_maps = flatten_dict(jax.device_get(state.variables[RANGES])).values()
      wider = np.mean([np.max(r) / np.exp(np.mean(np.log(r))) for r in of_maps])
      more = f'{found - loss:+.5f}'
      yield f'| {ranges} | {percentile:g} | {more} | {wider:.2f} |'


def main(folders: Sequence[str]) -> None:
  """Prints both tables for every run."""
  for folder in folders:
    source = sources.load(Path(folder))
    dataset = tasks.prepare(source.config, Path(folder))
    plain = rounded(source, dataset)[-1]
    print(f'\n{folder}: {source.config.model.sharing.layer}\n', flush=True)
    for table in (weights, activations):
      for line in table(source, dataset, plain):
        print(line, flush=True)
      print(flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
