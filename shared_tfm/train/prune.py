"""Pruning while a model trains: what masks are made of, and when.

    once      masks at `start`
    cubic     from 0 at `start` to the whole at `end`, every few steps, fast at
              first: s (1 - (1 - t)^3) (Zhu & Gupta, 1710.01878, equation 1)
    adaptive  the same values, each taken only when the training loss has
              recovered from the one before

The last is ours: pruning and training again in turn (Han et al., 1506.02626,
section 3), where the loss says when its turn is over. It is smoothed, with a
decay of 0.9 a step, and has recovered when it is at most 1 + `tolerance` times
what it was before the last masks were made.

Masks are made before a step, of what is in the train state and, for SNIP, of
the gradient of that step's batch; so a run that was cut goes on as one that was
not. What is masked rests: it is not updated, and keeps the value that it may
come back with.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from shared_tfm import accounting
from shared_tfm.config import Config, Prune, pruning
from shared_tfm.sharing import masks

_KEEP = 0.9  # of the smoothed loss, at every step


class Pruning(flax.struct.PyTreeNode):
  """What a run remembers to make masks of; scalars but for `moved`.

  Attributes:
    sparsity: that was asked for last.
    cuts: how often masks were made.
    loss: of training, smoothed; 0 before the first step.
    before: what that was before masks were last made.
    moved: for the method movement sums of -weight * gradient, in the place of
      what has a mask; else empty.
  """

  sparsity: jax.Array
  cuts: jax.Array
  loss: jax.Array
  before: jax.Array
  moved: Any


def initial(prune: Prune, held: Any, params: Any) -> Pruning | None:
  """Where a run begins; None where nothing is pruned.

  Args:
    prune: of the config.
    held: the model's masks.
    params: its parameters.
  """
  if prune.method == 'none':
    return None
  moved = {}
  if prune.method == 'movement':
    there = masks.beside(held, params)
    moved = unflatten_dict(jax.tree.map(jnp.zeros_like, there))
  zero = jnp.zeros(())
  return Pruning(zero, jnp.zeros((), jnp.int32), zero, zero, moved)


def seen(
  pruning: Pruning | None, held: Any, params: Any, grads: Any, loss: jax.Array
) -> Pruning | None:
  """What is remembered of a step.

  Args:
    pruning: before it.
    held: the masks.
    params: before it.
    grads: the mean gradient, of masked weights too.
    loss: of the step, per target.
  """
  if pruning is None:
    return None
  smooth = jnp.where(
    pruning.loss > 0, _KEEP * pruning.loss + (1 - _KEEP) * loss, loss
  )
  moved = pruning.moved
  if moved:
    weights, slopes = masks.beside(held, params), masks.beside(held, grads)
    moved = unflatten_dict(
      {
        path: sums - weights[path] * slopes[path]
        for path, sums in flatten_dict(moved).items()
      }
    )
  return pruning.replace(loss=smooth, moved=moved)


def curve(prune: Prune, cuts: int) -> float:
  """The sparsity after so many of `ticks` cuts, with what is asked for."""
  done = min(cuts / ticks(prune), 1)
  return prune.sparsity * (1 - (1 - done) ** 3)


def ticks(prune: Prune) -> int:
  """Into how many cuts a schedule divides what is to be masked."""
  if prune.schedule == 'once':
    return 1
  return math.ceil((prune.end - prune.start) / prune.every)


class Pruner:
  """Makes a run's masks. All it knows is the config and the train state."""

  def __init__(self, config: Config, compiled: Any):
    """Remembers both.

    Args:
      config: of the run.
      compiled: its programs, of which SNIP needs one more.
    """
    self.config, self.compiled = config, compiled
    self.prune = config.prune

  def due(self, step: int) -> bool:
    """Whether masks may change after this many updates, before the next."""
    p = self.prune
    if p.method == 'none' or step < p.start:
      return False
    if p.schedule == 'once':
      return step == p.start
    on_time = step > p.start and (step - p.start) % p.every == 0
    if p.schedule == 'cubic':
      return step <= p.end and (on_time or step == p.end)
    return on_time

  def apply(self, state: Any, batch: Any) -> Any:
    """Makes masks, where the schedule has more.

    Args:
      state: before the step.
      batch: of the step.
    """
    p, grads = self.prune, None
    with jax.transfer_guard('allow'):
      now = jax.device_get(state.pruning.replace(moved={}))
      cuts = int(now.cuts)
      if cuts >= ticks(p):
        return state
      hurt = cuts > 0 and now.loss > now.before * (1 + p.tolerance)
      if p.schedule == 'adaptive' and hurt:
        return state
      if p.method == 'snip':
        grads = self.compiled.gradient(state, batch)
      return cut(self.config, state, curve(p, cuts + 1), grads)

  def done(self, state: Any) -> bool:
    """Whether all that is to be masked is."""
    if self.prune.method == 'none':
      return True
    with jax.transfer_guard('allow'):
      return int(state.pruning.cuts) >= ticks(self.prune)


def cut(config: Config, state: Any, sparsity: float, grads: Any = None) -> Any:
  """The state with masks of a sparsity.

  Args:
    config: of the run.
    state: before.
    sparsity: the share of what has masks that will be zero.
    grads: for the method snip, of masked weights.
  """
  p, held = config.prune, state.variables['masks']
  group = pruning.pattern(p)[1] if p.pattern else 0
  made = masks.cut(
    held,
    state.params,
    grads,
    state.pruning.moved,
    _counts(p, held, sparsity, group),
    p.method,
    group,
  )
  now = jax.device_get(state.pruning.replace(moved={}))
  after = state.pruning.replace(
    sparsity=jnp.float32(sparsity),
    cuts=jnp.int32(now.cuts + 1),
    before=jnp.float32(now.loss),
  )
  return state.replace(
    variables={**state.variables, 'masks': made}, pruning=after
  )


def _counts(
  p: Prune, held: Any, sparsity: float, group: int
) -> Mapping[tuple[str, ...], jax.Array]:
  """How many are masked, as `masks.cut` takes it."""
  flat = flatten_dict(held)
  if group:
    sizes = dict.fromkeys(flat, group)
  elif p.scope == 'tensor':
    sizes = {path: mask[0].size for path, mask in flat.items()}
  else:
    sizes = {masks.GLOBAL: sum(mask.size for mask in flat.values())}
  return {
    path: jnp.int32(pruning.count(sparsity, size))
    for path, size in sizes.items()
  }


def baked(config: Config, state: Any) -> tuple[Config, Any, Any]:
  """A network without masks that computes the same: its zeros are stored.

  Args:
    config: of any run.
    state: of that run.

  Returns:
    The config, the parameters, and the other collections.
  """
  fixed = pruning.without(config)
  held = state.variables.get('masks', {})
  variables = {k: v for k, v in state.variables.items() if k != 'masks'}
  return fixed, masks.applied(state.params, held), variables


def concluded(config: Config, state: Any) -> dict[str, Any]:
  """What a run's result says of its masks; nothing where there are none.

  Returns:
    'sparsity': the share of what has masks that is zero. 'non_zero_params':
    stored parameters that are not masked.
  """
  if config.prune.method == 'none':
    return {}
  held = jax.tree.leaves(state.variables['masks'])
  zeros = sum(int(jnp.sum(~mask)) for mask in held)
  stored = accounting.parameters(config.model)['stored']
  return {
    'sparsity': zeros / sum(mask.size for mask in held),
    'non_zero_params': stored - zeros,
  }
