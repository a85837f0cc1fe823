"""Learning rates and weight decay by how often a row is read.

A row that n visits read gets the sum of n gradients, and in an update that
normalises gradients all of them move it as far as one moves a row of a single
visit. A factor n**power, one for each row, can weigh that up.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from shared_tfm.config import Model, shapes, sides
from shared_tfm.sharing import adaptive

Scale = Callable[[Any], Any]


def visits(model: Model, path: tuple[Any, ...]) -> np.ndarray | None:
  """How many visits each row of a bank leaf has.

  Args:
    model: of fixed tables, without soft specs.
    path: of the leaf in the parameter tree.

  Returns:
    Integers (rows,), or None for a leaf outside of banks.
  """
  stack, *rest = (key.key for key in path)
  stacks = sides.stacks(model)
  if stack not in stacks:
    return None
  group, *inside = rest
  component = shapes.component_of(stacks[stack], '.'.join(inside))
  owners = np.array(component.owners[adaptive.level_of(group)])
  return np.bincount(owners[owners >= 0], minlength=owners.max() + 1)


def scale(model: Model, power: float) -> Scale:
  """(tree like parameters) -> the same, rows times their visits**power."""

  def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    counted = visits(model, path)
    if counted is None:
      return leaf
    factor = counted.astype(np.float32) ** power
    return leaf * factor.reshape(-1, *[1] * (leaf.ndim - 1)).astype(leaf.dtype)

  def whole(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(one, tree) if power else tree

  return whole


def scaled_updates(model: Model, power: float) -> optax.GradientTransformation:
  """The last link of a rule: every row's update times its visits**power."""
  rows = scale(model, power)
  return optax.stateless(lambda updates, _: rows(updates))


def scaled_decay(
  rule: optax.GradientTransformation, model: Model, power: float
) -> optax.GradientTransformation:
  """A rule that looks at parameters only to decay them, by visits**power."""
  rows = scale(model, power)

  def update(updates: Any, state: Any, params: Any) -> Any:
    return rule.update(updates, state, rows(params))

  return optax.GradientTransformation(rule.init, update)
