"""Where text comes from: this machine's Python, files, or TFDS.

It is read file by file, or record by record, each time it is gone through, so
that a folder or a dataset may be larger than memory; a single file may not.

A source is a row of items, files or records, in the order of a hash: whatever
stretch of it is taken is a fair sample. Unless it has splits of its own, they
are parts of the items, or, of few items, of each one's text: `data.parts` says
how large. A dataset with a test split and none for validation holds out a part
of its training split. `data.max_bytes` keeps the front of every split.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from shared_tfm.config import Data
from shared_tfm.data import generators
from shared_tfm.data.sources import records, texts
from shared_tfm.errors import need, unknown

SPLITS = ('train', 'validation', 'test')
NOT_LIBRARY = {  # folders of the standard library that `local` leaves out
  '__pycache__',
  'dist-packages',
  'idle_test',
  'site-packages',
  'test',
  'tests',
}


@dataclasses.dataclass(frozen=True)
class Documents:
  """The text of one split, read anew each time that it is gone through.

  Its documents, none of them empty, are in an order that is always the same.
  """

  data: Data
  split: str

  def __iter__(self) -> Iterator[str]:
    found, limit = _found(self.data, self.split), self.data.max_bytes
    if limit:
      found = _capped(found, limit if self.split == 'train' else limit // 10)
    return (text for text in found if text)


def documents(data: Data, split: str) -> Documents:
  """The text of one split.

  Args:
    data: source, path, parts, text_field and max_bytes are read. Training text
      is cut to max_bytes of UTF-8, that of other splits to a tenth of that.
    split: 'train', 'validation' or 'test'.

  Raises:
    BadInput: an unknown split or source, or a source that cannot be read, has
      no such split, or holds no text. What cannot be read later is told when
      the documents are gone through.
  """
  if split not in SPLITS:
    raise unknown('split', split, SPLITS)
  found = Documents(data, split)
  where = ' '.join(filter(None, [data.source, data.path]))
  need(
    next(iter(found), '') != '', f'the {split} split of {where} holds no text'
  )
  return found


def _found(data: Data, split: str) -> Iterator[str]:
  name, _, dataset = data.source.partition(':')
  if name == 'local' and not dataset:
    return _local(data, split)
  if name == 'text' and not dataset:
    return _text(data, split)
  if name == 'tfds' and dataset:
    return _tfds(dataset, data, split)
  known = ['local', 'text', 'tfds:NAME', *generators.TASKS]
  raise unknown('data.source', data.source, known)


def _capped(found: Iterator[str], limit: int) -> Iterator[str]:
  while limit > 0:
    text = next(found, None)
    if text is None:
      return
    kept = text.encode()[:limit]
    limit -= len(kept)
    yield kept.decode(errors='ignore')


def _share(
  items: Sequence[Any], read: Callable[[Any], str], data: Data, split: str
) -> Iterator[str]:
  """The part of the items, or of the text of each, that is the split's."""
  shares, place = data.shares, SPLITS.index(split)
  need(
    place < len(shares),
    f'data.parts {data.parts} leaves no test split of {data.source}; 90/5/5'
    ' does',
  )
  ends = [0, *itertools.accumulate(shares)]

  def part(whole: Any) -> Any:
    start, end = (len(whole) * ends[i] // 100 for i in (place, place + 1))
    return whole[start:end]

  if len(items) * min(shares) >= 100:  # there are items for every split
    yield from map(read, part(items))
  else:
    yield from map(part, map(read, items))


def _shuffled(
  paths: Sequence[pathlib.Path], root: pathlib.Path
) -> list[pathlib.Path]:
  """Paths in the order of a hash of where they are under `root`."""

  def key(path: pathlib.Path) -> bytes:
    return hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()

  return sorted(paths, key=key)


def _local(data: Data, split: str) -> Iterator[str]:
  """The source code of the running Python's standard library."""
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  paths = _library(root)
  need(bool(paths), f'no .py files under {root}, the standard library')

  def read(path: pathlib.Path) -> str:
    try:
      return path.read_bytes().decode()
    except UnicodeDecodeError:  # a few files of the library are older
      return ''

  return _share(paths, read, data, split)


@functools.cache
def _library(root: pathlib.Path) -> list[pathlib.Path]:
  """The library's files, in order; what was installed may be many times more.

  Folders that are left out are not gone through.
  """
  found = []
  for folder, inside, names in os.walk(root):
    inside[:] = {*inside} - NOT_LIBRARY
    found += [pathlib.Path(folder, n) for n in names if n.endswith('.py')]
  return _shuffled(found, root)


def _text(data: Data, split: str) -> Iterator[str]:
  """A file, the splits in a folder, or the files in it and its folders."""
  given = data.path
  need(bool(given), "data.source 'text' needs data.path, a file or a folder")
  root = pathlib.Path(given).expanduser()
  need(root.exists(), f'data.path {given}: no such file or folder')
  if own := texts.of_splits(root):
    need(
      split in own,
      f'data.path {given} has no {split} split, but {", ".join(sorted(own))}',
    )
    return iter([own[split].read()])
  files = texts.listed(root)
  need(
    bool(files), f'data.path {given} has no files {" ".join(texts.SUFFIXES)}'
  )
  return _share(files, texts.File.read, data, split)


def _tfds(name: str, data: Data, split: str) -> Iterator[str]:
  """A dataset that TFDS has prepared on this machine."""
  prepared = records.open_tfds(name, data.path)
  prepared.check_field(data.text_field, 'data.text_field')
  own = 'validation' in prepared.splits or (
    split != 'train' and split in prepared.splits
  )
  found = prepared.split(split if own else 'train')

  def read(row: int) -> str:
    value = found[row][data.text_field]
    need(
      isinstance(value, str),
      f'data.text_field {data.text_field} of tfds:{name} holds'
      f' {type(value).__name__}, not text',
    )
    return value

  rows = range(len(found))
  yield from map(read, rows) if own else _share(rows, read, data, split)
