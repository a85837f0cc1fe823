"""Lines of a file, each read when it is asked for."""

from collections.abc import Sequence

import numpy as np

from shared_tfm.data.sources.texts import File
from shared_tfm.errors import BadInput

GROUP = 1 << 24  # bytes that are looked through at a time
NEWLINE = 10
EMPTY = np.zeros(0, np.uint8)


class Lines(Sequence[str]):
  """The lines of a text as programs count them, which know one mark of an end.

  A plain file stays on disk; what is packed is held in memory, as bytes.
  """

  def __init__(self, file: File):
    """Finds where each line ends.

    Raises:
      BadInput: the file cannot be read, or is damaged.
    """
    self.file = file
    if file.member or file.path.suffix == '.gz':
      self._bytes = np.frombuffer(file.content(), np.uint8)
    else:
      try:
        large = file.path.stat().st_size > 0
        self._bytes = np.memmap(file.path, np.uint8, 'r') if large else EMPTY
      except OSError as error:
        raise BadInput(
          f'{file} cannot be read: {error.strerror or error}'
        ) from None
    ends = [
      start + np.flatnonzero(self._bytes[start : start + GROUP] == NEWLINE)
      for start in range(0, len(self._bytes), GROUP)
    ]
    if len(self._bytes) and self._bytes[-1] != NEWLINE:
      ends.append(np.array([len(self._bytes)]))
    self._ends = np.concatenate([EMPTY.astype(np.int64), *ends])

  def __len__(self) -> int:
    return len(self._ends)

  def __getitem__(self, index):  # type: ignore
    """A line without its end.

    Raises:
      BadInput: it is not UTF-8.
    """
    at = range(len(self))[index]
    start = self._ends[at - 1] + 1 if at else 0
    line = self._bytes[start : self._ends[at]].tobytes()
    try:
      return line.decode().rstrip('\r')
    except UnicodeDecodeError as error:
      raise BadInput(
        f'{self.file} is not UTF-8 text: {error.reason} at byte'
        f' {start + error.start}'
      ) from None
