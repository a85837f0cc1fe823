"""What a stack stores: how it is laid out, how it begins, how it is held."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm.config import Model, shapes
from shared_tfm.config.shapes import components
from shared_tfm.layers.context import Context
from shared_tfm.layers.layer import Layer
from shared_tfm.sharing import bank, links, quantise


def rounded(model: Model, bank: Mapping[str, Any]) -> dict[str, Any]:
  """A stack's bank as `model.quantise.weights` has it picked from."""
  rounding = model.quantise.rounding
  if rounding is None:
    return dict(bank)
  parts = components(model), layout(model)
  return quantise.linked(bank, *parts, rounding, shapes.is_multiplied)


def as_held(model: Model, bank: Mapping[str, Any]) -> dict[str, Any]:
  """A stack's bank, or a part of it, as the parameter tree holds it."""
  rounding = model.quantise.rounding
  if rounding is None or not model.quantise.integers:
    return dict(bank)
  parts = components(model), layout(model)
  return quantise.stored(bank, *parts, rounding, shapes.is_multiplied)


@functools.lru_cache
def layout(model: Model) -> bank.Layout:
  """Every tensor of a layer, and the component it follows."""
  units = {
    'heads': model.num_heads,
    'kv_heads': model.num_kv_heads,
    'mlp': model.experts.ff_width if model.experts.num_ff else model.d_ff,
  }
  return bank.layout(layer_shapes(model)['params'], components(model), units)


def level(model: Model, number: int, key: jax.Array) -> Any:
  """One level of a fresh bank, as the parameter tree holds it."""
  return _of_layers(model, number, lambda key: layer(model, key)['params'], key)


@functools.lru_cache
def _level_shapes(model: Model, level: int) -> Any:
  """The shapes of a level, from those of a layer, of which none is made."""

  def zeros(_: jax.Array) -> Any:
    return jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
      layer_shapes(model)['params'],
    )

  made = functools.partial(_of_layers, model, level, zeros)
  return jax.eval_shape(made, jax.random.key(0))


def _of_layers(model: Model, level: int, init: bank.Init, key: Any) -> Any:
  """One level of a bank whose layers begin as `init` says."""
  rows = bank.init_level(level, init, components(model), layout(model), key)
  name = links.group(level)
  return as_held(model, {name: rows})[name]


def shaped_as_level(model: Model, level: int, _: jax.Array) -> Any:
  """What Flax holds the shapes of a given bank against, at every use of it."""
  return jax.tree.map(
    lambda s: jnp.zeros(s.shape, s.dtype), _level_shapes(model, level)
  )


@functools.lru_cache
def layer_shapes(model: Model) -> Any:
  """The shapes of all collections of a layer."""
  return jax.eval_shape(functools.partial(layer, model), jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def layer(model: Model, key: jax.Array) -> Any:
  """A fresh layer, which is traced once for all its rows, levels and states."""
  return Layer(model, parent=None).init(key, *_blank(model))


def _blank(model: Model) -> tuple[jax.Array, Context]:
  """The smallest input of a layer."""
  x_BLD = jnp.zeros((1, 1, model.d_model), jnp.dtype(model.precision.compute))
  memory_BSD = None
  if model.family == 'encoder_decoder':
    memory_BSD = jnp.zeros((1, 1, model.memory_width), x_BLD.dtype)
  return x_BLD, Context(jnp.zeros((1, 1), jnp.int32), memory_BSD=memory_BSD)
