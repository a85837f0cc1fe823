"""What is said to a user whose input cannot be used."""

import difflib
import signal
from collections.abc import Iterable


class BadInput(ValueError):
  """Input that breaks a stated rule: one line, the rule and what was given.

  The command line prints the line and exits with status 2. Any other exception
  is a bug of this project and keeps its traceback.
  """


class Interrupted(Exception):
  """What a signal ended, in good order.

  Attributes:
    signal: the signal's number.
  """

  def __init__(self, number: int, how: str):
    """States which signal it was, and how things were left."""
    super().__init__(f'{signal.Signals(number).name} {how}')
    self.signal = number


class Diverged(Exception):
  """A run that ended because no gradient was finite any more.

  Attributes:
    step: after which it ended.
  """

  def __init__(self, streak: int, step: int, saved: int):
    """States what was seen, and what the run can go on from.

    Args:
      streak: micro-batches dropped in a row.
      step: after which the run ended.
      saved: the step of its newest checkpoint; 0 where there is none.
    """
    kept = f'the checkpoint of step {saved}' if saved else 'no checkpoint'
    super().__init__(
      f'{streak} micro-batches in a row had no finite gradient, by step {step}'
      f' (train.max_skipped); {kept} was saved before'
    )
    self.step = step


def need(holds: bool, rule: str) -> None:
  """Raises BadInput with `rule` unless it holds."""
  if not holds:
    raise BadInput(rule)


def unknown(kind: str, given: str, known: Iterable[str]) -> BadInput:
  """The error for a name that is not known, with the nearest one that is.

  Args:
    kind: what the name stands for, such as 'optimizer'.
    given: the name that was given.
    known: every name that would have been accepted.

  Returns:
    A BadInput to be raised.
  """
  known = list(known)
  near = difflib.get_close_matches(given, known, n=1)
  hint = f'did you mean {near[0]!r}?' if near else f'known: {", ".join(known)}'
  return BadInput(f'unknown {kind} {given!r}; {hint}')
