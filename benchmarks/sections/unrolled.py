"""The scan over depth beside a loop in Python over the same layers."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from benchmarks import ours
from benchmarks.rows import Plan, Row, compared
from benchmarks.turns import Run, measured
from shared_tfm.config import Model
from shared_tfm.layers.context import Context
from shared_tfm.layers.embedding import Embedding
from shared_tfm.layers.layer import Layer
from shared_tfm.layers.norm import Norm
from shared_tfm.model import Transformer
from shared_tfm.model.recompute import POLICIES

ALL = {'sharing': {'layer': 'all'}}
Hidden = Callable[[Model, Any, jax.Array], jax.Array]


def rows(plan: Plan) -> Iterator[Row]:
  """Loss and gradient of a model that shares all: unrolled over ours.

  The same layers, weights and `remat`, of which a loop in Python makes one
  program as long as the network is deep. That losses and gradients are equal in
  float32 is asserted first. Above 1 the scan is faster. 'Compiled' is tracing
  and compiling, once each.
  """
  sizes: dict[str, Any] = {'num_layers': 12, 'd_model': 256, 'max_len': 128}
  if plan.quick:
    sizes = {'num_layers': 3, 'd_model': 32, 'max_len': 16}
  for remat in ('full',) if plan.quick else ('none', 'dots', 'full'):
    made = ours.programs({**sizes, 'remat': remat, **ALL}, 4)
    compiled: dict[str, list[float]] = {}

    def case(made: Any = made, compiled: Any = compiled) -> Any:
      params = made.init(jnp.uint32(0)).params
      batch = ours.batch(made)
      found = {}
      for name, hidden in ('ours', scanned), ('unrolled', unrolled):
        gradient = jax.jit(value_and_grad(made.config.model, hidden))
        begin = time.perf_counter()
        with ours.uncached():
          program = gradient.lower(params, batch).compile()
        compiled[name] = [time.perf_counter() - begin]
        found[name] = jax.device_get(program(params, batch))
        yield name, _run(program, params, batch)
      agree(*found.values())

    taken = measured(case, plan.rounds)
    yield compared(f'{remat}, run', taken, 'unrolled', 'ours')
    yield compared(f'{remat}, compiled', compiled, 'unrolled', 'ours')


def scanned(model: Model, params: Any, tokens_BL: jax.Array) -> jax.Array:
  """The last residual stream, as the product has it."""
  whole = Transformer(model, train=True)
  return whole.apply({'params': params}, tokens_BL, method='hidden')


def unrolled(model: Model, params: Any, tokens_BL: jax.Array) -> jax.Array:
  """The same of one row of weights, by a loop in Python."""
  positions_BL = jnp.broadcast_to(
    jnp.arange(tokens_BL.shape[1]), tokens_BL.shape
  )
  context = Context(positions_BL)
  weights = jax.tree.map(lambda w: w[0], params['stack']['rows'])

  def layer(weights: Any, x_BLD: jax.Array) -> jax.Array:
    return Layer(model, True).apply({'params': weights}, x_BLD, context)[0]

  layer = jax.checkpoint(layer, policy=POLICIES[model.remat])
  x_BLD = Embedding(model, True).apply(
    {'params': params['embedding']}, tokens_BL, positions_BL, None
  )
  for _ in range(model.num_layers):
    x_BLD = layer(weights, x_BLD)
  return Norm(model, True).apply({'params': params['norm']}, x_BLD, None)


def value_and_grad(model: Model, hidden: Hidden) -> Callable[[Any, Any], Any]:
  """(params, batch) -> loss and gradient, by the model's own head."""

  def loss(params: Any, batch: Any) -> jax.Array:
    x_BLD = hidden(model, params, batch['inputs'])
    logits_BLV = Transformer(model).apply(
      {'params': params}, x_BLD, method='scores'
    )
    return optax.losses.softmax_cross_entropy_with_integer_labels(
      logits_BLV, batch['targets']
    ).mean()

  return jax.value_and_grad(loss)


def agree(ours: Any, other: Any) -> None:
  """Asserts that two losses and gradients are equal, but for rounding."""
  loss, grads = ours
  chex.assert_trees_all_close(loss, other[0], rtol=1e-5)
  scale = max(jax.tree.leaves(jax.tree.map(lambda g: abs(g).max(), grads)))
  chex.assert_trees_all_close(grads, other[1], rtol=1e-3, atol=1e-5 * scale)


def _run(program: Any, *args: Any) -> Run:
  return lambda: jax.block_until_ready(program(*args))
