"""Cross-entropy, also of more logits than there is room for at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Score = Callable[[jax.Array], jax.Array]


def cross_entropy(
  logits: Any, targets: jax.Array, smoothing: float = 0.0
) -> jax.Array:
  """Cross-entropy in nats, in the shape of the targets.

  Args:
    logits: (..., V).
    targets: integers below V.
    smoothing: the share of a label that is spread evenly over all V
      (1512.00567, section 7).
  """
  losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(
    logits, targets
  )
  if not smoothing:
    return losses
  uniform = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
  return (1 - smoothing) * losses + smoothing * uniform


def in_pieces(
  score: Score,
  x_BLE: jax.Array,
  targets_BL: jax.Array,
  smoothing: float,
  most: int,
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of `score(x_BLE)`, and whether the target scores best.

  A piece is every n-th position of all sequences, so that positions cut over
  devices stay where they are. Its logits are made again in the backward pass;
  those of all pieces are never held together.

  Args:
    score: a pure function, (B, C, E) to logits (B, C, V).
    x_BLE: what is scored.
    targets_BL: integers below V.
    smoothing: as in `cross_entropy`.
    most: how many bytes of logits a piece may have; one position of each
      sequence, if that has more.

  Returns:
    Losses in nats (B, L), and booleans (B, L).
  """

  def piece(x_BCE: jax.Array, targets_BC: jax.Array) -> Any:
    logits_BCV = score(x_BCE)
    hits_BC = jnp.argmax(logits_BCV, axis=-1) == targets_BC
    return cross_entropy(logits_BCV, targets_BC, smoothing), hits_BC

  logits = jax.eval_shape(score, x_BLE)
  length = targets_BL.shape[1]
  count = min(length, -(-logits.size * logits.dtype.itemsize // most))
  if count <= 1:
    found: tuple[jax.Array, jax.Array] = piece(x_BLE, targets_BL)
    return found

  def cut(a: jax.Array) -> jax.Array:
    rest = [(0, 0)] * (a.ndim - 2)
    a = jnp.pad(a, [(0, 0), (0, -length % count), *rest])
    return jnp.moveaxis(a.reshape(len(a), -1, count, *a.shape[2:]), 2, 0)

  pieces = jax.lax.map(
    lambda one: jax.checkpoint(piece)(*one), (cut(x_BLE), cut(targets_BL))
  )
  losses_BL, hits_BL = (
    jnp.moveaxis(a, 0, 2).reshape(len(x_BLE), -1)[:, :length] for a in pieces
  )
  return losses_BL, hits_BL
