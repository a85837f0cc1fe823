"""How many directions stored weights make use of.

Of each matrix in each stored row of every level of a sum ('cycle:3+none@8' has
two): the effective rank, exp of the entropy of its singular values over their
sum (Roy & Vetterli, EUSIPCO 2007), and the stable rank, |W|_F^2 / |W|_2^2
(Rudelson & Vershynin, J. ACM 2007, where it is the numerical rank). Both are 0
of a matrix of zeros, such as a correction that nothing has trained, and else
lie between 1 and the smaller of its sizes, or the rank of its level. The
Frobenius norm says how much a level has to say beside the others. Of experts it
is their mean.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from shared_tfm.config import Model, sides
from shared_tfm.config.shapes import components
from shared_tfm.model.storage import layout
from shared_tfm.report.analysis import drawing, text
from shared_tfm.report.analysis.reader import Reader
from shared_tfm.sharing import links, masks
from shared_tfm.sharing.integers import Rounded
from shared_tfm.sharing.levels import DIAGONAL, Level


def why_not(reader: Reader) -> str:
  """Nothing."""
  return ''


def measure(reader: Reader) -> list[dict[str, Any]]:
  """A list of what `rows` shows."""
  found = []
  params, state = reader.variables['params'], reader.variables
  for name, side in sides.stacks(reader.config.model).items():
    held = state.get('masks', {}).get(name, {})
    stored = jax.device_get(masks.applied(params[name], held))
    tables = state.get('tables', {}).get(name, {}).get('owners', {})
    found += of_stack(name, side, stored, tables)
  return found


def of_stack(
  name: str,
  model: Model,
  stored: Mapping[str, Any],
  tables: Mapping[str, Any],
) -> list[dict[str, Any]]:
  """What is stored in one bank, matrix by matrix and row by row.

  Args:
    name: of the stack.
    model: of the stack.
    stored: its bank.
    tables: by component (visits, levels), where they change; else empty.
  """
  flat = {group: flatten_dict(tree) for group, tree in stored.items()}
  found, own = [], components(model)
  for path, leaf in layout(model).items():
    component = own[leaf.name]
    if path[-1] != 'kernel' or component.borrowed or component.spec.same_as:
      continue
    for level in component.spec.terms(len(leaf.shape)):
      term = component.spec.levels[level]
      owners = np.array(component.owners[level])
      if leaf.name in tables:  # there is room for more rows than are read
        owners = np.asarray(tables[leaf.name])[:, level]
      read = sorted(set(map(int, owners)) - {-1})
      values, most = _values(flat[links.group(level)], path, term)
      found += [
        {
          'stack': name,
          'part': '.'.join(path[:-1]),
          'level': str(term),
          'row': row,
          **measured(values[row]),
          'most': most,
        }
        for row in (range(len(values)) if term.templates else read)
      ]
  return found


def _values(
  bank: Mapping[tuple[str, ...], Any], path: tuple[str, ...], term: Level
) -> tuple[np.ndarray, int]:
  """Singular values of all rows, (rows, ..., rank), and how many may not be 0.

  Of a product by way of the factors' triangular parts: it is never multiplied
  out.
  """
  if term.diagonal:
    values = np.abs(_array(bank[(*path, DIAGONAL)]))
  elif term.rank:
    a, b = (_array(bank[(*path, suffix)]) for suffix in 'ab')
    _, left = np.linalg.qr(a)
    _, right = np.linalg.qr(b.swapaxes(-1, -2))
    values = np.linalg.svd(left @ right.swapaxes(-1, -2), compute_uv=False)
  else:
    values = np.linalg.svd(_array(bank[path]), compute_uv=False)
  return values, values.shape[-1]


def _array(leaf: Any) -> np.ndarray:
  whole = leaf.whole() if isinstance(leaf, Rounded) else leaf
  return np.asarray(whole, np.float32)


def measured(values: np.ndarray) -> dict[str, float]:
  """Of singular values (..., n): means over what comes first."""
  values = np.asarray(values, np.float64)
  shares = values / np.maximum(values.sum(axis=-1, keepdims=True), 1e-300)
  logs = np.log(np.where(shares > 0, shares, 1))
  some = values.max(axis=-1) > 0
  effective = np.where(some, np.exp(-(shares * logs).sum(axis=-1)), 0)
  squares = (values**2).sum(axis=-1)
  largest = np.maximum((values**2).max(axis=-1), 1e-300)
  return {
    'effective': float(effective.mean()),
    'stable': float((squares / largest).mean()),
    'norm': float(np.sqrt(squares).mean()),
  }


def rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """As it is: stack, part, level and row; what was measured; and the most."""
  return found


def tell(found: list[dict[str, Any]]) -> str:
  """A line for each part and level, with the mean over rows and its range."""
  shown = []
  for (stack, part, level), each in _grouped(found).items():
    ranks = [one['effective'] for one in each]
    shown.append(
      {
        'stack': stack,
        'part': part,
        'level': level,
        'rows': len(each),
        'most': each[0]['most'],
        'effective rank': _range(ranks),
        'stable rank': _range([one['stable'] for one in each]),
        'norm': _range([one['norm'] for one in each]),
      }
    )
  if len({line['stack'] for line in shown}) == 1:
    return text.table(shown, drop='stack', left=2)
  return text.table(shown, left=3)


def _grouped(
  found: list[dict[str, Any]],
) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
  groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
  for one in found:
    key = one['stack'], one['part'], one['level']
    groups.setdefault(key, []).append(one)
  return groups


def _range(values: list[float]) -> str:
  low, high, mean = min(values), max(values), sum(values) / len(values)
  return f'{mean:.2f}' + (f' ({low:.2f}-{high:.2f})' if len(values) > 1 else '')


def draw(found: list[dict[str, Any]], folder: Path) -> list[Path]:
  """The effective rank over the most there could be, row by row."""
  stacks = {one['stack'] for one in found}
  panels: dict[str, dict[str, list[float]]] = {}
  for (stack, part, level), each in _grouped(found).items():
    title = f'{stack}: {level}' if len(stacks) > 1 else level
    shares = [one['effective'] / one['most'] for one in each]
    panels.setdefault(title, {})[part] = shares
  return [drawing.shares(panels, folder / 'rank.png')]
