"""The pure training and evaluation steps.

What a batch holds, and what its loss is, is the task's business: see
tasks/task.py; what an update follows is gradient.py's.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from shared_tfm import tasks
from shared_tfm.config import Config
from shared_tfm.errors import need
from shared_tfm.model import build
from shared_tfm.sharing import masks
from shared_tfm.train import gradient as gradients
from shared_tfm.train import mesh as meshes
from shared_tfm.train import optimizer, prune
from shared_tfm.train.gradient import Batch, Metrics
from shared_tfm.train.state import State


def check(config: Config) -> None:
  """Raises BadInput where there is nothing that training could move."""
  need(
    not config.model.quantise.integers,
    'model.quantise.store integers is not trained: take float32, which trains'
    ' with rounded weights, and convert what comes of it',
  )


def train_step(config: Config) -> Callable[[State, Batch], Any]:
  """The training step: (state, batch) -> (state, metrics), pure.

  An update follows the mean over all tokens of all its micro-batches at once,
  so that k micro-batches equal one large batch however unevenly their tokens
  are weighted: `optax.MultiSteps` averages pairs (gradient of a sum, its
  weight), on every shard by itself, and only that mean is added up over the
  shards and divided.

  Metrics: 'loss' per weighted target, at the last exit, 'grad_norm' of the mean
  gradient before clipping, 'learning_rate', 'skipped', the longest 'streak' of
  the step, 'loss_scale' and 'sparsity' where there is one, 'tokens' of the
  batch, and of the last micro-batch where there are several: what the model
  measures ('loops') and the further terms of its loss ('router_loss').
  """
  check(config)
  task, gradient = tasks.make(config), gradients.whole(config)
  rule, rate = optimizer.make(config), optimizer.schedule(config)

  def step(state: State, batch: Batch) -> tuple[State, Metrics]:
    learning_rate = jnp.asarray(rate(state.step), jnp.float32)
    full, (weight, sums), seen, (held, streak) = gradient(state, batch)
    zeros = state.variables.get('masks', {})
    grads = masks.applied(full, zeros)
    norm = optax.tree.norm(grads) / weight
    loss = sums['loss'] / sums['weight']

    def follow() -> Any:
      mean = gradients.mean(grads, weight)
      updates, moments = rule.update(
        mean, state.opt_state, state.params, norm=norm
      )
      updates = masks.applied(updates, zeros)
      known = prune.seen(state, gradients.mean(full, weight), loss)
      return optax.apply_updates(state.params, updates), moments, known

    def stay() -> Any:
      return state.params, state.opt_state, prune.remembered(state)

    params, moments, pruning = jax.lax.cond(weight > 0, follow, stay)
    metrics = {
      'loss': loss,
      **seen,
      'grad_norm': norm,
      'learning_rate': learning_rate,
      'tokens': task.tokens(batch),
      'skipped': held.skipped,
      'streak': streak,
    }
    if held.scale is not None:
      metrics['loss_scale'] = held.scale.value
    if pruning:
      metrics['sparsity'] = pruning['pruning']['sparsity']
    return held.replace(
      step=state.step + 1,
      params=params,
      opt_state=moments,
      variables=held.variables | pruning,
    ), metrics

  return step


def eval_step(config: Config) -> Callable[[State, Batch], Any]:
  """The evaluation step: (state, batch) -> what the task observes.

  It takes a batch in the micro-batches of training, as more would not fit.

  Returns:
    A function; its result is a pair of sums over the batch, and of what the
    model said of each row.
  """
  model, mesh = build(config), meshes.make(config)
  observe = tasks.make(config).observe

  def step(state: State, batch: Batch) -> Any:
    variables = {'params': state.params, **state.variables}
    sums, said = jax.lax.map(
      lambda part: model.apply(variables, part, method=observe),
      gradients.split(batch, config.train.accumulate, mesh),
    )
    return (
      jax.tree.map(lambda a: jnp.sum(a, axis=0), sums),
      jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), said),
    )

  return step
