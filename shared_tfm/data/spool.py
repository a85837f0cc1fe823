"""Rows of numbers that may be larger than memory."""

import tempfile
from pathlib import Path

import numpy as np

from shared_tfm import files


class Spool:
  """A row of numbers that is written piece by piece, and then read.

  It is kept in a file without a name, in the folder for temporary files (the
  one that TMPDIR names, if any), and is gone when nobody reads it any more.
  What is read of it comes from the disk, through the system's cache.
  """

  def __init__(self, dtype: type[np.generic] = np.int32):
    """Begins an empty row of numbers of one type."""
    self._folder = Path(tempfile.gettempdir())
    self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (see row)
    self._dtype = np.dtype(dtype)
    self._size = 0

  def add(self, numbers: np.ndarray) -> None:
    """Writes further numbers, (n,)."""
    with files.named(self._folder):
      files.append(self._file, numbers.astype(self._dtype).tobytes())
    self._size += len(numbers)

  def row(self) -> np.ndarray:
    """All of them, (numbers,), which nobody can change."""
    if not self._size:  # an empty file cannot be mapped
      return np.zeros(0, self._dtype)
    return np.asarray(np.memmap(self._file, self._dtype, 'r'))
