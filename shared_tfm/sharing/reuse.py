"""Activations that layers reuse: which slots hold them, layer by layer.

A table of activations says, like one of weights, which row each layer reads;
the first layer that reads a row makes it. What is made waits in a slot until
its last reader has passed.
"""

import dataclasses

from shared_tfm.sharing.table import Owners


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where each layer finds and leaves an activation.

  Attributes:
    own: whether the layer makes its own.
    read: the slot a layer that does not finds it in; 0 elsewhere.
    write: the slot it is left in, `slots` where nobody will read it.
    slots: how many must be kept at a time.
  """

  own: tuple[bool, ...]
  read: tuple[int, ...]
  write: tuple[int, ...]
  slots: int


def sources(owners: Owners) -> Owners:
  """For every layer the one that makes what it reads.

  >>> sources((0, 0, 1, 1))
  (0, 0, 2, 2)
  """
  return tuple(owners.index(row) for row in owners)


def plan(owners: Owners) -> Plan:
  """Assigns slots, each free again after the last layer that reads it.

  Args:
    owners: a table of activations.
  """
  last = {row: i for i, row in enumerate(owners)}
  slot_of: dict[int, int] = {}
  free: list[int] = []
  slots = 0
  own, read, write = [], [], []
  for i, row in enumerate(owners):
    makes = owners.index(row) == i
    own.append(makes)
    if makes and last[row] > i:
      if not free:
        free.append(slots)
        slots += 1
      slot_of[row] = free.pop()
    read.append(0 if makes else slot_of[row])
    write.append(slot_of[row] if makes and row in slot_of else -1)
    if not makes and last[row] == i:
      free.append(slot_of[row])
  never = tuple(slots if slot < 0 else slot for slot in write)
  return Plan(tuple(own), tuple(read), never, slots)
