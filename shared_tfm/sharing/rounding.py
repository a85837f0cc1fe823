"""What weights are rounded to: 'int8', 'int4', and 'int4:64' in groups.

    spec := none | int8 | int4 | int8:G | int4:G

Symmetric and uniform: a weight is a whole number q, |q| <= 2^(b-1) - 1, times a
float32 scale (1806.08342, section 2.2). Each output feature of a matrix has a
scale of its own (section 3.2, "per-channel"), or with G one for every G of its
inputs. Of four bits, two numbers are stored in a byte.
"""

import dataclasses
import math
import re

from shared_tfm.errors import need

Shape = tuple[int, ...]
SCALE_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Rounding:
  """One way to round; `str(parse(text))` is its canonical text.

  Attributes:
    bits: of a number, 8 or 4.
    group: how many inputs share a scale; 0: all of them.
  """

  bits: int
  group: int = 0

  def __str__(self) -> str:
    return f'int{self.bits}' + f':{self.group}' * bool(self.group)

  @property
  def most(self) -> int:
    """The largest number."""
    return 2 ** (self.bits - 1) - 1

  def size(self, inputs: int) -> int:
    """How many inputs of a matrix with so many share a scale."""
    return min(self.group or inputs, inputs)

  def bytes_of(self, shape: Shape) -> int:
    """What a tensor takes: matrices (..., d_in, d_out) and their scales."""
    *several, inputs, outputs = shape
    values = -(-inputs * self.bits // 8)
    scales = -(-inputs // self.size(inputs))
    return math.prod(several) * outputs * (values + SCALE_BYTES * scales)


def parse(text: str) -> Rounding | None:
  """What a spec says; None for 'none'.

  Raises:
    BadInput: it is not written so.
  """
  if text == 'none':
    return None
  match = re.fullmatch(r'int([48])(?::([1-9]\d{0,8}))?', text, re.ASCII)
  need(
    match is not None,
    'weights are rounded to none, int8 or int4, with :G for a scale for every'
    f' G inputs as in int4:64, got {text!r}',
  )
  assert match
  return Rounding(int(match[1]), int(match[2] or 0))
