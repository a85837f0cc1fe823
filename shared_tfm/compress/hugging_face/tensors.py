"""Their tensors as our parameters, and back."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shared_tfm.compress.hugging_face.family import Family
from shared_tfm.config import Config
from shared_tfm.errors import need
from shared_tfm.model import build

Path = tuple[str, ...]
_LEAVES = {'kernel': 'weight', 'embedding': 'weight', 'scale': 'weight'}


class Link(NamedTuple):
  """One tensor of ours, or one row of it, and where it lies there.

  Attributes:
    path: in our parameters.
    row: of a bank; None: it is no bank's.
    name: of their tensor.
    part: which of how many that lie side by side there, along the last axis.
    turned: whether they store it transposed.
    shape: of ours.
    scale: what theirs is multiplied by.
  """

  path: Path
  row: int | None
  name: str
  part: tuple[int, int]
  turned: bool
  shape: tuple[int, ...]
  scale: float = 1.0

  @property
  def module(self) -> str:
    """Ours, dotted; of a bank's, its path in a layer."""
    return '.'.join(self.path[0 if self.row is None else 2 : -1])

  @property
  def there(self) -> tuple[int, ...]:
    """The shape of their tensor."""
    *most, last = self.shape
    shape = (*most, last * self.part[1])
    return shape[::-1] if self.turned else shape


@functools.lru_cache(maxsize=8)
def shapes(config: Config) -> Any:
  """The parameters of a config, as shapes."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  source = {}
  if config.model.family == 'encoder_decoder':
    source['source_BS'] = tokens
  made = jax.eval_shape(build(config).init, jax.random.key(0), tokens, **source)
  return nn.unbox(made)['params']


def links(
  family: Family,
  config: Config,
  inner: int = 1,
  scales: Mapping[str, float] | None = None,
) -> list[Link]:
  """Where every parameter of a config lies there.

  Args:
    family: of theirs.
    config: ours, whose bank has a full row for each of theirs.
    inner: how many rows a group of layers has.
    scales: by what weights of our modules are theirs multiplied; None: by 1.
  """
  banks = {'stack': (family.layers, family.inside), 'encoder': family.encoder}
  _, own = family.heads[config.model.head]
  outside, found = {**family.outside, **own}, []
  for path, leaf in flatten_dict(shapes(config)).items():
    if path[0] not in banks:
      found.append(_link(family, outside, path, path, leaf.shape, None, ''))
      continue
    layers, inside = banks[path[0]]
    for row in range(leaf.shape[0]):
      numbers = divmod(row, inner) if layers.count('{}') > 1 else (row,)
      at = layers.format(*numbers)
      found.append(
        _link(family, inside, path, path[2:], leaf.shape[1:], row, at)
      )
  by = scales or {}
  return [link._replace(scale=by.get(link.module, 1.0)) for link in found]


def _link(
  family: Family,
  names: Mapping[str, str],
  path: Path,
  inside: Path,
  shape: tuple[int, ...],
  row: int | None,
  at: str,
) -> Link:
  whole = names.get('.'.join(inside))
  if whole:
    return Link(path, row, at + whole, (0, 1), False, shape)
  module, _, share = names['.'.join(inside[:-1])].partition(':')
  number, _, count = (share or '0/1').partition('/')
  turned = inside[-1] == 'kernel' and (
    family.turned or inside == ('head', 'table', 'kernel')
  )
  name = f'{at}{module}.{_LEAVES.get(inside[-1], inside[-1])}'
  return Link(path, row, name, (int(number), int(count)), turned, shape)


def gathered(
  found: list[Link], shape_of: Mapping[str, Any], read: Callable[[str], Any]
) -> Any:
  """Our parameters out of their tensors.

  Args:
    found: see `links`.
    shape_of: the shape of each tensor there is.
    read: gives one by its name.

  Raises:
    BadInput: a tensor is missing or has another shape; which.
  """
  missing = [
    n for n in dict.fromkeys(x.name for x in found) if n not in shape_of
  ]
  need(
    not missing,
    f'no tensor {", ".join(missing[:3])}{", …" * (len(missing) > 3)}'
    f' ({len(missing)} missing)',
  )
  leaves: dict[Path, Any] = {}
  for link in found:
    need(
      tuple(shape_of[link.name]) == link.there,
      f'{link.name} has shape {tuple(shape_of[link.name])}, and its config'
      f' says {link.there}',
    )
    tensor = np.asarray(read(link.name)).astype(np.float32)
    tensor *= np.float32(link.scale)
    ours = tensor.T if link.turned else tensor
    i, n = link.part
    leaf = np.split(ours, n, axis=-1)[i] if n > 1 else ours
    if link.row is None:
      leaves[link.path] = leaf
    else:
      leaves.setdefault(link.path, []).append(leaf)
  return unflatten_dict(
    {
      path: np.stack(leaf) if isinstance(leaf, list) else leaf
      for path, leaf in leaves.items()
    }
  )


def scattered(found: list[Link], params: Any) -> dict[str, np.ndarray]:
  """Their tensors out of our parameters."""
  flat, parts = flatten_dict(params), dict[str, dict[int, np.ndarray]]()
  for link in found:
    leaf = np.asarray(flat[link.path], np.float32)
    leaf = leaf if link.row is None else leaf[link.row]
    leaf = leaf / np.float32(link.scale)
    parts.setdefault(link.name, {})[link.part[0]] = (
      leaf.T if link.turned else leaf
    )
  return {
    name: np.ascontiguousarray(
      np.concatenate([each[i] for i in sorted(each)], axis=-1)
    )
    for name, each in parts.items()
  }


def strays(family: Family, names: set[str]) -> list[str]:
  """Which of the tensors that are not read nobody knows."""
  known = re.compile('|'.join(family.left))
  return sorted(name for name in names if not known.fullmatch(name))
