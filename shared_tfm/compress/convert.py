"""From any sharing scheme to any other: weights that exist, stored anew.

Every visit's weights are made out of the one bank, and the other is fitted to
them (sharing/fit.py). Dense to shared, shared to dense and one table to another
are the same two steps; where the new specs can say what the old ones did, they
do so exactly.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from shared_tfm import accounting
from shared_tfm.config import Config, Model, ranges, sides
from shared_tfm.config.loops import is_plain, loops
from shared_tfm.config.shapes import components
from shared_tfm.errors import need
from shared_tfm.model import untied
from shared_tfm.model.storage import as_held, layout
from shared_tfm.sharing import fit

RANDOM = 'random'  # no fit at all
STARTS = (*fit.STARTS, RANDOM)

# Fields of a model that may be others than where the weights are from: what is
# shared, what is rounded, and what changes neither a shape nor a function.
_FREE = {
  'sharing',
  'sharing_decoder',
  'shared_gradient',
  'tables',
  'masked',
  'dropout',
  'core_dropout',
  'dtype',
  'attention_kernel',
  'remat',
  'remat_group',
  'logits_mb',
  'quantise',
  'depth.prelude',  # how often what is run is compared by itself
  'depth.core',
  'depth.coda',
}


@dataclasses.dataclass(frozen=True)
class Fitted:
  """What became of a network's weights.

  Attributes:
    params: the parameters under the new specs.
    largest: the largest difference of any weight of any visit.
    errors: by stack and component, the differences' root mean square over that
      of the weights.
  """

  params: Any
  largest: float
  errors: dict[str, float]

  @property
  def exact(self) -> bool:
    """Whether every visit has the weights it had."""
    return self.largest == 0


def check(source: Model, target: Model) -> None:
  """Checks that a network's weights can be stored as another one's.

  Raises:
    BadInput: they differ in more than in what they share; in what.
  """
  theirs = dict(ranges.leaves(dataclasses.asdict(target)))
  for name, a in ranges.leaves(dataclasses.asdict(source)):
    # A length that no table has rows for is a bound, and nothing more.
    free = name == 'max_len' and source.position != 'learned'
    need(
      a == theirs[name] or free or not _FREE.isdisjoint((name, _group(name))),
      f'a conversion changes what is shared, and model.{name} is {a!r}'
      f' there and {theirs[name]!r} here',
    )
  for group in ('sharing', 'sharing_decoder'):
    for name in ('kv_source', 'map_source'):
      a, b = (getattr(getattr(m, group), name) for m in (source, target))
      need(
        a in ('', b),
        f'model.{group}.{name} {a!r} leaves layers without weights that'
        f' {b or "none"!r} needs',
      )
  need(
    target.tables == 'fixed',
    'a conversion makes fixed tables; it needs --config.adapt.method=none',
  )
  need(
    not sides.across(target),
    f'a conversion fits each stack by itself, got model.sharing.across'
    f' {target.sharing.across!r}',
  )
  plain = is_plain(source) and source.depth.attention == 'loop'
  need(
    plain or loops(source) == loops(target),
    f'model.depth.rule {source.depth.rule} needs the same loops there and here,'
    f' got {tuple(loops(source))} and {tuple(loops(target))}',
  )


def _group(name: str) -> str:
  return name.partition('.')[0]


def convert(
  source: Model,
  params: Any,
  variables: Any,
  target: Model,
  fresh: Any,
  start: str = 'average',
  products: str = 'svd',
  seed: int = 0,
) -> Fitted:
  """The parameters of `target` that are nearest to those of `source`.

  Args:
    source: the network that the weights are of.
    params: its parameters, unboxed.
    variables: its other collections, of which 'tables' is read if it is there.
    target: the same network under other specs; see `check`.
    fresh: new parameters of it, for `start` random.
    start: a key of STARTS; where there is no full-rank level, only averages.
    products: see `fit.fit`.
    seed: so too.

  Raises:
    BadInput: see `check` and `fit.fit`.
  """
  check(source, target)
  given = _arrays(untied.of_visits(source, params, variables))
  found = dict(params)
  for name, side in sides.stacks(target).items():
    if start == RANDOM:
      found[name] = fresh[name]
    else:
      layers = unflatten_dict(given[name])
      parts = components(side), layout(side)
      fitted = fit.fit(layers, *parts, start, products, seed)
      found[name] = as_held(side, fitted)
  made = _arrays(untied.of_visits(target, found, {}))
  return Fitted(found, *_distances(target, given, made))


def _arrays(stacks: Any) -> dict[str, dict[tuple[str, ...], np.ndarray]]:
  return jax.tree.map(
    lambda leaf: np.asarray(leaf, np.float32), jax.device_get(stacks)
  )


def _distances(
  model: Model, given: Mapping[str, Any], made: Mapping[str, Any]
) -> tuple[float, dict[str, float]]:
  """The largest difference, and those of components; see `Fitted`."""
  largest, sums = 0.0, dict[str, np.ndarray]()
  for name, side in sides.stacks(model).items():
    found, leaves = components(side), layout(side)
    for path, leaf in made[name].items():
      reads = np.array(
        found[leaves[path].name].reads or [True] * side.num_layers
      )
      off = (leaf - given[name][path])[reads]
      largest = max(largest, float(np.abs(off).max(initial=0)))
      key = path[0] if name == 'stack' else f'{name}.{path[0]}'
      both = np.array([(off**2).sum(), (given[name][path][reads] ** 2).sum()])
      sums[key] = sums.get(key, 0) + both.astype(np.float64)
  errors = {
    key: float(np.sqrt(off / max(size, 1e-30)))
    for key, (off, size) in sums.items()
  }
  return largest, errors


def counted(config: Config) -> dict[str, Any]:
  """What a report says of one side of a conversion: owners and sizes."""
  described = accounting.describe(config)
  return {
    'owners': described['owners'],
    'stored_params': described['params']['stored'],
    'applied_params': described['params']['applied'],
    'flops_per_token': described['flops_per_token']['forward'],
    'weight_bytes': described['weight_bytes'],
  }
