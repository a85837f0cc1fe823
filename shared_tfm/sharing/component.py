"""Components: specs at a number of layers, and what is stored for them."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

from shared_tfm.sharing import table
from shared_tfm.sharing.levels import Shape, Spec, parse
from shared_tfm.sharing.table import Owners


@dataclasses.dataclass(frozen=True)
class Component:
  """A named component, or part of one, with what it is stored as.

  Attributes:
    spec: how its weights are made.
    owners: for every level, the row each layer reads; -1 where a layer does not
      read this component at all.
    layers: where the table is one list over the layers of several stacks, the
      first that is this stack's and the one after its last; else None.
    borrowed: whether the rows are stored in the bank of another stack.
    capacity: how many rows are kept ready for a table that changes; 0: those of
      `owners`.
    reads: whether each layer reads this component; empty where all do.
  """

  spec: Spec
  owners: tuple[Owners, ...]
  layers: tuple[int, int] | None = None
  borrowed: bool = False
  capacity: int = 0
  reads: tuple[bool, ...] = ()

  @property
  def here(self) -> slice:
    """The part of `owners` that this stack's own layers read."""
    return slice(*self.layers) if self.layers else slice(None)

  def rows(self, level: int) -> int:
    """How many rows a level stores of a tensor that it holds in full."""
    return self.capacity or max(self.owners[level]) + 1

  def copies(self, level: int, axes: int) -> int:
    """How many rows, or templates, of a tensor with that many axes."""
    templates = self.spec.levels[level].templates
    return templates if templates and axes > 1 else self.rows(level)

  def readers(self, num_layers: int) -> int:
    """How many of the layers read this component."""
    return sum(self.reads[self.here]) if self.reads else num_layers

  def stored(self, shape: Shape, units: int = 0, axis: int = 0) -> int:
    """How many parameters are stored for one tensor of every layer.

    Arguments as of `tensors`.
    """
    return sum(math.prod(s) for _, s in self.tensors(shape, units, axis))

  def tensors(
    self, shape: Shape, units: int = 0, axis: int = 0
  ) -> Iterator[tuple[str, Shape]]:
    """What is stored for one tensor of every layer: suffixes and shapes.

    Args:
      shape: of the tensor in one layer.
      units: how many heads or neurons `axis` is made of; 0: it has no units.
      axis: of the units.
    """
    if self.borrowed:
      return
    shape = self.shrunk(shape, units, axis)
    for i in self.spec.terms(len(shape)):
      copies = self.copies(i, len(shape))
      for suffix, size in self.spec.levels[i].shapes(shape).items():
        yield suffix, (copies, *size)

  def shrunk(self, shape: Shape, units: int, axis: int) -> Shape:
    """The shape that is stored of a tensor whose units share columns."""
    if not (self.spec.within and units):
      return shape
    kept = max(self.spec.within.owners(units)) + 1
    size = shape[axis] // units * kept
    return (*shape[:axis], size, *shape[axis + 1 :])

  @property
  def templates(self) -> int:
    """How many templates each layer has a coefficient for; 0: not soft."""
    return sum(level.templates for level in self.spec.levels)

  @property
  def mix(self) -> tuple[int, int]:
    """The shape of the stored coefficients: (rows, templates)."""
    if self.borrowed or not self.templates:
      return 0, 0
    soft = [bool(level.templates) for level in self.spec.levels]
    return self.rows(soft.index(True)), self.templates


def components(
  specs: Mapping[str, str],
  num_layers: int,
  readers: Mapping[str, tuple[bool, ...]] | None = None,
) -> dict[str, Component]:
  """The components of a model by name.

  Args:
    specs: a spec for ROOT and for each component or part that has its own.
    num_layers: the number of visits.
    readers: for parts that not every layer has, which layers do. Such a part
      is a component of its own, under the spec of its nearest ancestor; its
      rows are those that are read.

  Raises:
    BadInput: a spec does not fit the number of layers.
  """
  readers = readers or {}
  found = {}
  for name in dict.fromkeys((*specs, *readers)):
    spec = parse(specs[table.resolve(specs, name)])
    owners = spec.owners(num_layers)
    reads = readers.get(name, ())
    if reads:
      owners = tuple(_restricted(rows, reads) for rows in owners)
    found[name] = Component(spec, owners, reads=reads)
  return found


def _restricted(owners: Owners, reads: tuple[bool, ...]) -> Owners:
  """A table of the layers that read, its rows dense from 0; -1 elsewhere."""
  seen = sorted({row for row, read in zip(owners, reads, strict=True) if read})
  return tuple(
    seen.index(row) if read else -1
    for row, read in zip(owners, reads, strict=True)
  )
