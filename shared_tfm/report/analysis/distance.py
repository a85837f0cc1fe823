"""How far each visit moves the residual stream.

The distance and the angle between the vector that enters a visit and the one
that leaves it, the mean over positions: figure 1 of ALBERT (1909.11942), where
both oscillate and do not converge to zero.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm.report.analysis import drawing, text
from shared_tfm.report.analysis.reader import Reader, Seen

NAMES = {
  'l2': 'L2 distance',
  'cosine': 'cosine',
  'degrees': 'angle (degrees)',
}


def why_not(reader: Reader) -> str:
  """Nothing."""
  return ''


def measure(reader: Reader) -> dict[str, Any]:
  """By side and by name ('l2', 'cosine', 'degrees') a mean for each visit."""

  def of_batch(_: Any, seen: Seen) -> Any:
    return {
      side: {
        **moved(seen.into[side], seen.out[side], seen.live[side]),
        'count': jnp.sum(seen.live[side]),
      }
      for side in seen.out
    }

  return {
    side: {name: (sums[name] / sums['count']).tolist() for name in NAMES}
    for side, sums in reader.summed(of_batch).items()
  }


def moved(
  into: list[jax.Array], out: list[jax.Array], live_BL: jax.Array
) -> dict[str, jax.Array]:
  """Sums over positions that count, (N,) each.

  Args:
    into: what enters visits, (N, B, L, D) for each stack.
    out: what leaves them.
    live_BL: which positions count.
  """

  def of_visit(pair: Any) -> list[jax.Array]:
    a_BLD, b_BLD = (x.astype(jnp.float32) for x in pair)
    sizes_BL = jnp.linalg.norm(a_BLD, axis=-1) * jnp.linalg.norm(b_BLD, axis=-1)
    cosine_BL = jnp.sum(a_BLD * b_BLD, axis=-1) / jnp.maximum(sizes_BL, 1e-12)
    cosine_BL = jnp.clip(cosine_BL, -1, 1)
    each = (
      jnp.linalg.norm(a_BLD - b_BLD, axis=-1),
      cosine_BL,
      jnp.degrees(jnp.arccos(cosine_BL)),
    )
    return [jnp.sum(x_BL * live_BL) for x_BL in each]

  stacks = [jax.lax.map(of_visit, pair) for pair in zip(into, out, strict=True)]
  every = [jnp.concatenate(parts) for parts in zip(*stacks, strict=True)]
  return dict(zip(NAMES, every, strict=True))


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
  """A row for each visit."""
  return [
    {'side': side, 'visit': visit, **dict(zip(NAMES, values, strict=True))}
    for side, each in found.items()
    for visit, values in enumerate(
      zip(*(each[name] for name in NAMES), strict=True)
    )
  ]


def tell(found: dict[str, Any]) -> str:
  """The same rows."""
  return text.table(rows(found), drop='side' if len(found) == 1 else '')


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
  """A curve of the distance and one of the angle."""
  curves = {
    NAMES[name]: {side: each[name] for side, each in found.items()}
    for name in ('l2', 'degrees')
  }
  return [drawing.over_visits(curves, folder / 'distance.png')]
