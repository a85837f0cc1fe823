"""Prepares a dataset that TFDS can build, once, for `records` to read."""

import dataclasses
import pathlib
import re
import tarfile
import zipfile
import zlib
from typing import Any

from shared_tfm.data.sources import records
from shared_tfm.errors import BadInput, need


def prepare(
  name: str, path: str = '', manual_dir: str = '', trust: bool = False
) -> str:
  """Runs TFDS's own builder of a dataset, which writes array_record.

  What is already prepared is left as it is. A file that the builder would
  download is taken from `manual_dir` where it lies there under the name that
  TFDS has registered for it, or else its address ends with.

  Args:
    name: as TFDS has it, such as 'mnist' or 'glue/mrpc'.
    path: TFDS's data_dir; '' for its default.
    manual_dir: a folder of files that need not be downloaded.
    trust: take such a file even where it is not the registered one.

  Returns:
    The folder that holds the dataset.

  Raises:
    BadInput: there is no such builder, it needs what is not installed or what
      cannot be downloaded, or a file is not the registered one.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import (
    download_manager,
    extractor,
    util,
  )

  need(
    not manual_dir or pathlib.Path(manual_dir).is_dir(),
    f'manual_dir {manual_dir}: no such folder',
  )
  need(
    bool(re.fullmatch(r'[^:]*(:[\d.*]+)?', name)),
    f'{name} is no name of TFDS itself; TFDS would download the code of others'
    ' and run it',
  )
  need(bool(manual_dir) or not trust, 'trust is for the files of a manual_dir')
  try:
    builder = tfds.builder(
      name, data_dir=records.folder(path), file_format='array_record'
    )
  except tfds.core.DatasetNotFoundError:
    known = tfds.list_builders(with_community_datasets=False)
    short = name.partition('/')[0].partition(':')[0]
    raise BadInput(
      f'{name} is not a name of TFDS{records.guess(short, known)}'
    ) from None
  except (ValueError, AssertionError) as error:
    # No such config or version, or there is one in another format.
    said = str(error).rpartition('}":')[2]
    raise BadInput(
      f'tfds:{name} cannot be built: {" ".join(said.split())}'
    ) from None
  _name(builder)
  if trust:
    _trust(builder, pathlib.Path(manual_dir))
  given = tfds.download.DownloadConfig(
    manual_dir=manual_dir or None, try_download_gcs=False
  )
  try:
    builder.download_and_prepare(download_config=given)
  except ImportError as error:
    raise _needs(name, error) from None
  except download_manager.NonMatchingChecksumError as error:
    raise BadInput(
      f'tfds:{name} cannot be built: {records.line(error)}; --trust takes the'
      ' files of --manual_dir as they are'
    ) from None
  except (
    AssertionError,
    EOFError,
    OSError,
    ValueError,
    extractor.ExtractError,
    tarfile.TarError,
    util.DownloadError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    if 'No module named' in str(error):  # as the extractor hands it on
      raise _needs(name, error) from None
    raise BadInput(
      f'tfds:{name} cannot be built: {records.line(error)}; {_wanted(builder)}'
    ) from None
  records.open_tfds(name, path)  # as array_record, and not damaged
  return str(builder.data_dir)


def _needs(name: str, error: Exception) -> BadInput:
  """What to do where a package is missing."""
  said = _first(error)
  said = said[max(said.find('No module named'), 0) :]
  return BadInput(
    f'the builder of tfds:{name} needs what is not installed: {said}; the extra'
    ' tf (./setup.sh tf) has TensorFlow, and what is prepared is read without'
    ' it'
  )


def _name(builder: Any) -> None:
  """Names, in memory, the files that TFDS has registered without a name."""
  for url, info in (builder.url_infos or {}).items():
    if not info.filename:
      named = dataclasses.replace(info, filename=url.rpartition('/')[2])
      builder.url_infos[url] = named


def _trust(builder: Any, folder: pathlib.Path) -> None:
  """Registers, in memory, the files of a folder for those of their names."""
  from tensorflow_datasets.core.download import checksums

  for url, info in (builder.url_infos or {}).items():
    path = folder / (info.filename or '')
    if path.is_file():
      builder.url_infos[url] = checksums.compute_url_info(path)


def _wanted(builder: Any) -> str:
  """What to do where a download fails."""
  names = [info.filename for info in (builder.url_infos or {}).values()]
  listed = ', '.join(sorted({name for name in names if name})[:20])
  return (
    'what cannot be downloaded is taken from --manual_dir, where files have'
    f' the names that TFDS gives them: {listed or "see its catalogue"}'
  )


def _first(error: Exception) -> str:
  return (str(error).strip().splitlines() or [''])[0]
