"""Centred kernel alignment between what all visits hand on.

Linear CKA (Kornblith et al., 1905.00414, section 3), each position of a text an
example: HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b)), 1 for streams that differ by
a rotation and a factor. HSIC is the unbiased estimator, its mean taken over
small groups of positions before the ratio (Nguyen et al., 2010.15327, section
2, equations 2 and 3), so that nothing but a group is ever held. It can be a
little below 0 where two streams have nothing in common.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.errors import need
from shared_tfm.report.analysis import drawing, text
from shared_tfm.report.analysis.reader import Reader, Seen

GROUP = 512  # positions, at most
LEAST = 4  # that the unbiased estimator needs


def why_not(reader: Reader) -> str:
  """Nothing."""
  return ''


def measure(reader: Reader) -> dict[str, Any]:
  """By side the matrix of all pairs of visits, N lists of N numbers.

  Raises:
    BadInput: no text has enough positions.
  """

  def of_batch(_: Any, seen: Seen) -> Any:
    return {side: hsic(seen.out[side], seen.live[side]) for side in seen.out}

  found = {}
  for side, (sums_NN, groups) in reader.summed(of_batch).items():
    need(
      groups > 0, f'cka needs batches of at least {LEAST} positions that count'
    )
    found[side] = cka(sums_NN).tolist()
  return found


def cka(hsic_NN: np.ndarray) -> np.ndarray:
  """Of sums of HSIC over groups; 0 beside a stream that never changes."""
  size_N = np.sqrt(np.diagonal(hsic_NN))
  size_NN = size_N[:, None] * size_N
  return hsic_NN / np.where(size_NN > 0, size_NN, np.inf)


def hsic(
  streams: Sequence[jax.Array], live_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The sum of HSIC over groups of positions, (N, N), and how many there are.

  Groups are drawn from all positions of the batch at random, always alike: a
  group of one place of all texts, say, would not see what places differ in.

  Args:
    streams: (N, B, L, D) each; D may differ, N is of all of them together.
    live_BL: which positions are examples.
  """
  count = live_BL.size
  size = min(GROUP, count)
  groups = math.ceil(count / size)
  drawn = shuffled(count)

  def cut(a: jax.Array) -> jax.Array:
    """(B, L, ...) as (groups, size, ...)."""
    flat = a.reshape(count, *a.shape[2:])[drawn]
    rest = [(0, 0)] * (flat.ndim - 1)
    flat = jnp.pad(flat, [(0, groups * size - count), *rest])
    return flat.reshape(size, groups, *flat.shape[1:]).swapaxes(0, 1)

  def of_group(group: Any) -> tuple[jax.Array, jax.Array]:
    live_T, parts = group
    n = jnp.sum(live_T)
    pairs_TT = live_T[:, None] & live_T[None] & ~jnp.eye(size, dtype=bool)
    each = [
      jax.vmap(lambda x_TD: _centred(x_TD, live_T, pairs_TT), 1)(x_TND)
      for x_TND in parts
    ]
    kernels_NX = jnp.concatenate(each).reshape(-1, size * size)
    found_NN = jnp.matmul(kernels_NX, kernels_NX.T, precision='highest')
    enough = n >= LEAST
    return jnp.where(enough, found_NN / (n * (n - 3.0)), 0), enough

  parts = [cut(jnp.moveaxis(x_NBLD, 0, 2)) for x_NBLD in streams]
  found_GNN, enough_G = jax.lax.map(of_group, (cut(live_BL), parts))
  return jnp.sum(found_GNN, axis=0), jnp.sum(enough_G)


def shuffled(count: int) -> np.ndarray:
  """The order in which groups take positions, in turns."""
  return np.random.default_rng(0).permutation(count)


def _centred(
  x_TD: jax.Array, live_T: jax.Array, pairs_TT: jax.Array
) -> jax.Array:
  """The linear kernel without its diagonal, U-centred: its rows sum to zero.

  The sum of products of two such, over n (n - 3), is the unbiased HSIC (Székely
  & Rizzo, 1310.2926). That the mean is subtracted first changes nothing but how
  much float32 loses.
  """
  n = jnp.sum(live_T)
  x_TD = jnp.where(live_T[:, None], x_TD.astype(jnp.float32), 0)
  mean_D = jnp.sum(x_TD, axis=0) / jnp.maximum(n, 1)
  x_TD = jnp.where(live_T[:, None], x_TD - mean_D[None], 0)
  kernel_TT = jnp.matmul(x_TD, x_TD.T, precision='highest') * pairs_TT
  sums_T = jnp.sum(kernel_TT, axis=0) / jnp.maximum(n - 2.0, 1)
  total = jnp.sum(sums_T) / jnp.maximum(n - 1.0, 1)
  return (kernel_TT - sums_T[:, None] - sums_T[None] + total) * pairs_TT


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
  """A row for each pair of visits."""
  return [
    {'side': side, 'visit': i, 'other': j, 'cka': value}
    for side, matrix in found.items()
    for i, line in enumerate(matrix)
    for j, value in enumerate(line)
  ]


def tell(found: dict[str, Any]) -> str:
  """The matrix of each side."""
  return '\n\n'.join(
    text.headed(side, text.matrix(matrix), found)
    for side, matrix in found.items()
  )


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
  """A map of each side."""
  titles = {side: (np.array(m), None) for side, m in found.items()}
  return [drawing.matrices(titles, 'CKA', (0, 1), folder / 'cka.png')]
