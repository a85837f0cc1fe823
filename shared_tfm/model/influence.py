"""How far each visit turns the residual stream.

1 - the mean cosine between the stream before a visit and after it: the block
influence of ShortGPT (2403.03853, section 3).
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from shared_tfm.config import Model
from shared_tfm.layers.context import Context
from shared_tfm.model import untied
from shared_tfm.model.stack import Stack
from shared_tfm.model.transformer import Transformer


def influences(
  model: Model,
  params: Any,
  variables: Any,
  inputs: Iterable[Mapping[str, Any]],
) -> np.ndarray:
  """How far every visit turns the stream, (visits,): 0 for not at all.

  Every visit is run by itself, by one program.

  Args:
    model: of one stack and a fixed depth, whose layers reuse nothing.
    params: its parameters.
    variables: its other collections.
    inputs: what it reads, by the names of its arguments, batch by batch.
  """
  model = dataclasses.replace(model, dtype=model.precision.outside.name)
  each = untied.of_visits(model, params, variables)['stack']
  alone = untied.some_visits(model, 1)
  states = variables.get('batch_stats', {}).get('stack', {})
  whole, one = Transformer(model), Stack(alone)

  def embedded(
    net: Transformer,
    tokens_BL: jax.Array,
    mask_BL: jax.Array | None = None,
    types_BL: jax.Array | None = None,
  ) -> tuple[jax.Array, Context]:
    sees = model.family == 'vision'
    length = model.max_len if sees else tokens_BL.shape[1]
    positions_BL = jnp.broadcast_to(
      jnp.arange(length), (len(tokens_BL), length)
    )
    texts = () if sees else (mask_BL, types_BL)
    x_BLD = net.embedding(tokens_BL, positions_BL, *texts)
    return x_BLD, Context(positions_BL, mask_BL)

  @jax.jit
  def begin(given: Any, read: Any) -> Any:
    return whole.apply(given, **read, method=embedded)

  @jax.jit
  def visit(
    weights: Any, state: Any, x_BLD: jax.Array, context: Context
  ) -> Any:
    there = {'params': {'rows': unflatten_dict(weights)}}
    if state:
      there['batch_stats'] = state
    ran: Any = one.apply(there, x_BLD, context)
    after_BLD = ran.x_XBLD[-1]
    turned_BL = 1 - _cosine(x_BLD, after_BLD)
    mask_BL = context.mask_BL
    counts_BL = jnp.ones(turned_BL.shape) if mask_BL is None else mask_BL
    return after_BLD, jnp.sum(turned_BL * counts_BL) / jnp.sum(counts_BL)

  found = []
  for read in inputs:
    x_BLD, context = begin({'params': params, **variables}, dict(read))
    turned = []
    for i in range(model.num_layers):
      own = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], (each, states))
      x_BLD, far = visit(*own, x_BLD, context)
      turned.append(far)
    found.append(turned)
  return np.asarray(jax.device_get(found)).mean(axis=0)


def _cosine(a_BLD: jax.Array, b_BLD: jax.Array) -> jax.Array:
  a_BLD, b_BLD = (x.astype(jnp.float32) for x in (a_BLD, b_BLD))
  lengths = jnp.linalg.norm(a_BLD, axis=-1) * jnp.linalg.norm(b_BLD, axis=-1)
  return jnp.sum(a_BLD * b_BLD, axis=-1) / jnp.maximum(lengths, 1e-12)
