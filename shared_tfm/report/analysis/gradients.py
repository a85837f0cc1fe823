"""Whether the visits of a stored row pull it the same way.

The gradient of a row is the sum of what its visits send. Here are the cosines
between these terms, of the loss that a training step sees (dropout and all),
summed over the batches that are read: all pairs of visits of each component,
and of each stored row the mean over the pairs of its own visits. Where visits
share no row, the cosine says whether they could.
"""

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.config import shapes, sides
from shared_tfm.report.analysis import drawing, text
from shared_tfm.report.analysis.reader import Reader
from shared_tfm.sharing import resolve
from shared_tfm.train import visits


def why_not(reader: Reader) -> str:
  """One visit has nothing to be compared with; no loss has no gradient."""
  if not reader.labelled:
    return f'the {reader.split} split has nothing to be told, and so no loss'
  stacks = sides.stacks(reader.config.model).values()
  if all(stack.num_layers == 1 for stack in stacks):
    return 'every stack has one visit, and nothing to compare it with'
  return ''


def measure(reader: Reader) -> dict[str, Any]:
  """By component 'cosines', N lists of N numbers, and where rows are read

  whole or as a first level, 'owners', (N,), and 'rows': of each that several
  visits read, their mean cosine.
  """
  config, state = reader.trained, reader.state
  gradient = jax.jit(visits.visit_gradients(config))
  total = None
  for i, batch in enumerate(reader.batches()):
    # A key of its own for each batch.
    found = gradient(state.replace(step=state.step + i), jax.device_put(batch))
    total = found if total is None else jax.tree.map(jnp.add, total, found)
  cosines = jax.device_get(visits.cosines_of(config, total))
  return {
    name: _owned(np.asarray(matrix, np.float64), _owners(reader, name))
    for name, matrix in cosines.items()
  }


def _owners(reader: Reader, name: str) -> list[int]:
  """The row that each visit reads of a component's first level; or none."""
  stacks = sides.stacks(reader.config.model)
  stack, inside = 'stack', name
  first, _, rest = name.partition('.')
  if first in stacks:
    stack, inside = first, rest
  components = shapes.components(stacks[stack])
  at = resolve(components, inside)
  if tables := reader.variables.get('tables'):
    rows = np.asarray(tables['stack']['owners'][at])[:, 0]
    return [int(row) for row in rows]
  owners = components[at].owners
  return list(owners[0][components[at].here]) if owners else []


def _owned(cosines: np.ndarray, owners: list[int]) -> dict[str, Any]:
  found: dict[str, Any] = {'cosines': cosines.tolist(), 'owners': owners}
  means = {}
  for row in sorted(set(owners) - {-1}):
    readers = [i for i, owner in enumerate(owners) if owner == row]
    pairs = list(itertools.combinations(readers, 2))
    if pairs:
      means[str(row)] = float(np.mean([cosines[pair] for pair in pairs]))
  return {**found, 'rows': means}


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
  """A row for each pair of visits of each component."""
  return [
    {
      'component': name,
      'visit': i,
      'other': j,
      'same_row': bool(
        each['owners'] and each['owners'][i] == each['owners'][j] >= 0
      ),
      'cosine': value,
    }
    for name, each in found.items()
    for i, line in enumerate(each['cosines'])
    for j, value in enumerate(line)
  ]


def tell(found: dict[str, Any]) -> str:
  """The matrix of each component, and the means of its rows."""
  parts = []
  for name, each in found.items():
    lines = [name, text.matrix(each['cosines'])]
    lines += [
      f'row {row}: {mean:.3f} between its'
      f' {each["owners"].count(int(row))} visits, on average'
      for row, mean in each['rows'].items()
    ]
    parts.append('\n'.join(lines))
  return '\n\n'.join(parts)


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
  """A map of each component, in which visits of one row are framed."""
  maps = {
    name: (np.array(each['cosines']), each['owners'])
    for name, each in found.items()
  }
  path = folder / 'gradients.png'
  return [drawing.matrices(maps, 'cosine of gradients', (-1, 1), path)]
