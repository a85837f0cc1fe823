"""Files of text on this machine: plain, gzipped, or members of a zip file."""

import dataclasses
import gzip
import hashlib
import io
import pathlib
import zipfile
import zlib
from collections.abc import Callable

from shared_tfm.errors import BadInput, need

SUFFIXES = ('.md', '.py', '.raw', '.rst', '.tex', '.tokens', '.txt')
OF_SPLITS = ('.raw', '.tokens', '.txt')  # where a file's name says its split
SPLIT_OF = {
  'train': 'train',
  'dev': 'validation',
  'val': 'validation',
  'valid': 'validation',
  'validation': 'validation',
  'test': 'test',
}


# Text is seldom packed to less than a tenth; a small file that would fill the
# memory is no text.
EXPANDS, ALWAYS = 200, 1 << 26


@dataclasses.dataclass(frozen=True)
class File:
  """A file of text.

  Attributes:
    path: of the file, or of the zip file that holds it.
    member: its name in the zip file; '' where there is none.
  """

  path: pathlib.Path
  member: str = ''

  def __str__(self) -> str:
    return f'{self.path}: {self.member}' if self.member else str(self.path)

  @property
  def name(self) -> pathlib.PurePosixPath:
    """Its own name in lower case, less what says that it is gzipped."""
    name = pathlib.PurePosixPath(self.member or self.path.name).name.lower()
    return pathlib.PurePosixPath(name.removesuffix('.gz'))

  @property
  def split(self) -> str | None:
    """The split that its name says it is, as in 'wiki.valid.tokens'."""
    last = self.name.stem.rpartition('.')[2]
    return SPLIT_OF.get(last) if self.name.suffix in OF_SPLITS else None

  def read(self) -> str:
    """Its text.

    Raises:
      BadInput: it cannot be read, is damaged, or is not UTF-8.
    """
    try:
      return self.content().decode()
    except UnicodeDecodeError as error:
      raise BadInput(
        f'{self} is not UTF-8 text: {error.reason} at byte {error.start}'
      ) from None

  def content(self) -> bytes:
    """Its bytes, unpacked.

    Raises:
      BadInput: it cannot be read, or is damaged.
    """
    try:
      return self._bytes()
    except OSError as error:
      reason = error.strerror or error
      raise BadInput(f'{self} cannot be read: {reason}') from None
    except (  # what damaged, cut or encrypted files make the libraries raise
      EOFError,
      RuntimeError,
      zipfile.BadZipFile,
      zlib.error,
    ) as error:
      raise BadInput(f'{self} cannot be read: {error}') from None

  def _bytes(self) -> bytes:
    if self.member:
      with zipfile.ZipFile(self.path) as archive:
        content = of_member(archive, self.member)
        packed = archive.getinfo(self.member).compress_size
    else:
      content = self.path.read_bytes()
      packed = len(content)
    if not _zipped(self.member or self.path.name):
      return content
    return unpacked(
      gzip.GzipFile(fileobj=io.BytesIO(content)).read, packed, self
    )


def of_member(archive: zipfile.ZipFile, name: str) -> bytes:
  """The content of a zip file's member, read in memory; see `unpacked`."""
  with archive.open(name) as stream:
    packed = archive.getinfo(name).compress_size
    return unpacked(stream.read, packed, f'{archive.filename}: {name}')


def unpacked(read: Callable[[int], bytes], packed: int, what: object) -> bytes:
  """What is behind a reader that unpacks.

  Args:
    read: gives at most so many of the next bytes; none at the end.
    packed: their size as they are packed.
    what: they are, in an error.

  Raises:
    BadInput: they are so many more than were packed that they are no data.
  """
  most, content = max(ALWAYS, EXPANDS * packed), io.BytesIO()
  while part := read(1 << 20):
    content.write(part)
    need(
      content.tell() <= most,
      f'{what} is not read: {packed} bytes unpack to more than {most}',
    )
  return content.getvalue()


def listed(root: pathlib.Path) -> list[File]:
  """The files of text under a path, in the order of a hash of their names.

  Args:
    root: a file, whatever its name; a zip file, for its members; or a folder,
      for what is in it and in its folders, but not in zip files.

  Raises:
    BadInput: a zip file that cannot be read.
  """
  files = [File(root)]
  if root.is_dir():
    files = [
      File(path)
      for path in root.rglob('*')
      if File(path).name.suffix in SUFFIXES and path.is_file()
    ]
  elif root.suffix.lower() == '.zip':
    files = [file for file in _members(root) if file.name.suffix in SUFFIXES]

  def key(file: File) -> bytes:
    where = file.member or file.path.relative_to(root).as_posix()
    return hashlib.sha256(where.encode()).digest()

  return sorted(files, key=key)


def of_splits(root: pathlib.Path) -> dict[str, File]:
  """The files that are splits, by the split's name.

  They are called train, valid (validation, val, dev) or test, with .txt,
  .tokens or .raw behind and whatever before a dot in front: 'train.txt',
  'wiki.test.tokens.gz'. One such file alone is no split.

  Args:
    root: a folder, for its files and the members of its zip files; or a zip
      file.

  Raises:
    BadInput: two files for a split, or a zip file that cannot be read.
  """
  paths = sorted(root.iterdir()) if root.is_dir() else [root]
  found: dict[str, File] = {}
  for path in paths:
    files = [File(path)]
    if path.suffix.lower() == '.zip' and path.is_file():
      files = _members(path)
    for file in files:
      if file.split:
        need(
          file.split not in found,
          f'{root} has two files for {file.split}:'
          f' {found.get(file.split)} and {file}',
        )
        found[file.split] = file
  return found if len(found) > 1 else {}


def _members(path: pathlib.Path) -> list[File]:
  """The files in a zip file, but for the hidden ones that some systems add."""
  try:
    with zipfile.ZipFile(path) as archive:
      names = archive.namelist()
  except OSError as error:
    raise BadInput(f'{path} cannot be read: {error.strerror}') from None
  except zipfile.BadZipFile as error:
    raise BadInput(f'{path} is not a whole zip file: {error}') from None
  return [
    File(path, name)
    for name in names
    if not name.endswith('/')
    and not pathlib.PurePosixPath(name).name.startswith('.')
  ]


def _zipped(name: str) -> bool:
  return name.lower().endswith('.gz')
