"""The bank in whole numbers, one more link between bank and layer.

Every stored matrix is rounded, the factors of products and templates too;
vectors, diagonals and coefficients stay as they are. It is rounded where it is
stored, so that however many visits read a row, it is rounded once and has one
set of scales. Two forms compute the same:

    linked  float32 rows, whose rounded copies are picked from: what trains
            (quantisation-aware training, 1712.05877, section 3)
    stored  the whole numbers alone
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from shared_tfm.sharing import links, narrow
from shared_tfm.sharing.bank import Layout
from shared_tfm.sharing.component import Component
from shared_tfm.sharing.integers import Rounded, rounded
from shared_tfm.sharing.levels import DIAGONAL
from shared_tfm.sharing.rounding import Rounding

Multiplied = Callable[[tuple[str, ...]], bool]


def linked(
  bank: Mapping[str, Any],
  components: Mapping[str, Component],
  leaves: Layout,
  rounding: Rounding,
  multiplied: Multiplied,
) -> dict[str, Any]:
  """The bank, with rounded copies to be picked from.

  Args:
    bank: see `links.weights`; what is whole numbers already stays as it is.
    components: by name.
    leaves: see `bank.layout`.
    rounding: to what.
    multiplied: of a leaf's path, whether it is a matrix that is to be rounded.
  """

  def link(leaf: Any) -> Any:
    if isinstance(leaf, Rounded):
      return leaf
    return narrow.Cast(leaf, rounded(jax.lax.stop_gradient(leaf), rounding))

  return _mapped(link, bank, components, leaves, multiplied)


def stored(
  bank: Mapping[str, Any],
  components: Mapping[str, Component],
  leaves: Layout,
  rounding: Rounding,
  multiplied: Multiplied,
) -> dict[str, Any]:
  """The bank as whole numbers, arguments as `linked`; boxes stay boxes."""

  def store(leaf: Any) -> Any:
    if not isinstance(leaf, nn.LogicallyPartitioned):
      return rounded(leaf, rounding)
    made, names = rounded(leaf.value, rounding), leaf.names
    scales = nn.LogicallyPartitioned(
      made.scales, (*names[:-2], None, names[-1])
    )
    return made.replace(values=leaf.replace_boxed(made.values), scales=scales)

  return _mapped(store, bank, components, leaves, multiplied)


def _mapped(
  function: Callable[[Any], Any],
  bank: Mapping[str, Any],
  components: Mapping[str, Component],
  leaves: Layout,
  multiplied: Multiplied,
) -> dict[str, Any]:
  """The bank with a function of every stored matrix in the matrix's place."""
  flat = {name: flatten_dict(tree) for name, tree in bank.items()}
  for name, place in _matrices(components, leaves, multiplied):
    if place in flat.get(name, ()):  # else it is another bank's
      flat[name][place] = function(flat[name][place])
  return {name: unflatten_dict(tree) for name, tree in flat.items()}


def _matrices(
  components: Mapping[str, Component], leaves: Layout, multiplied: Multiplied
) -> Iterator[tuple[str, tuple[str, ...]]]:
  """Where they are stored: the level's tree, and the place in it."""
  for path, leaf in leaves.items():
    if not multiplied(path):
      continue
    spec = components[leaf.name].spec
    for level in spec.terms(len(leaf.shape)):
      for suffix in spec.levels[level].shapes(leaf.shape):
        if suffix != DIAGONAL:
          yield links.group(level), (*path, suffix) if suffix else path
