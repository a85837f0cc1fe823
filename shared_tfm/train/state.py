"""Everything that training changes: made afresh, and where it lives."""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from shared_tfm import tasks
from shared_tfm.config import Config
from shared_tfm.model import build
from shared_tfm.train import loss_scale, optimizer, prune
from shared_tfm.train import mesh as meshes


class State(flax.struct.PyTreeNode):
  """Everything that training changes.

  Attributes:
    step: updates done.
    params: the parameter tree; inside 'stack', leaves have a row per owner.
    variables: other collections of the model, such as 'batch_stats'; inside
      'stack', leaves have a slot per visit, and 'masks' a row per owner. And
      'pruning', what masks are made of; see prune.py.
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
  return _around(config, boxed(config, init_key), key)


def _around(config: Config, variables: Any, key: jax.Array) -> State:
  """A fresh state of variables in their boxes."""
  variables = nn.unbox(variables)
  params = variables.pop('params')
  variables |= prune.initial(config.prune, variables.get('masks', {}), params)
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    variables=variables,
    opt_state=optimizer.make(config).init(params),
    skipped=jnp.zeros((), jnp.int32),
    streak=jnp.zeros((), jnp.int32),
    scale=loss_scale.initial(config),
    key=jax.random.key_data(key),
  )


@functools.lru_cache(maxsize=8)
def _boxes(config: Config) -> Any:
  """What `boxed` makes, as shapes; to trace it takes a second."""
  return jax.eval_shape(functools.partial(boxed, config), jax.random.key(0))


@functools.lru_cache(maxsize=8)
def shapes(config: Config) -> State:
  """The shapes and dtypes of a state."""
  around = functools.partial(_around, config)
  return jax.eval_shape(around, _boxes(config), jax.random.key(0))


@functools.lru_cache(maxsize=8)
def shardings(config: Config, mesh: jax.sharding.Mesh) -> State:
  """Where each part of a state lives."""
  state = shapes(config)
  where = meshes.of_params(_boxes(config)['params'], mesh)
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(lambda _: whole, state).replace(
    params=where,
    **{
      name: meshes.of_moments(getattr(state, name), state.params, where)
      for name in ('opt_state', 'variables')
    },
  )
