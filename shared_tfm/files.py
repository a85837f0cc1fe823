"""Writing files so that no reader, and no crash, ever sees half of one."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path


def replace(path: Path, content: str | bytes) -> None:
  """Writes a whole file at once: readers see the old content or the new.

  Args:
    path: the file; its folder must exist.
    content: text, written as UTF-8, or bytes.
  """
  part = path.with_name(f'.{path.name}.{os.getpid()}.part')
  try:
    with named(path), part.open('wb', buffering=0) as file:
      append(file, content.encode() if isinstance(content, str) else content)
      os.fsync(file.fileno())  # else power that fails could leave it empty
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


@contextlib.contextmanager
def made(folder: Path) -> Iterator[Path]:
  """A folder that is there when all inside has been done, and else is not.

  Args:
    folder: what it will be; new or empty.

  Yields:
    Where it is made.
  """
  folder = folder.absolute()
  part = folder.with_name(f'.{folder.name}.{os.getpid()}.part')
  part.mkdir(parents=True)
  try:
    yield part
    os.replace(part, folder)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def append(file: RawIOBase, content: bytes) -> None:
  """Writes all of `content`: a disk that is nearly full takes a part of it."""
  while content:
    content = content[file.write(content) or 0 :]


def sweep(folder: Path, *names: str) -> None:
  """Removes what a process that was killed left of its `replace` of a file."""
  for name in names:
    for part in folder.glob(f'.{name}.*.part'):
      part.unlink(missing_ok=True)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
  """An error inside says which file it is about, such as on a full disk."""
  try:
    yield
  except OSError as error:
    if error.filename is None:
      error.filename = str(path)
    raise
