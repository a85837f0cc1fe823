"""The pure training and evaluation steps.

What a batch holds, and what its loss is, is the task's business: see
tasks/task.py.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from shared_tfm import tasks
from shared_tfm.config import Config
from shared_tfm.model import Transformer, build
from shared_tfm.tasks import Task
from shared_tfm.train import loss_scale, optimizer
from shared_tfm.train import mesh as meshes
from shared_tfm.train.sharded import gradient_of_shards

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class State(flax.struct.PyTreeNode):
  """Everything that training changes.

  Attributes:
    step: updates done.
    params: the parameter tree; inside 'stack', leaves have a row per owner.
    variables: other collections of the model, such as 'batch_stats'; inside
      'stack', leaves have a slot per visit.
    opt_state: the optimizer's.
    skipped: micro-batches dropped because their gradient was not finite.
    streak: how many of them were the last ones, in a row.
    scale: by which the loss is multiplied; None where the dtype needs none.
    key: raw PRNG key data that dropout keys are derived from.
  """

  step: jax.Array
  params: Any
  variables: Any
  opt_state: Any
  skipped: jax.Array
  streak: jax.Array
  scale: loss_scale.Scale | None
  key: jax.Array


def boxed(config: Config, key: jax.Array) -> Any:
  """The model's variables, in boxes with the logical names of their axes."""
  read = {
    name: jnp.zeros((1, *shape.shape[1:]), shape.dtype)
    for name, shape in tasks.make(config).batches()[0].items()
    if not name.endswith('mask')
  }
  return build(config).init(key, **tasks.arguments(read))


def initial(config: Config, seed: jax.Array) -> State:
  """A fresh state. `seed` is an integer scalar, and the only randomness."""
  init_key, key = jax.random.split(jax.random.key(seed))
  variables = nn.unbox(boxed(config, init_key))
  params = variables.pop('params')
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    variables=variables,
    opt_state=optimizer.make(config).init((params, jnp.zeros(()))),
    skipped=jnp.zeros((), jnp.int32),
    streak=jnp.zeros((), jnp.int32),
    scale=loss_scale.initial(config),
    key=jax.random.key_data(key),
  )


def shardings(config: Config, mesh: jax.sharding.Mesh) -> State:
  """Where each part of a state lives."""
  init = functools.partial(boxed, config)
  params = jax.eval_shape(init, jax.random.key(0))['params']
  where = meshes.of_params(params, mesh)
  state = jax.eval_shape(functools.partial(initial, config), jnp.uint32(0))
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(lambda _: whole, state).replace(
    params=where,
    opt_state=meshes.of_moments(state.opt_state, state.params, where),
  )


def train_step(config: Config) -> Callable[[State, Batch], Any]:
  """The training step: (state, batch) -> (state, metrics), pure.

  Metrics: 'loss' per weighted target, at the last exit, 'learning_rate',
  'skipped', the longest 'streak' of the step, 'loss_scale' where there is one,
  'tokens' of the batch, and of the last micro-batch where there are several:
  'grad_norm' of the mean gradient before clipping, what the model measures
  ('loops') and the further terms of its loss ('router_loss').
  """
  model, mesh = build(config, train=True), meshes.make(config)
  by_shard = meshes.shard_maps(config, mesh)
  shards = meshes.SHARDS if by_shard else ()
  count = meshes.count(mesh) if by_shard else 1
  task = tasks.make(config)
  measured = losses(task, shards)
  update_rule = optimizer.make(config)
  rate = optimizer.schedule(config)

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
    return total, (sums, seen, variables)

  gradient = jax.grad(loss, has_aux=True)
  if by_shard:
    where = shardings(config, mesh).params
    gradient = gradient_of_shards(gradient, mesh, where)

  def micro(state: State, indexed: tuple[jax.Array, Batch]) -> Any:
    index, batch = indexed
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    grads, (sums, seen, variables) = gradient(
      state.params,
      state.variables,
      batch,
      jax.random.fold_in(key, index),
      state.scale,
    )
    grads = loss_scale.unscaled(grads, state.scale)
    weight = sums['weight'] / batch['weights'].size
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    kept = jax.tree.map(
      lambda g: jnp.where(finite, g, jnp.zeros_like(g)), (grads, weight)
    )
    (updates, _), opt_state = update_rule.update(
      kept, state.opt_state, (state.params, weight)
    )
    state = state.replace(
      params=optax.apply_updates(state.params, updates),
      variables=jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        variables,
        state.variables,
      ),
      opt_state=opt_state,
      skipped=state.skipped + ~finite,
      streak=jnp.where(finite, 0, state.streak + 1),
      scale=loss_scale.after(
        state.scale, finite, config.train.loss_scale_every
      ),
    )
    return state, (sums, {**seen, 'grad_norm': norm / weight}, state.streak)

  def step(state: State, batch: Batch) -> tuple[State, Metrics]:
    parts = config.train.accumulate
    learning_rate = jnp.asarray(rate(state.step), jnp.float32)
    state, (sums, seen, streaks) = jax.lax.scan(
      micro, state, (jnp.arange(parts), _split(batch, parts, mesh))
    )
    metrics = {
      'loss': jnp.sum(sums['loss']) / jnp.sum(sums['weight']),
      **{name: values[-1] for name, values in seen.items()},
      'learning_rate': learning_rate,
      'tokens': task.tokens(batch),
      'skipped': state.skipped,
      'streak': jnp.max(streaks),
    }
    if state.scale is not None:
      metrics['loss_scale'] = state.scale.value
    return state.replace(step=state.step + 1), metrics

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
      _split(batch, config.train.accumulate, mesh),
    )
    return (
      jax.tree.map(lambda a: jnp.sum(a, axis=0), sums),
      jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), said),
    )

  return step


def _split(batch: Batch, count: int, mesh: jax.sharding.Mesh) -> Batch:
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
