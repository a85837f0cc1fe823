"""Text that is handed out while its tokens are still coming."""

from collections.abc import Callable, Sequence

import numpy as np

UNKNOWN = '\ufffd'  # what an unfinished character decodes to


class Pieces:
  """Decodes a growing text, and ends it before the first stop sequence.

  Attributes:
    over: whether a stop sequence was met.
  """

  def __init__(
    self, decode: Callable[[np.ndarray], str], stop: Sequence[str] = ()
  ) -> None:
    """Begins with nothing.

    Args:
      decode: token ids to text.
      stop: strings that end the text and are no part of it.
    """
    self.over = False
    self._decode = decode
    self._stop = [each for each in stop if each]
    self._told = 0

  def add(self, tokens: np.ndarray, last: bool = False) -> str:
    """What can be told that was not told before.

    A character may lack bytes, and the end may be the start of a stop sequence:
    so much waits, unless there is nothing more to come.

    Args:
      tokens: all tokens so far.
      last: whether there are no more.
    """
    if self.over:
      return ''
    text = self._decode(tokens)
    found = [at for at in map(text.find, self._stop) if at >= 0]
    if found:
      self.over = True
      end = min(found)
    elif last:
      end = len(text)
    else:
      whole = text.rstrip(UNKNOWN)
      end = len(whole) - max(
        (_begun(whole, each) for each in self._stop), default=0
      )
    piece = text[self._told : max(end, self._told)]
    self._told = max(end, self._told)
    return piece


def _begun(text: str, stop: str) -> int:
  """How much of the end of a text is the start of a stop sequence."""
  most = min(len(text), len(stop) - 1)
  return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
