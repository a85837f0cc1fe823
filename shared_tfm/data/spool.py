"""Rows of numbers that may be larger than memory."""

import tempfile

import numpy as np


class Spool:
  """A row of numbers that is written piece by piece, and then read.

  It is kept in a file without a name, in the folder for temporary files (the
  one that TMPDIR names, if any), and is gone when nobody reads it any more.
  What is read of it comes from the disk, through the system's cache.
  """

  def __init__(self, dtype: type[np.generic] = np.int32):
    """Begins an empty row of numbers of one type."""
    self._file = tempfile.TemporaryFile()  # noqa: SIM115 (read from the row)
    self._dtype = np.dtype(dtype)
    self._size = 0

  def add(self, numbers: np.ndarray) -> None:
    """Writes further numbers, (n,)."""
    self._file.write(numbers.astype(self._dtype).tobytes())
    self._size += len(numbers)

  def row(self) -> np.ndarray:
    """All of them, (numbers,), which nobody can change."""
    self._file.flush()
    if not self._size:  # an empty file cannot be mapped
      return np.zeros(0, self._dtype)
    return np.asarray(np.memmap(self._file, self._dtype, 'r'))
