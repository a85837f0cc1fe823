"""Datasets that TFDS has prepared on this machine, without TensorFlow.

They are read record by record, as asked for, so one may be larger than memory.
Only array_record is read: it alone gives random access to all of its records.
"""

import contextlib
import difflib
import importlib.util
import io
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from shared_tfm.data.sources import feature_classes
from shared_tfm.errors import BadInput, need

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # Pillow's, by the number of channels


def open_tfds(name: str, path: str) -> 'Prepared':
  """Opens a prepared dataset; reads what is known of it, and no record.

  Args:
    name: as TFDS has it, with a config and a version if need be, such as
      'glue/mrpc:2.0.0'.
    path: TFDS's data_dir; '' for its default.

  Raises:
    BadInput: it is not prepared there, is prepared in another format, is
      damaged, or needs a package that is not installed.
  """
  return Prepared(name, path)


class Prepared:
  """A prepared dataset.

  Attributes:
    name: as it was given.
    splits: their names, sorted.
    fields: the names of what a record holds, sorted.
  """

  def __init__(self, name: str, path: str):
    """See `open_tfds`."""
    self.name = name
    with told(name):
      self._builder = _builder(name, path)
      info = self._builder.info
      kind = info.file_format.value
      self.splits = sorted(info.splits)
      self.fields = sorted(info.features)
    need(
      kind == 'array_record',  # of parquet, TFDS loses records silently
      f'tfds:{name} is prepared as {kind}; only array_record can be read:'
      f' delete {self._builder.data_dir} and {_advice(name, path)}',
    )

  def check_field(self, field: str, option: str = 'field') -> None:
    """Checks that records have a field.

    Args:
      field: its name.
      option: what gave that name, such as 'data.text_field'.

    Raises:
      BadInput: they do not.
    """
    need(
      field in self.fields,
      f'tfds:{self.name} has no {option} {field}; it has'
      f' {", ".join(self.fields)}',
    )

  def classes(self, field: str) -> list[str]:
    """The names of the classes of a field of labels; none of another field."""
    return list(
      getattr(self._builder.info.features[field], 'names', None) or ()
    )

  def split(self, split: str) -> 'Records':
    """The records of a split, or of a part of it.

    Args:
      split: a name, or a part as TFDS writes it, such as 'train[:90%]'.

    Raises:
      BadInput: there is no such split, or it cannot be read.
    """
    need(
      split.partition('[')[0] in self.splits,
      f'tfds:{self.name} has no {split} split, but {", ".join(self.splits)}',
    )
    from tensorflow_datasets.core.decode import DeserializeMethod

    with told(self.name):
      try:
        source = self._builder.as_data_source(
          split=split, deserialize_method=DeserializeMethod.RAW_BYTES
        )
        len(source)  # of a part that ends before it starts: a ValueError
      except ValueError as error:
        raise BadInput(
          f'{split} is no part of tfds:{self.name}: {line(error)}'
        ) from None
    return Records(self.name, source, self._builder.info.features)


class Records(Sequence[dict[str, Any]]):
  """Records by number, each read when it is asked for.

  A record is a dict of numbers, text (str), arrays, lists and dicts of these.
  Images are (Y, X, C) arrays of uint8.
  """

  def __init__(self, name: str, source: Any, features: Any):
    """Wraps what TFDS reads.

    Args:
      name: the dataset's.
      source: a TFDS data source of encoded records.
      features: what is in them, as TFDS has it.
    """
    self._name = name
    self._source = source
    self._features = features
    self._images = _images(features)
    self._decoders = _raw(self._images)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: Any) -> Any:
    """Reads one record; BadInput where that fails."""
    row = range(len(self))[index]  # IndexError beyond the end
    with told(self._name):
      encoded = self._source[row]
      need(
        len(encoded) > 0,  # what the reader gives behind the end of a file
        f'tfds:{self._name} cannot be read: record {row} is missing; a file'
        ' of it has been cut short',
      )
      record = self._features.deserialize_example_np(
        encoded, decoders=self._decoders
      )
      for field, channels in self._images.items():
        record[field] = _image(record[field], channels)
    try:
      return _text(record)
    except UnicodeDecodeError as error:
      raise BadInput(
        f'record {row} of tfds:{self._name} is not UTF-8 text: {error.reason}'
      ) from None


def _text(value: Any) -> Any:
  """The value with str for bytes, however deep they lie."""
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, dict):
    return {key: _text(part) for key, part in value.items()}
  if isinstance(value, list):
    return [_text(part) for part in value]
  if isinstance(value, np.ndarray) and value.dtype == object:
    return _text(value.tolist())
  return value


def _images(features: Any) -> dict[str, int]:
  """The image fields that are decoded here, and their channels."""
  from tensorflow_datasets import features as kinds

  return {
    field: feature.shape[-1]
    for field, feature in features.items()
    if isinstance(feature, kinds.Image)
    and feature.np_dtype == np.uint8
    and feature.shape[-1] in MODES
  }


def _raw(images: dict[str, int]) -> Any:
  """Tells TFDS to leave them as they are.

  It would decode them by whatever package it finds, with other channels than
  it promises where a file has others (ImageNet has such files).
  """
  from tensorflow_datasets import decode

  return {field: decode.SkipDecoding() for field in images} or None


def _image(encoded: bytes, channels: int) -> np.ndarray:
  import PIL.Image

  with PIL.Image.open(io.BytesIO(encoded)) as image:
    pixels_YX = np.array(image.convert(MODES[channels]))
  return pixels_YX.reshape(*pixels_YX.shape[:2], channels)


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
  """What goes wrong inside, as one line."""
  try:
    yield
  except ImportError as error:
    raise BadInput(
      f'tfds:{name} needs a package that is not installed: {line(error)}; for'
      ' TensorFlow, install the extra tf'
    ) from None
  except (OSError, RuntimeError) as error:  # JSON too deep is one, too
    raise BadInput(f'tfds:{name} cannot be read: {line(error)}') from None


def _builder(name: str, given: str) -> Any:
  """The builder of a prepared dataset: read from disk, never downloaded."""
  import tensorflow_datasets as tfds
  from google.protobuf import json_format
  from tensorflow_datasets.core import read_only_builder

  where = folder(given)
  short = name.partition('/')[0].partition(':')[0]
  feature_classes.check(where / short)
  try:
    return read_only_builder.builder_from_files(name, data_dir=where)
  except (json.JSONDecodeError, json_format.ParseError) as error:
    raise BadInput(
      f'what tfds:{name} says of itself under {where} is damaged: {line(error)}'
    ) from None
  except ValueError:  # not there, or not even a name
    pass
  known = tfds.list_builders(with_community_datasets=False)
  if short in known:
    raise BadInput(
      f'tfds:{name} is not prepared under {where}: {_advice(name, given)}'
    )
  if (where / short).is_dir():
    held = ', '.join(sorted(path.name for path in (where / short).iterdir()))
    raise BadInput(f'{where / short} has no {name}, but {held}')
  if where.is_dir():
    known += [path.name for path in where.iterdir() if path.is_dir()]
  raise BadInput(
    f'tfds:{name} is neither prepared under {where} nor a name of TFDS'
    f'{guess(short, known)}'
  )


def guess(name: str, known: Sequence[str]) -> str:
  """What may have been meant by a name that TFDS does not know here."""
  near = difflib.get_close_matches(name, known, n=1)
  said = f'; did you mean {near[0]!r}?' if near else ''
  if importlib.util.find_spec('tensorflow') is None:
    said += '; without the extra tf, TFDS knows only half of its names'
  return said


def folder(given: str) -> pathlib.Path:
  """Where TFDS keeps what it has prepared."""
  default = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  return pathlib.Path(given or default).expanduser()


def _advice(name: str, given: str) -> str:
  return (
    f'run python -m shared_tfm prepare {name} --path={folder(given)} once (most'
    " of TFDS's own builders need the extra tf for that)"
  )


def line(error: Exception) -> str:
  """What an error says, as one line."""
  return ' '.join(str(error).split())
