"""What `convert --prune` can be asked for, and the network without it.

    magnitude:0.5   half of the layers' weights, by size: they are masked
    2:4             two of every four inputs' weights
    heads:2         two heads of every layer; neurons:0.5 half of the neurons
    visits:3        three visits

An amount is what is taken away: a number, or below 1 a share.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax

from shared_tfm import config as configs
from shared_tfm import tasks
from shared_tfm.compress import begin, importance, left_out, sources, units
from shared_tfm.config import Config, Mesh, Prune
from shared_tfm.errors import need, unknown
from shared_tfm.train import visits
from shared_tfm.train.programs import programs

SCORES = {
  'heads': ('magnitude', 'gradient'),
  'neurons': ('magnitude', 'gradient'),
  'visits': ('similarity', 'loss'),
}
BATCHES = 16  # of training, to score by, where train.eval_batches says all


def parse(text: str) -> tuple[str, float]:
  """A kind, and how much of it is taken away.

  Raises:
    BadInput: it is not written as above.
  """
  kind, _, number = text.partition(':')
  try:
    amount = float(number)
  except ValueError:
    amount = math.nan
  if re.fullmatch('[0-9]+', kind):
    return 'pattern', amount
  known = ('magnitude', *SCORES)
  if kind not in known:
    raise unknown('kind of --prune', kind, known)
  share = kind == 'magnitude'
  need(
    0 < amount < 1 or (amount >= 1 and amount.is_integer() and not share),
    f'--prune={kind} is followed by a share below 1'
    f'{"" if share else " or a number"} that is taken away, as'
    f' {kind}:{0.5 if share else 2}, got {text!r}',
  )
  return kind, amount


def masks(config: Config, text: str) -> Config:
  """The config of a run whose weights are masked before it begins.

  Args:
    config: any.
    text: 'magnitude:S' or a pattern; of all else the config is as it was.
  """
  kind, amount = parse(text) if text else ('', 0.0)
  if kind == 'pattern':
    prune = Prune(method='magnitude', pattern=text)
  elif kind == 'magnitude':
    prune = Prune(method='magnitude', sparsity=amount)
  else:
    return config
  return dataclasses.replace(config, prune=prune)


def smaller(
  source: sources.Source, text: str, score: str
) -> tuple[sources.Source, dict[str, Any]]:
  """A network without heads, neurons or visits.

  Args:
    source: the network.
    text: what is taken away.
    score: by which it is chosen, of SCORES; '': the first.

  Returns:
    The network, and what is to be known of it.

  Raises:
    BadInput: it has not so many, or is one that they cannot be taken out of.
  """
  kind, amount = parse(text)
  score = score or SCORES[kind][0]
  if score not in SCORES[kind]:
    raise unknown(f'--score of {kind}', score, SCORES[kind])
  alone = dataclasses.replace(source.config, mesh=Mesh())
  own = dataclasses.replace(source, config=alone)
  if kind == 'visits':
    made, told = _without_visits(own, amount, score)
  else:
    made, told = _without_units(own, kind, amount, score)
  config = dataclasses.replace(made.config, mesh=source.config.mesh)
  return dataclasses.replace(
    made, config=configs.cross(dataclasses.asdict(config)), opt_state=None
  ), {'score': score, **told}


def _without_visits(
  source: sources.Source, amount: float, score: str
) -> tuple[sources.Source, dict[str, Any]]:
  config, n = source.config, source.config.model.num_layers
  left_out.check(config.model)
  count = round(amount * n) if amount < 1 else int(amount)
  need(
    0 < count < n,
    f'--prune=visits takes from 1 to {n - 1} of {n} visits, got {count}',
  )
  measure = left_out.influences if score == 'similarity' else left_out.losses
  scores = measure(config, source.params, source.variables, _batches(source))
  gone = sorted(scores.argsort(kind='stable')[:count].tolist())
  model, params, variables = left_out.without(
    config.model, source.params, source.variables, gone
  )
  made = dataclasses.replace(
    source,
    config=dataclasses.replace(config, model=model),
    params=params,
    variables=variables,
  )
  return made, {'visits': gone, 'scores': scores.tolist()}


def _without_units(
  source: sources.Source, kind: str, amount: float, score: str
) -> tuple[sources.Source, dict[str, Any]]:
  config, params = source.config, source.params
  units.check(config.model, kind)
  if score == 'magnitude':
    scores = importance.by_size(config.model, params, kind)
  else:
    state = begin.state_of(config, params, source.variables)
    slope = jax.jit(visits.visit_gradients(config))
    slopes = (slope(state, batch) for batch in _batches(source))
    scores = importance.by_gradient(config, params, slopes, kind)
  model, params = units.taken_out(config.model, params, scores, kind, amount)
  made = dataclasses.replace(
    source, config=dataclasses.replace(config, model=model), params=params
  )
  sizes = ('num_heads', 'num_kv_heads', 'd_ff')
  return made, {name: getattr(model, name) for name in sizes}


def _batches(source: sources.Source) -> Iterator[Any]:
  """Batches of the training split, on the device."""
  config = source.config
  dataset = tasks.prepare(config, source.folder)
  count = config.train.eval_batches or BATCHES
  for batch in dataset.evaluation('train', count):
    yield programs(config).put(batch)
