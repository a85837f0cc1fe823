"""The gradient that an update follows, of all micro-batches on all shards."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from shared_tfm import tasks
from shared_tfm.config import Config
from shared_tfm.model import Transformer, build
from shared_tfm.tasks import Task
from shared_tfm.train import loss_scale, prune
from shared_tfm.train import mesh as meshes
from shared_tfm.train.sharded import Gradient, gradient_of_shards
from shared_tfm.train.state import State, shardings

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def measured(config: Config) -> Callable[[State, Batch], Any]:
  """(state, batch) -> the gradient that a step would follow, before clipping.

  Where weights are masked, that of the masked weights, and nothing of it is
  masked.
  """
  gradient = whole(config)

  def mean_of(state: State, batch: Batch) -> Any:
    grads, (weight, _), _, _ = gradient(state, batch)
    return mean(grads, weight)

  return mean_of


def mean(grads: Any, weight: jax.Array) -> Any:
  """What `whole` returns first, of every target."""
  # Products and not quotients, which would be written out before their use.
  each = 1 / weight
  return jax.tree.map(lambda g: g * each.astype(g.dtype), grads)


def whole(config: Config) -> Callable[[State, Batch], Any]:
  """(state, batch) -> what `_gradient` returns, of all shards."""
  mesh, parts = meshes.make(config), config.train.accumulate
  if meshes.shard_maps(config, mesh):
    gradient = gradient_of_shards(
      _gradient(config, meshes.SHARDS, meshes.count(mesh)),
      mesh,
      shardings(config, mesh).params,
    )
  else:
    gradient = _gradient(config)

  def of_batch(state: State, batch: Batch) -> Any:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    return gradient(
      state.params,
      state.replace(
        params=None, opt_state=None, variables=prune.forgotten(state)
      ),
      split(batch, parts, mesh),
      key,
    )

  return of_batch


def _gradient(
  config: Config, shards: Sequence[str] = (), count: int = 1
) -> Gradient:
  """The mean gradient of micro-batches, of a whole batch or of one shard.

  Args:
    config: as `config.cross` returns it.
    shards: the axes of the mesh that cut a batch, where this is run on each
      shard; it then knows of the others whether their gradients are finite.
    count: how many shards there are.

  Returns:
    See `gradient_of_shards`: sums are the weight of the mean, and what
    `losses` sums; the state has neither parameters nor moments, and beside it
    is the longest streak.
  """
  model, parts = build(config, train=True), config.train.accumulate
  measured = losses(tasks.make(config), shards)
  # Never at its end, so that it holds the mean, and that is held only once.
  running = optax.MultiSteps(optax.identity(), parts + 1)

  def loss(
    params: Any, variables: Any, batch: Batch, key: jax.Array, scale: Any
  ) -> Any:
    (total, sums, seen), variables = model.apply(
      {'params': params, **variables},
      batch,
      rngs={'dropout': key, 'depth': jax.random.fold_in(key, 1)},
      mutable=list(variables),
      method=measured,
    )
    size = batch['weights'].size * count  # of all shards
    total = loss_scale.scaled(total / size, scale)
    weight = sums['weight'] / size
    return total, (weight, sums, seen, variables)

  def gradient(params: Any, held: State, batches: Batch, key: jax.Array) -> Any:
    def micro(carry: Any, indexed: tuple[jax.Array, Batch]) -> Any:
      mean, held = carry
      index, batch = indexed
      grads, (weight, sums, seen, variables) = jax.grad(loss, has_aux=True)(
        params,
        held.variables,
        batch,
        jax.random.fold_in(key, index),
        held.scale,
      )
      grads = loss_scale.unscaled(grads, held.scale)
      square = optax.tree.norm(grads, squared=True)
      # Of all shards: none of them takes what another one drops.
      finite = jnp.isfinite(jax.lax.psum(square, shards) if shards else square)
      weight = jnp.where(finite, weight, 0.0)
      if parts > 1:  # else nothing follows what is not finite
        grads = jax.tree.map(
          lambda g: jnp.where(finite, g, jnp.zeros_like(g)), grads
        )
      _, mean = running.update((grads, weight), mean)
      held = held.replace(
        variables=jax.tree.map(
          lambda new, old: jnp.where(finite, new, old),
          variables,
          held.variables,
        ),
        skipped=held.skipped + ~finite,
        streak=jnp.where(finite, 0, held.streak + 1),
        scale=loss_scale.after(
          held.scale, finite, config.train.loss_scale_every
        ),
      )
      return (mean, held), (sums, seen, held.streak)

    zero = jax.tree.map(jnp.zeros_like, params), jnp.zeros(())
    (mean, held), (sums, seen, streaks) = jax.lax.scan(
      micro, (running.init(zero), held), (jnp.arange(parts), batches)
    )
    grads, weight = mean.acc_grads
    added = weight, jax.tree.map(lambda a: jnp.sum(a, axis=0), sums)
    averaged = jax.tree.map(lambda a: a[-1], seen)
    return grads, added, averaged, (held, jnp.max(streaks))

  return gradient


def split(batch: Batch, count: int, mesh: jax.sharding.Mesh) -> Batch:
  """Its rows as `count` micro-batches, each cut over the mesh."""
  parts = jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), batch)
  where = meshes.of_batch(parts, mesh, lead=1)
  return jax.lax.with_sharding_constraint(parts, where)


def losses(
  task: Task, shards: Sequence[str] = ()
) -> Callable[[Transformer, Batch], Any]:
  """(bound model, batch) -> (total, sums, seen).

  The total is what the gradient is of, a sum over targets and exits; the sums
  are the targets' own, at the last exit; what was seen is worth logging. The
  model's and the task's further losses are means, and weigh in the total as
  much as all targets together: in a batch that is one of several shards, along
  these axes of the mesh, as much as its part of all of them.
  """

  def measured(
    model: Transformer, batch: Batch
  ) -> tuple[jax.Array, Metrics, Metrics]:
    outputs = model.outputs(**tasks.arguments(batch))
    total = jnp.zeros(())
    for i in range(len(outputs.hidden_XBLD)):
      each, further = task.losses(model, outputs.hidden_XBLD[i], batch)
      if outputs.weight_XBL is None:
        total += jnp.sum(each)
      else:
        total += jnp.sum(each * outputs.weight_XBL[i])
    count = jnp.sum(batch['weights'])
    further = {**outputs.losses, **further}
    part = jax.lax.pmean(count, shards) if shards else count
    total += sum(further.values()) * part
    sums = {'loss': jnp.sum(each), 'weight': count}
    seen = {f'{name}_loss': term for name, term in further.items()}
    return total, sums, {**outputs.metrics, **seen}

  return measured
