"""The same network, with weights of its own for every visit.

Whatever a scheme stores, a visit runs on a full set of weights. Stored one set
a visit, these are a network that shares nothing and computes the same. Its
gradients are those of single visits, which sharing adds up.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shared_tfm.config import Depth, Model, Sharing, sides
from shared_tfm.config.loops import loops
from shared_tfm.config.shapes import components
from shared_tfm.model.storage import layout, rounded
from shared_tfm.sharing import bank, links, masks


def untied(model: Model) -> Model:
  """The config of the network that shares no weights.

  Activations that layers reuse are still reused, and what loops still loops.
  """
  kept = ('kv_source', 'map_source')
  fields = {name: getattr(model.sharing, name) for name in kept}
  theirs = {name: getattr(model.sharing_decoder, name) for name in kept}
  depth = model.depth
  if model.family != 'encoder_decoder':
    p, c, _, k = loops(model)
    depth = dataclasses.replace(depth, prelude=p, core=c, coda=k)
  return dataclasses.replace(
    model,
    sharing=Sharing(**fields),
    sharing_decoder=Sharing(layer='', **theirs),
    shared_gradient='sum',
    tables='fixed',
    masked='',
    depth=depth,
    quantise=dataclasses.replace(
      model.quantise, weights='none', store='float32'
    ),
  )


def some_visits(model: Model, number: int) -> Model:
  """`untied(model)` of some visits, at a fixed depth and with its scale."""
  return dataclasses.replace(
    untied(model),
    num_layers=number,
    residual_visits=model.scaled_visits,
    depth=Depth(),
    remat_group=1,
  )


def spread(model: Model, params: Any, variables: Any) -> Any:
  """The parameters of `untied(model)` that make it compute what `model` does.

  Args:
    model: any network.
    params: its parameters.
    variables: its other collections, of which 'tables' and 'masks' are read if
      they are there.
  """
  found = dict(params)
  whole = sides.stacks(untied(model))
  for name, weights in of_visits(model, params, variables).items():
    own, leaves = components(whole[name]), layout(whole[name])
    kept = {
      path: leaf[np.array(own[leaves[path].name].owners[0]) >= 0]
      for path, leaf in weights.items()
    }
    found[name] = {'rows': unflatten_dict(kept)}
  return found


def of_visits(
  model: Model, params: Any, variables: Any
) -> dict[str, dict[tuple[str, ...], jax.Array]]:
  """The weights of every visit, by stack and path: a leading axis of visits.

  Of a part that a visit does not read, any values. Arguments as `spread`.
  """
  found, lender = {}, None
  for name, side in sides.stacks(model).items():
    stored = masks.applied(
      params[name], variables.get('masks', {}).get(name, {})
    )
    if lender is not None:
      stored = bank.borrowed(stored, lender, components(side), layout(side))
    lender = stored
    found[name] = _of_every_visit(side, stored, variables.get('tables', {}))
  return found


def _of_every_visit(side: Model, stored: Any, state: Any) -> Any:
  """The weights of a stack's visits, by path: a leading axis of visits."""
  found, stored = components(side), rounded(side, stored)
  tables = {
    name: jnp.array(c.owners).T[c.here] for name, c in found.items() if c.owners
  }
  if state:
    tables = state['stack']['owners']
  each = jax.vmap(lambda rows: links.weights(stored, found, layout(side), rows))
  return flatten_dict(each(tables))
