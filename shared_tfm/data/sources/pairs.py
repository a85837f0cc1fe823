"""Pairs of texts: one that is read, and one that is to be written.

    parallel    a folder of train.en, train.de, val.en, val.de.gz, ...
    aeslc       e-mails and their subjects, in the set's zip file
    tfds:NAME   two fields of the records of a prepared dataset

A split is a row of pairs in the order in which the source has them.
"""

import dataclasses
import pathlib
import re
import zipfile
import zlib
from collections.abc import Sequence

from shared_tfm.config import Data
from shared_tfm.data.sources import records, texts
from shared_tfm.data.sources.lines import Lines
from shared_tfm.errors import BadInput, need, unknown

Pair = tuple[str, str]

VALIDATION = ('validation', 'val', 'valid', 'dev')  # in the name of a file
AESLC = 'AESLC-master.zip'
_EMAIL = re.compile(r'/enron_subject_line/(train|dev|test)/[^/]+\.subject$')


def read(data: Data, split: str) -> Sequence[Pair]:
  """The pairs of a split.

  Args:
    data: source, path, source_field and target_field are read.
    split: 'train', 'validation', or whatever else the source has.

  Returns:
    Pairs by number; lines of plain files and records of TFDS are read when they
    are asked for.

  Raises:
    BadInput: an unknown source, one that cannot be read, one that has no such
      split, or two files that are not parallel.
  """
  name, _, dataset = data.source.partition(':')
  if name == 'aeslc' and not dataset:
    found: Sequence[Pair] = _aeslc(data.path, split)
  elif name == 'parallel' and not dataset:
    found = _parallel(data, split)
  elif name == 'tfds' and dataset:
    found = _records(dataset, data, split)
  else:
    known = ['aeslc', 'parallel', 'tfds:NAME']
    raise unknown('data.source of pairs', data.source, known)
  need(len(found) > 0, f'the {split} split of {data.source} holds no pairs')
  return found


def _parallel(data: Data, split: str) -> Sequence[Pair]:
  """The lines of two files, one beside the other."""
  _need_fields(data)
  need(bool(data.path), "data.source 'parallel' needs data.path, a folder")
  folder = pathlib.Path(data.path).expanduser()
  need(folder.is_dir(), f'data.path {data.path}: no such folder')
  names = VALIDATION if split == 'validation' else (split,)
  files = [
    next(
      (
        texts.File(folder / f'{name}.{field}{zipped}')
        for name in names
        for zipped in ('', '.gz')
        if (folder / f'{name}.{field}{zipped}').is_file()
      ),
      None,
    )
    for field in (data.source_field, data.target_field)
  ]
  source, target = files
  if source is None or target is None:
    missing = data.target_field if source else data.source_field
    held = ' '.join(sorted(path.name for path in folder.iterdir()))
    raise BadInput(
      f'data.path {data.path} has no {names[-1]}.{missing} or'
      f' {names[-1]}.{missing}.gz for the split {split}; it holds {held}'
    )
  left, right = Lines(source), Lines(target)
  need(
    len(left) == len(right),
    f'{source} has {len(left)} lines and {target} {len(right)}: they are not'
    ' parallel',
  )
  return _Parallel(left, right)


@dataclasses.dataclass(frozen=True)
class _Parallel(Sequence[Pair]):
  """Lines that belong together."""

  left: Lines
  right: Lines

  def __len__(self) -> int:
    return len(self.left)

  def __getitem__(self, index):  # type: ignore
    return self.left[index], self.right[index]


def _aeslc(given: str, split: str) -> list[Pair]:
  """The Annotated Enron Subject Line Corpus (1906.03497)."""
  need(bool(given), f"data.source 'aeslc' needs data.path, {AESLC} or a folder")
  path = pathlib.Path(given).expanduser()
  path = path / AESLC if path.is_dir() else path
  part = 'dev' if split == 'validation' else split
  try:
    with zipfile.ZipFile(path) as archive:
      found = {name: _EMAIL.search(name) for name in archive.namelist()}
      parts = sorted({match[1] for match in found.values() if match})
      need(
        part in parts,
        f'{path} has no {split} split of e-mails, but {", ".join(parts)}',
      )
      names = sorted(
        n for n, match in found.items() if match and match[1] == part
      )
      return [_email(name, texts.of_member(archive, name)) for name in names]
  except OSError as error:
    raise BadInput(f'{path}: {error.strerror}') from None
  except (
    EOFError,
    RuntimeError,  # encrypted, or packed in a way that is not known
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    raise BadInput(f'{path} is not a whole zip file: {error}') from None


def _email(name: str, content: bytes) -> Pair:
  """A body, an empty line, '@subject', and a subject; then maybe more."""
  body, mark, rest = content.decode(errors='replace').partition(
    '\n\n@subject\n'
  )
  need(bool(mark), f'{name} of {AESLC} has no @subject')
  return body.strip(), rest.partition('\n\n')[0].strip()


@dataclasses.dataclass(frozen=True)
class _Records(Sequence[Pair]):
  """Two fields of prepared records."""

  held: records.Records
  fields: tuple[str, str]

  def __len__(self) -> int:
    return len(self.held)

  def __getitem__(self, index):  # type: ignore
    record = self.held[index]
    return tuple(record[field] for field in self.fields)


def _records(name: str, data: Data, split: str) -> _Records:
  """A dataset that TFDS has prepared on this machine."""
  _need_fields(data)
  prepared = records.open_tfds(name, data.path)
  prepared.check_field(data.source_field, 'data.source_field')
  prepared.check_field(data.target_field, 'data.target_field')
  held = prepared.split(split)
  fields = (data.source_field, data.target_field)
  for field in fields if len(held) else ():
    kind = type(held[0][field])
    need(kind is str, f'{field} of tfds:{name} holds {kind.__name__}, not text')
  return _Records(held, fields)


def _need_fields(data: Data) -> None:
  need(
    bool(data.source_field and data.target_field),
    f'data.source {data.source} needs data.source_field and target_field, such'
    f' as en and de, got {data.source_field!r} and {data.target_field!r}',
  )
