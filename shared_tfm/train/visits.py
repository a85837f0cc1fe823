"""How far the visits of a shared weight want it to go the same way.

The gradient of a row is a sum over its visits. Where their terms point apart,
sharing holds the layers back; Yang et al. (2110.03848) stop sharing then.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from shared_tfm import tasks
from shared_tfm.config import Config, Model, sides
from shared_tfm.config.shapes import components
from shared_tfm.model import Transformer
from shared_tfm.model.storage import layout
from shared_tfm.model.untied import spread, untied
from shared_tfm.sharing.adaptive import cosines
from shared_tfm.train import loss_scale, prune
from shared_tfm.train.gradient import Batch, losses
from shared_tfm.train.state import State


def visit_gradients(config: Config) -> Callable[[State, Batch], Any]:
  """(state, batch) -> the gradient that each visit has by itself.

  Of the loss that a training step would see, dropout and all, by a network that
  stores the weights of every visit.

  Returns:
    A function; its result is a tree like `untied`'s parameters, of which every
    leaf inside a stack has a leading axis of visits.
  """
  model = Transformer(untied(config.model), train=True)
  measured = losses(tasks.make(config))

  def loss(params: Any, state: State, batch: Batch) -> jax.Array:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    read = ('tables', *prune.OURS)
    others = {k: v for k, v in state.variables.items() if k not in read}
    (total, _, _), _ = model.apply(
      {'params': params, **others},
      batch,
      rngs={'dropout': key, 'depth': jax.random.fold_in(key, 1)},
      mutable=list(others),
      method=measured,
    )
    return loss_scale.scaled(total / batch['weights'].size, state.scale)

  def gradients(state: State, batch: Batch) -> Any:
    params = spread(config.model, state.params, state.variables)
    grads = jax.grad(loss)(params, state, batch)
    return loss_scale.unscaled(grads, state.scale)

  return gradients


def visit_cosines(config: Config) -> Callable[[State, Batch], Any]:
  """(state, batch) -> the cosines between the gradients of all visits.

  Returns:
    A function; its result has for every component, such as 'attention', and for
    everything else that has a table of its own, such as 'layer' or
    'attention.key', a matrix (visits, visits). Names of an encoder's begin with
    'encoder.'. A visit that has no gradient has cosines of 0.
  """
  gradients = visit_gradients(config)

  def measure(state: State, batch: Batch) -> dict[str, jax.Array]:
    return cosines_of(config, gradients(state, batch))

  return measure


def cosines_of(config: Config, grads: Any) -> dict[str, jax.Array]:
  """What `visit_cosines` measures, of what `visit_gradients` returned."""
  stacks, found = sides.stacks(untied(config.model)), {}
  for stack, side in sides.stacks(config.model).items():
    before = '' if stack == 'stack' else f'{stack}.'
    products = _products(side, stacks[stack], grads[stack]['rows'])
    found.update({before + k: cosines(v) for k, v in products.items()})
  return found


def _products(side: Model, whole: Model, grads: Any) -> dict[str, jax.Array]:
  """Inner products between visits, by component."""
  products: dict[str, jax.Array] = {}
  follows, own = layout(side), components(whole)
  for path, leaf in flatten_dict(grads).items():
    owners = own[layout(whole)[path].name].owners[0]
    readers = np.flatnonzero(np.array(owners) >= 0)
    flat = leaf.reshape(len(readers), -1).astype(jnp.float32)
    every = jnp.zeros((len(owners), len(owners)))
    every = every.at[np.ix_(readers, readers)].set(
      jnp.matmul(flat, flat.T, precision='highest')
    )
    for name in {path[0], follows[path].name}:
      products[name] = products.get(name, 0) + every
  return products


def mean_cosines(measured: dict[str, Any]) -> dict[str, float]:
  """Means over all pairs of different visits, by component."""
  found = {}
  for name, matrix in measured.items():
    n = len(matrix)
    if n > 1:
      found[name] = float((np.sum(matrix) - np.trace(matrix)) / (n * (n - 1)))
  return found
