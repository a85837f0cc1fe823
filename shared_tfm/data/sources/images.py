"""Pictures with labels: MNIST's own files, or what TFDS has prepared.

Splits are a source's own. One without a validation split gives up the end of
its training split for it, as `data.parts` says; without a test split too, the
third of the parts is that.
"""

import gzip
import io
import itertools
import math
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from shared_tfm.config import Data
from shared_tfm.data.sources import records, texts
from shared_tfm.errors import BadInput, need, unknown

FIELDS = ('image', 'label')  # as TFDS names them in all its sets of this kind
SPLITS = ('train', 'validation', 'test')
FILES = {'train': 'train', 'test': 't10k'}  # how MNIST's file names begin

Record = dict[str, Any]


class Pictures:
  """A source of labelled pictures.

  Attributes:
    classes: how many there are.
    splits: the names of its own splits.
  """

  def __init__(self, data: Data):
    """Opens the source; no picture of a dataset of TFDS is read yet.

    Args:
      data: source, path and parts are read.

    Raises:
      BadInput: an unknown source, or one that cannot be read.
    """
    self._data = data
    name, _, dataset = data.source.partition(':')
    if name == 'mnist' and not dataset:
      self._held = {split: _mnist(data.path, split) for split in FILES}
      self.splits = sorted(self._held)
      labels = [digits.labels for digits in self._held.values()]
      self.classes = 1 + max(int(row.max()) for row in labels)
    elif name == 'tfds' and dataset:
      self._prepared = records.open_tfds(dataset, data.path)
      for field in FIELDS:
        self._prepared.check_field(field)
      self.splits = self._prepared.splits
      self.classes = len(self._prepared.classes('label'))
      need(
        self.classes > 0, f'the label of {data.source} is not one of classes'
      )
    else:
      raise unknown('data.source', data.source, ['mnist', 'tfds:NAME'])
    need(
      'train' in self.splits,
      f'{data.source} has no train split, but {", ".join(self.splits)}',
    )

  def read(self, split: str) -> Sequence[Record]:
    """Records with 'image', (Y, X, C) uint8, and 'label', read when asked for.

    Args:
      split: 'train', 'validation' or 'test'.

    Raises:
      BadInput: there is no such split.
    """
    cut = 'validation' not in self.splits
    if split in self.splits and not (cut and split == 'train'):
      return self._own(split)
    need(
      cut and split in SPLITS,
      f'{self._data.source} has no {split} split, but {", ".join(self.splits)}',
    )
    place = SPLITS.index(split)
    need(
      place < len(self._data.shares),
      f'data.parts {self._data.parts} leaves no test split of'
      f' {self._data.source}; 90/5/5 does',
    )
    ends = [0, *itertools.accumulate(self._data.shares)]
    return self._own('train', ends[place], ends[place + 1])

  def _own(
    self, split: str, start: int = 0, end: int = 100
  ) -> Sequence[Record]:
    """The part of a split that lies between two percentages."""
    if self._data.source != 'mnist':
      whole = (start, end) == (0, 100)
      part = '' if whole else f'[{start}%:{end}%]'
      return self._prepared.split(split + part)
    digits = self._held[split]
    first, last = (len(digits) * each // 100 for each in (start, end))
    return Digits(digits.images[first:last], digits.labels[first:last])


class Digits(Sequence[Record]):
  """Pictures in memory, (rows, Y, X) uint8, and their labels."""

  def __init__(self, images: np.ndarray, labels: np.ndarray):
    """Takes both."""
    self.images = images
    self.labels = labels

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: Any) -> Any:
    """One of them."""
    return {'image': self.images[index][..., None], 'label': self.labels[index]}


def _mnist(path: str, split: str) -> Digits:
  """A split as its authors store it, whole, compressed or not."""
  need(bool(path), "data.source 'mnist' needs data.path, a folder")
  begins = FILES[split]
  images = _idx(path, f'{begins}-images-idx3-ubyte', 3)
  labels = _idx(path, f'{begins}-labels-idx1-ubyte', 1)
  need(
    len(images) == len(labels) > 0,
    f'{path} has {len(images)} images and {len(labels)} labels to {split}',
  )
  return Digits(images, labels)


def _idx(folder: str, name: str, rank: int) -> np.ndarray:
  """An array of bytes: 0, 0, 8 and the rank, big-endian sizes, the bytes."""
  plain = pathlib.Path(folder).expanduser() / name
  packed = plain.with_name(f'{name}.gz')
  path = packed if packed.is_file() else plain
  need(path.is_file(), f'data.path {folder} has no {name}.gz')
  try:
    content = path.read_bytes()
    if path == packed:
      stream = gzip.GzipFile(fileobj=io.BytesIO(content))
      content = texts.unpacked(stream.read, len(content), path)
  except (OSError, EOFError, zlib.error) as error:
    raise BadInput(f'{path} cannot be read: {records.line(error)}') from None
  head = 4 + 4 * rank
  sizes = np.frombuffer(content[4:head], '>u4').tolist()
  need(
    content[:4] == bytes([0, 0, 8, rank])
    and len(sizes) == rank
    and len(content) == head + math.prod(sizes),
    f'{path} is no IDX file of {rank} axes of bytes, or is damaged',
  )
  return np.frombuffer(content, np.uint8, offset=head).reshape(sizes)
