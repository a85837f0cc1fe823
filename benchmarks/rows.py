"""What a section of the suite says: ratios, and what they were made of."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Seconds = Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Plan:
  """How much is measured.

  Attributes:
    rounds: that steps are run in.
    quick: whether sizes are so small that figures mean nothing, for a test.
  """

  rounds: int = 9
  quick: bool = False

  @property
  def few(self) -> int:
    """Rounds of what takes seconds each, such as compiling."""
    return -(-self.rounds // 3)


@dataclasses.dataclass(frozen=True)
class Row:
  """One ratio.

  Attributes:
    name: of the case.
    ratio: of medians over the rounds.
    spread: the lowest and the highest ratio of a single round.
    rounds: how many; 0: counted, not timed.
    facts: what the table says beside it.
    seconds: of every contender in every round.
  """

  name: str
  ratio: float
  spread: tuple[float, float]
  rounds: int = 0
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seconds: Seconds = dataclasses.field(default_factory=dict)

  def line(self, absolute: bool) -> str:
    """Its line of the table; `absolute` adds medians in milliseconds."""
    low, high = self.spread
    cells = [
      self.name,
      f'{self.ratio:.3g}',
      f'{low:.3g} to {high:.3g}' if self.rounds else '',
      str(self.rounds or ''),
      '; '.join(
        f'{name} {_short(value)}' for name, value in self.facts.items()
      ),
    ]
    if absolute:
      cells.append(
        '; '.join(
          f'{name} {1000 * statistics.median(taken):,.1f}'
          for name, taken in self.seconds.items()
        )
      )
    return f'| {" | ".join(cells)} |'


Section = Callable[[Plan], Iterator[Row]]


class NotHere(Exception):
  """This machine lacks what a section needs."""


def head(absolute: bool) -> str:
  """The lines above those of a section's rows."""
  names = ['case', 'ratio', 'in single rounds', 'rounds', 'counts']
  names += ['medians, ms'] * absolute
  return f'| {" | ".join(names)} |\n|:--|--:|:--|--:|:--{"|:--" * absolute}|'


def compared(
  name: str,
  seconds: Seconds,
  over: str,
  under: str,
  times: float = 1.0,
  **facts: Any,
) -> Row:
  """One contender's time in units of another's, times a constant."""
  pairs = zip(seconds[over], seconds[under], strict=True)
  each = [times * a / b for a, b in pairs]
  medians = [statistics.median(seconds[key]) for key in (over, under)]
  return Row(
    name,
    times * medians[0] / medians[1],
    (min(each), max(each)),
    len(each),
    facts,
    {key: list(seconds[key]) for key in dict.fromkeys((over, under))},
  )


def _short(value: Any) -> str:
  return f'{value:,.3g}' if isinstance(value, float) else str(value)
