"""A number that tells a state from any other, wherever its parts live.

It is computed on the devices, each from its own part, in integers modulo 2^32:
so it is the same however a state is cut, and nothing has to be gathered.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WORDS = 4  # of 32 bits


def fingerprint(state: Any) -> str:
  """128 bits of every leaf's path, dtype, shape and content, in hexadecimal.

  Four sums of mixed words, each with its place: one changed word always changes
  all four. It finds damage; it is no defence against somebody who wants to
  deceive, and in a leaf of more than 2^32 elements places repeat.

  Args:
    state: a tree of arrays of any integer or floating dtype, or bool.
  """
  words = jax.device_get(_summed(state))
  return ''.join(f'{int(word):08x}' for word in words)


@jax.jit  # one program: where there are several, hosts may differ in the order
def _summed(state: Any) -> jax.Array:
  totals = jnp.zeros(WORDS, jnp.uint32)
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    head = f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'
    salts = np.frombuffer(hashlib.sha256(head.encode()).digest(), np.uint32)
    totals += _of_leaf(leaf, salts.reshape(2, WORDS).T)
  return totals


@jax.jit  # traced once for all leaves of a shape: weights, moments of each
def _of_leaf(leaf: jax.Array, salts: jax.Array) -> jax.Array:
  def one(salts: jax.Array) -> jax.Array:
    salt, second = salts
    key = _mixed(_mixed(_places(leaf.shape) ^ salt) + second)
    total = _mixed(salt)  # an empty leaf counts, too
    for word in _words(leaf):
      total += jnp.sum(_mixed(word ^ key), dtype=jnp.uint32)
      key = _mixed(key + salt)
    return total

  return jax.vmap(one)(salts)


def _places(shape: tuple[int, ...]) -> jax.Array:
  """A number for every element, by its place in the whole array."""
  place = jnp.zeros(shape, jnp.uint32)
  for axis, size in enumerate(shape):
    along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    place = place * jnp.uint32(size) + along
  return place


def _words(leaf: jax.Array) -> list[jax.Array]:
  """The bits of every element, as one or two words."""
  if leaf.dtype == jnp.bool_:
    return [leaf.astype(jnp.uint32)]
  bits = 8 * leaf.dtype.itemsize
  if bits == 64:
    pair = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    return [pair[..., 0], pair[..., 1]]
  word = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{bits}'))
  return [word.astype(jnp.uint32)]


def _mixed(x: jax.Array) -> jax.Array:
  """A permutation of 32-bit words in which every bit depends on every other."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
