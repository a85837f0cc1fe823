"""Ranges that the visits of a row have in common.

State belongs to visits: each has seen activations of its own. Where
`model.quantise.ranges` is 'owner', a stored row comes with one range for each
of its inputs, the widest of its visits'; see layers/ranges.py.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from shared_tfm.sharing.bank import Layout
from shared_tfm.sharing.component import Component


def common(
  ranges: Any,
  components: Mapping[str, Component],
  leaves: Layout,
  rows: Mapping[str, jax.Array],
) -> Any:
  """Ranges of all visits, each as wide as the widest of its row's.

  Args:
    ranges: the state of a layer's linear maps, (visits,) each.
    components: by name.
    leaves: see `bank.layout`.
    rows: of every component the row of each visit and level.
  """
  found = {}
  for path, range_N in flatten_dict(ranges).items():
    name = leaves[(*path[:-1], 'kernel')].name
    if not components[name].spec.same_as:  # else nothing of it is stored
      # Where weights are sums, the row of the first term's.
      rows_N = rows[name][:, 0]
      same_NN = rows_N[:, None] == rows_N[None]
      range_N = jnp.max(jnp.where(same_NN, range_N[None], 0), axis=1)
    found[path] = range_N
  return unflatten_dict(found)
