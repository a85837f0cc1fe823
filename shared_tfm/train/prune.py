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

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from shared_tfm import accounting
from shared_tfm.config import Config, Prune, pruning
from shared_tfm.sharing import masks

_KEEP = 0.9  # of the smoothed loss, at every step
OURS = ('masks', 'pruning')  # collections of a run's variables


def initial(prune: Prune, held: Any, params: Any) -> dict[str, Any]:
  """What a run remembers to make masks of; empty where nothing is pruned.

  Args:
    prune: of the config.
    held: the model's masks.
    params: its parameters.

  Returns:
    A collection beside the model's, 'pruning'. In it are scalars: 'sparsity',
    that was asked for last; 'cuts', how often masks were made; 'loss' of
    training, smoothed, 0 before the first step; 'before', what that was when
    masks were last made. And, for the method movement, 'moved': sums of -weight
    * gradient in the place of what has a mask.
  """
  if prune.method == 'none':
    return {}
  names = ('sparsity', 'loss', 'before')
  found: dict[str, Any] = {name: jnp.zeros(()) for name in names}
  found['cuts'] = jnp.zeros((), jnp.int32)
  if prune.method == 'movement':
    there = masks.beside(held, params)
    found['moved'] = unflatten_dict(jax.tree.map(jnp.zeros_like, there))
  return {'pruning': found}


def remembered(state: Any) -> dict[str, Any]:
  """That collection, if there is one."""
  return {k: v for k, v in state.variables.items() if k == 'pruning'}


def forgotten(state: Any) -> dict[str, Any]:
  """All other collections."""
  return {k: v for k, v in state.variables.items() if k != 'pruning'}


def seen(state: Any, grads: Any, loss: jax.Array) -> dict[str, Any]:
  """What is remembered after a step.

  Args:
    state: before it.
    grads: the mean gradient, of masked weights too.
    loss: of the step, per target.
  """
  if not remembered(state):
    return {}
  old, held = state.variables['pruning'], state.variables['masks']
  before = old['loss']
  smooth = jnp.where(before > 0, _KEEP * before + (1 - _KEEP) * loss, loss)
  new = {**old, 'loss': smooth}
  if 'moved' in old:
    weights = masks.beside(held, state.params)
    slopes = masks.beside(held, grads)
    new['moved'] = unflatten_dict(
      {
        path: sums - weights[path] * slopes[path]
        for path, sums in flatten_dict(old['moved']).items()
      }
    )
  return {'pruning': new}


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
      now = _scalars(state)
      cuts = int(now['cuts'])
      if cuts >= ticks(p):
        return state
      hurt = cuts > 0 and now['loss'] > now['before'] * (1 + p.tolerance)
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
      return int(_scalars(state)['cuts']) >= ticks(self.prune)


def cut(config: Config, state: Any, sparsity: float, grads: Any = None) -> Any:
  """The state with masks of a sparsity.

  Args:
    config: of the run.
    state: before.
    sparsity: the share of what has masks that will be zero.
    grads: for the method snip, of masked weights.
  """
  p, held, old = config.prune, *(state.variables[k] for k in OURS)
  group = pruning.pattern(p)[1] if p.pattern else 0
  made = masks.cut(
    held,
    state.params,
    grads,
    old.get('moved'),
    _counts(p, held, sparsity, group),
    p.method,
    group,
  )
  now = _scalars(state)
  new = {
    **old,
    'sparsity': jnp.float32(sparsity),
    'cuts': jnp.int32(now['cuts'] + 1),
    'before': jnp.float32(now['loss']),
  }
  both = dict(zip(OURS, (made, new), strict=True))
  return state.replace(variables=state.variables | both)


def _scalars(state: Any) -> Any:
  old = state.variables['pruning']
  return jax.device_get({k: v for k, v in old.items() if k != 'moved'})


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
  variables = {k: v for k, v in state.variables.items() if k not in OURS}
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
