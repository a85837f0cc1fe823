"""Masks: which stored weights count, and which are zero.

Masks belong to owners. A mask is a boolean tensor beside a stored one, a link
between the bank and the layers that is applied to all rows before any is
picked. Where weights are sums, each level's stored tensors are masked by
themselves, and a product is of masked factors.

Backwards a mask lets everything through: what comes back is the gradient of the
masked weight, summed over visits, also where the mask is zero. Scores are made
of it; whoever updates weights masks it first.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

Tree = Any
Flat = dict[tuple[str, ...], jax.Array]
GLOBAL = ()  # the place of the one count where all weights are ranked together


def ones(tree: Tree, masked: Callable[[tuple[str, ...]], bool]) -> Tree:
  """Masks that let everything through.

  Args:
    tree: of a level of a bank.
    masked: of a path in it, whether there is a mask.
  """
  found = {
    path: jnp.ones(leaf.shape, bool)
    for path, leaf in flatten_dict(tree).items()
    if masked(path)
  }
  return unflatten_dict(found)


def applied(tree: Tree, masks: Tree) -> Tree:
  """A tree, zero where masks are; gradients of it pass through all of it.

  Args:
    tree: nested dicts of arrays: a bank, parameters, their gradients.
    masks: so too, of some of its paths.
  """
  if not masks:
    return tree
  return _mapped(_masked, tree, masks)


def beside(masks: Tree, tree: Tree) -> Flat:
  """Those leaves of a tree that have masks, by path."""
  flat = flatten_dict(tree)
  return {path: flat[path] for path in flatten_dict(masks)}


def _mapped(function: Any, tree: Tree, masks: Tree) -> Tree:
  flat = flatten_dict(tree)
  for path, mask in flatten_dict(masks).items():
    flat[path] = function(flat[path], mask)
  return unflatten_dict(flat)


@jax.custom_vjp
def _masked(stored: jax.Array, mask: jax.Array) -> jax.Array:
  return jnp.where(mask, stored, jnp.zeros_like(stored))


_masked.defvjp(
  lambda stored, mask: (_masked(stored, mask), None),
  lambda _, grad: (grad, None),
)


# What a weight is scored by: of the weight, the gradient of the masked weight,
# and the sum of -weight * gradient over all updates.
SCORES: dict[str, Callable[[Any, Any, Any], jax.Array]] = {
  # Han et al. (1506.02626).
  'magnitude': lambda weight, grad, moved: jnp.abs(weight),
  # How much the loss feels it: SNIP (1810.02340, equation 6).
  'snip': lambda weight, grad, moved: jnp.abs(weight * grad),
  # How far training moves it away from zero (2005.07683, section 4).
  'movement': lambda weight, grad, moved: moved,
}


@functools.partial(jax.jit, static_argnames=('method', 'group'))
def cut(
  masks: Tree,
  params: Tree,
  grads: Tree,
  moved: Tree,
  counts: Mapping[tuple[str, ...], jax.Array],
  method: str,
  group: int = 0,
) -> Tree:
  """Masks that are zero for the lowest scores; of equals, for the first.

  Weights that were masked are scored as all others, and may come back.

  Args:
    masks: as they are; of which paths there will be masks.
    params: the stored weights, masked ones with the value they last had.
    grads: their gradients; read by 'snip' alone.
    moved: sums of -weight * gradient; read by 'movement' alone.
    counts: how many weights will be zero. Under GLOBAL, of all that are ranked
      together; under a path, of each row, or template, of that tensor. With
      `group`, of each group.
    method: a key of SCORES.
    group: M of N:M, M weights of neighbouring inputs to one output; 0: none.
  """
  weights = beside(masks, params)
  blank = dict.fromkeys(weights)
  given = beside(masks, grads) if grads else blank
  sums = beside(masks, moved) if moved else blank
  scores = {
    path: SCORES[method](weight, given[path], sums[path])
    for path, weight in weights.items()
    if GLOBAL in counts or path in counts
  }
  found = flatten_dict(masks)
  if group:
    made = {p: _of_groups(s, group, counts[p]) for p, s in scores.items()}
  elif GLOBAL in counts:
    made = _of_all(scores, counts[GLOBAL])
  else:
    made = {p: _of_rows(s, counts[p]) for p, s in scores.items()}
  return unflatten_dict(found | made)


def _of_all(scores: Flat, count: jax.Array) -> Flat:
  """One ranking of all weights there are."""
  flat = jnp.concatenate([score.reshape(-1) for score in scores.values()])
  keeps, start, found = _ranks(flat) >= count, 0, {}
  for path, score in scores.items():
    found[path] = keeps[start : start + score.size].reshape(score.shape)
    start += score.size
  return found


def _of_rows(score: jax.Array, count: jax.Array) -> jax.Array:
  return (_ranks(score.reshape(len(score), -1)) >= count).reshape(score.shape)


def _of_groups(score: jax.Array, group: int, count: jax.Array) -> jax.Array:
  """N:M along the inputs, the last axis but one (2104.08378)."""
  *several, d_in, d_out = score.shape
  grouped = score.reshape(*several, d_in // group, group, d_out)
  keeps = _ranks(grouped.swapaxes(-1, -2)) >= count
  return keeps.swapaxes(-1, -2).reshape(score.shape)


def _ranks(scores: jax.Array) -> jax.Array:
  """The place of each in the order of the last axis, the lowest first."""
  order = jnp.argsort(scores, axis=-1, stable=True)
  places = jnp.broadcast_to(
    jnp.arange(scores.shape[-1], dtype=jnp.int32), scores.shape
  )
  return jnp.put_along_axis(
    jnp.zeros_like(order), order, places, axis=-1, inplace=False
  )
