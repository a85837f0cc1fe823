"""Texts, or pairs of them, of which a class or a number is to be told.

A set is GLUE's or TREC's as files, or one that TFDS has prepared. Its items
are random access; those of TFDS are read when they are asked for.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from shared_tfm.config import Data
from shared_tfm.data.sources import glue, records, trec
from shared_tfm.data.sources.items import Item
from shared_tfm.errors import need, unknown

HELD_OUT = 10  # without a validation split, one of so many training items is
INDEX = 'idx'  # the field of TFDS that says where GLUE has an item
LABEL = 'label'  # the field of TFDS's labels, unless another is named


class Labelled(NamedTuple):
  """A set of labelled texts.

  Attributes:
    classes: the names of its classes, in their order; none where a number is
      told.
    read: the name of a split to its items.
    streams: whether items are read when they are asked for, and not kept.
  """

  classes: tuple[str, ...]
  read: Callable[[str], Sequence[Item]]
  streams: bool


def open_set(data: Data, num_classes: int) -> Labelled:
  """Opens the set that a config names.

  Args:
    data: source, path, and of any set of TFDS text_field, with commas between
      two, and target_field, the label's.
    num_classes: how many the network has; 1: a number.

  Raises:
    BadInput: a set that is not known or not there, or of other classes.
  """
  name, _, part = data.source.partition(':')
  if name == 'glue' and part:
    classes, read = glue.classes(part), glue.reader(part, data.path)
  elif data.source == 'trec':
    classes = trec.classes(num_classes)
    read = _holding_out(trec.reader(data.path, classes))
  elif name == 'tfds' and part:
    classes, read = _tfds(part, data, num_classes)
  else:
    known = [*(f'glue:{task}' for task in glue.TASKS), 'trec', 'tfds:NAME']
    raise unknown('data.source of labelled texts', data.source, known)
  need(
    num_classes == (len(classes) or 1),
    f'{data.source} needs model.num_classes {len(classes) or 1}, got'
    f' {num_classes}',
  )
  return Labelled(classes, read, streams=name == 'tfds')


@dataclasses.dataclass(frozen=True)
class Documents(Sequence[str]):
  """The text of each item, for a tokenizer to learn from."""

  items: Sequence[Item]

  def __len__(self) -> int:
    return len(self.items)

  def __getitem__(self, index: Any) -> Any:
    return '\n'.join(self.items[index].texts)


@dataclasses.dataclass(frozen=True)
class _Part(Sequence[Item]):
  """Some of the items."""

  items: Sequence[Item]
  rows: np.ndarray

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: Any) -> Any:
    return self.items[int(self.rows[index])]


def _holding_out(
  read: Callable[[str], Sequence[Item]],
) -> Callable[[str], Sequence[Item]]:
  """Makes a validation split of every tenth training item."""

  def cut(items: Sequence[Item], held_out: bool) -> Sequence[Item]:
    rows = np.arange(len(items))
    chosen = rows % HELD_OUT == HELD_OUT - 1
    need(
      bool(chosen.any()),
      f'{len(items)} items to train on are too few to hold out every'
      f' {HELD_OUT}th of them',
    )
    return _Part(items, rows[chosen == held_out])

  def split(name: str) -> Sequence[Item]:
    if name not in ('train', 'validation'):
      return read(name)
    return cut(read('train'), name == 'validation')

  return split


def _tfds(
  name: str, data: Data, num_classes: int
) -> tuple[tuple[str, ...], Callable[[str], Sequence[Item]]]:
  """A set that TFDS has prepared on this machine."""
  prepared = records.open_tfds(name, data.path)
  base = name.partition(':')[0]
  task = base.removeprefix('glue/')
  fields: tuple[str, ...]
  labels: tuple[str, ...]
  known = base == 'trec' or (base.startswith('glue/') and task in glue.TASKS)
  if base == 'trec':
    fields, labels = ('text',), trec.FIELDS
    classes = trec.classes(num_classes)
  elif known:
    fields, labels = glue.TASKS[task].fields, (LABEL,)
    classes = glue.classes(task)
  else:
    fields = tuple(data.text_field.replace(' ', '').split(','))
    labels, classes = (data.target_field or LABEL,), ()
  need(
    len(fields) < 3, f'data.text_field names at most two, got {data.text_field}'
  )
  for field in fields:
    prepared.check_field(field, 'data.text_field')
  for field in labels:
    prepared.check_field(field, 'data.target_field')
  names = [prepared.classes(field) for field in labels]
  if not known:
    numbers = map(str, range(num_classes if num_classes > 1 else 0))
    classes = tuple(names[0] or numbers)

  def label(record: dict[str, Any]) -> Any:
    given = [record[field] for field in labels]
    if base == 'trec':
      told = [each[int(i)] for each, i in zip(names, given, strict=True)]
      return trec.label(':'.join(told), classes)
    return float(given[0]) if not classes else int(given[0])

  def read(split: str) -> Sequence[Item]:
    if task == 'mnli' and split in ('validation', 'test'):
      split = f'{split}_matched'
    held = prepared.split(split)
    for record in [held[0]] if len(held) else []:
      for field in fields:
        kind = type(record[field])
        need(
          kind is str,
          f'data.text_field {field} of tfds:{name} holds {kind.__name__}, not'
          ' text',
        )
      kind = type(record[labels[0]])
      need(
        kind is not str and np.ndim(record[labels[0]]) == 0,
        f'data.target_field {labels[0]} of tfds:{name} holds {kind.__name__},'
        ' and not a class or a number',
      )
    return _Records(f'tfds:{name}', split, held, fields, label, classes)

  return classes, (
    read
    if any(split.startswith('validation') for split in prepared.splits)
    else _holding_out(read)
  )


@dataclasses.dataclass(frozen=True)
class _Records(Sequence[Item]):
  """Prepared records as items."""

  name: str
  split: str
  held: records.Records
  fields: tuple[str, ...]
  label: Callable[[dict[str, Any]], Any]
  classes: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.held)

  def __getitem__(self, index: Any) -> Any:
    record = self.held[index]
    label = self.label(record)
    if self.split.startswith('test') and label == -1:  # TFDS's for none
      label = None
    need(
      not self.classes or label is None or 0 <= label < len(self.classes),
      f'record {index} of the {self.split} split of {self.name}: label {label}'
      f' is none of {len(self.classes)} classes',
    )
    texts = tuple(record[field] for field in self.fields)
    return Item(texts, label, record.get(INDEX))
