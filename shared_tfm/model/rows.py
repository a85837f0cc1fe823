"""What is kept for a batch, and what for another batch is made of it."""

from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm.layers.cache import Cache
from shared_tfm.model.kept import Kept


def rows_of(kept: dict[str, Any], rows_B: jax.Array) -> dict[str, Any]:
  """What is kept, of other rows of the batch; sources stay where they are.

  Args:
    kept: of `Backbone.empty`, or of later outputs.
    rows_B: which row each is to be.
  """

  def picked(cache: Cache) -> Cache:
    return jax.tree.map(lambda a: a[:, rows_B], cache)

  return {
    name: part.replace(text=picked(part.text))
    if isinstance(part, Kept)
    else part.replace(cache=picked(part.cache))
    for name, part in kept.items()
  }


def placed(
  kept: dict[str, Any], other: dict[str, Any], row: jax.Array
) -> dict[str, Any]:
  """What is kept, with that of a batch of one in one of the rows."""

  def put(old: Any, new: Any) -> Any:
    if not isinstance(old, Cache):
      return old
    return jax.tree.map(lambda a, b: a.at[:, row].set(b[:, 0]), old, new)

  return jax.tree.map(put, kept, other, is_leaf=lambda a: isinstance(a, Cache))


def repeated(kept: dict[str, Any], times: int) -> dict[str, Any]:
  """What is kept, each row of the batch several times."""

  def more(leaf: Any) -> Any:
    if not isinstance(leaf, Cache):
      return leaf
    return jax.tree.map(lambda a: jnp.repeat(a, times, axis=1), leaf)

  return jax.tree.map(more, kept, is_leaf=lambda a: isinstance(a, Cache))
