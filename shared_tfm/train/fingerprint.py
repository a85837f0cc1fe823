"""A number that tells a state from any other, wherever its parts live.

It is computed on the devices, each from its own part, in integers modulo 2^32:
so it is the same however a state is cut, and nothing has to be gathered.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

WORDS = 4  # of 32 bits


def fingerprint(state: Any) -> str:
  """128 bits of every leaf's path, dtype, shape and content, in hexadecimal.

  A sum of mixed words, each with its place: one changed word always changes
  it, and several do but for a chance of 2^-128. It finds damage; it is no
  defence against somebody who wants to deceive.

  Args:
    state: a tree of arrays of any integer or floating dtype, or bool.
  """
  words = jax.device_get(_summed(state))
  return ''.join(f'{int(word):08x}' for word in words)


@jax.jit
def _summed(state: Any) -> jax.Array:
  total = jnp.zeros(WORDS, jnp.uint32)
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    head = f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'
    salt = jnp.uint32(zlib.crc32(head.encode()))
    place = _mixed(_places(leaf.shape) ^ salt)
    for i in range(WORDS):
      seed = jnp.uint32((i + 1) * 0x9E3779B9 & 0xFFFFFFFF)
      summed = _mixed(salt ^ seed)  # an empty leaf counts, too
      for word in _words(leaf):
        summed += jnp.sum(_mixed(word ^ _mixed(place + seed)), dtype=jnp.uint32)
        place = _mixed(place)
      total = total.at[i].add(summed)
  return total


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
