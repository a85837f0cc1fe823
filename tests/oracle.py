"""The plain form of the network: a Python loop over an owner table.

It knows nothing of banks being picked from inside a scan. The bank is first
spread out to one set of weights per layer; the gradient of a row is the sum of
the gradients of the layers that own it. This is what the product must equal.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.config import Model
from shared_tfm.layers.context import Context
from shared_tfm.layers.embedding import Embedding
from shared_tfm.layers.layer import Layer
from shared_tfm.layers.norm import Norm
from shared_tfm.layers.position import RelativeBias
from shared_tfm.model import Transformer

COMPONENTS = ('attention', 'feed_forward', 'norm')
Owners = dict[str, tuple[int, ...]]  # one table per component


def spread(bank: Any, owners: Owners) -> Any:
  """A bank as one entry per layer."""

  def layers(name: str, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[np.array(owners[name])], tree)

  return {name: layers(name, bank[name]) for name in COMPONENTS}


def gathered(per_layer: Any, owners: Owners) -> Any:
  """Gradients per layer as gradients per row: summed over its visits."""

  def rows(table: tuple[int, ...], leaf: Any) -> np.ndarray:
    leaf = np.asarray(leaf)
    out = np.zeros((max(table) + 1, *leaf.shape[1:]), leaf.dtype)
    np.add.at(out, np.array(table), leaf)
    return out

  return {
    name: jax.tree.map(functools.partial(rows, owners[name]), per_layer[name])
    for name in COMPONENTS
  }


def logits(
  model: Model,
  params: Any,
  state: Any,
  tokens_BL: jax.Array,
  mask_BL: jax.Array | None = None,
  train: bool = False,
) -> tuple[jax.Array, list[Any]]:
  """Logits, and the state every layer's visit left behind.

  Args:
    model: the network's config; its sharing is not looked at.
    params: as the product's, with 'stack' spread out to one entry per layer.
    state: the product's batch_stats, or nothing.
    tokens_BL: the input.
    mask_BL: False at padding.
    train: whether batch statistics are taken from the batch.
  """

  def run(module: Any, name: str, *args: Any) -> jax.Array:
    variables = {'params': params[name]}
    if name in state:
      variables['batch_stats'] = state[name]
    return module.apply(variables, *args, mutable=['batch_stats'])[0]

  positions_BL = jnp.broadcast_to(
    jnp.arange(tokens_BL.shape[1])[None], tokens_BL.shape
  )
  x_BLD = run(
    Embedding(model, train), 'embedding', tokens_BL, positions_BL, mask_BL
  )
  bias_BHLL = None
  if model.position == 'relative':
    bias_BHLL = run(RelativeBias(model), 'relative', positions_BL, positions_BL)
  context = Context(positions_BL, mask_BL, bias_BHLM=bias_BHLL)
  left = []
  for i in range(model.num_layers):
    variables = {'params': jax.tree.map(lambda w, i=i: w[i], params['stack'])}
    if 'stack' in state:
      variables['batch_stats'] = jax.tree.map(
        lambda s, i=i: s[i], state['stack']['layer']
      )
    (x_BLD, _), after = Layer(model, train).apply(
      variables, x_BLD, context, mutable=['batch_stats']
    )
    left.append(after.get('batch_stats', {}))
  if model.norm_position != 'post':
    x_BLD = run(Norm(model, train), 'norm', x_BLD, mask_BL)

  def head(whole: Transformer, x_BLD: jax.Array) -> jax.Array:
    return whole.scores(x_BLD, mask_BL)

  variables = {'params': params, 'batch_stats': state}
  scored, _ = Transformer(model, train).apply(
    variables, x_BLD, method=head, mutable=['batch_stats']
  )
  return scored, left
