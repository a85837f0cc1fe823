"""How much heads and neurons matter, visit by visit.

magnitude  the norm of what leads into a unit times that of what leads out,
           so that one without weights on either side goes first
gradient   |d loss / d gate| of a gate of 1 on what the unit gives, which is
           the sum of weight * gradient over what leads out (Michel et al.,
           1905.10650, section 4.1; Molchanov et al., 1906.10771)
"""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from shared_tfm.config import Config, Model, sides
from shared_tfm.model import untied
from shared_tfm.model.storage import layout
from shared_tfm.sharing.bank import Leaf

INTO = {'heads': ('value',), 'neurons': ('up', 'gate')}
OUT = {'heads': 'out', 'neurons': 'down'}
_PARTS = {
  'heads': ('attention', 'cross_attention'),
  'neurons': ('feed_forward',),
}


def parts(stack: Model, kind: str) -> list[str]:
  """The components of a layer that have such units."""
  return [name for name in _PARTS[kind] if name in stack.sublayers]


def count(stack: Model, kind: str) -> int:
  """How many each of them has."""
  return stack.num_heads if kind == 'heads' else stack.d_ff


def by_size(model: Model, params: Any, kind: str) -> dict[str, np.ndarray]:
  """The scores of all units by magnitude, (visits, units), by stack and part.

  Args:
    model: the network.
    params: its parameters.
    kind: 'heads' or 'neurons'.
  """
  found = {}
  each = jax.device_get(untied.of_visits(model, params, {}))
  for name, stack in sides.stacks(model).items():
    leaves = layout(stack)
    for part in parts(stack, kind):
      total: np.ndarray | float = 1.0
      for inner in (*INTO[kind], OUT[kind]):
        square: np.ndarray | float = 0.0
        for suffix in ('kernel', 'bias'):
          path = (part, inner, suffix)
          if path in leaves and leaves[path].units:
            of_units = _by_unit(each[name][path], leaves[path])
            square = square + (of_units**2).sum(axis=-1)
        if isinstance(square, np.ndarray):
          heads = count(stack, kind)
          norm = np.sqrt(square)  # of values, one for several heads
          total = total * norm.repeat(heads // norm.shape[1], axis=1)
      found[f'{name}.{part}'] = np.asarray(total)
  return found


def by_gradient(
  config: Config, params: Any, slopes: Iterable[Any], kind: str
) -> dict[str, np.ndarray]:
  """The same by first-order importance, the mean over batches.

  Args:
    config: of the network.
    params: its parameters.
    slopes: of each batch what `visits.visit_gradients` returns.
    kind: so too.
  """
  found: dict[str, np.ndarray] = {}
  model = config.model
  each = jax.device_get(untied.of_visits(model, params, {}))
  for grads in slopes:
    for name, stack in sides.stacks(model).items():
      for part in parts(stack, kind):
        path = (part, OUT[kind], 'kernel')
        slope = np.asarray(flatten_dict(grads[name]['rows'])[path])
        felt = _by_unit(each[name][path] * slope, layout(stack)[path])
        where = f'{name}.{part}'
        found[where] = found.get(where, 0) + np.abs(felt.sum(axis=-1))
  return found


def _by_unit(values: Any, leaf: Leaf) -> np.ndarray:
  """A tensor of every visit as (visits, units, all else)."""
  values = np.asarray(values, np.float32)
  moved = np.moveaxis(values, 1 + leaf.axis, 1)
  units = moved.reshape(len(moved), leaf.units, -1, *moved.shape[2:])
  return units.reshape(*units.shape[:2], -1)
