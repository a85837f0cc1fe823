"""The matrix products of a compiled program, read from its HLO."""

import dataclasses
import math
import re

from shared_tfm.layers import float8
from shared_tfm.train import hlo

_DOT = re.compile(r'= (\S+) dot\(([^)]*)\).*lhs_contracting_dims=\{([\d,]*)\}')
_NAME = re.compile(r'%([\w.-]+)')
_IN_FLOAT8 = re.compile(rf'op_name="[^"]*/{float8.SCOPE}/')
_DEFINED = re.compile(r'^\s*(?:ROOT )?%([\w.-]+) = (\S+) ')


@dataclasses.dataclass(frozen=True)
class Product:
  """One matrix product, or a batch of them, on one device.

  Attributes:
    flops: two for each multiply-add.
    values: how many numbers its operands and its result have.
    runs: how often it is run in one call of the program.
    eighths: of these numbers, those of operands in float8.
  """

  flops: int
  values: int
  runs: int
  eighths: int = 0


def products(text: str) -> list[Product]:
  """All of them.

  Args:
    text: `compiled.as_text()`. A loop whose number of rounds is not known there
      counts as one round.
  """
  program = hlo.Program(text)
  defined: dict[str, dict[str, str]] = {}
  found = []
  for line in program.lines():
    if dot := _DOT.search(line.text):
      if line.inside not in defined:
        heads = map(_DEFINED.match, program.computations[line.inside])
        defined[line.inside] = {head[1]: head[2] for head in heads if head}
      names = _NAME.findall(dot[2])
      shapes = [_shape(defined[line.inside][name]) for name in names]
      shapes.append(_shape(dot[1]))
      summed = [shapes[0][int(axis)] for axis in dot[3].split(',') if axis]
      found.append(
        Product(
          2 * math.prod(shapes[-1]) * math.prod(summed),
          sum(map(math.prod, shapes)),
          line.runs,
          sum(map(math.prod, shapes[:2])) * bool(_IN_FLOAT8.search(line.text)),
        )
      )
  return found


def _shape(array: str) -> tuple[int, ...]:
  ((_, shape),) = hlo.arrays(array.partition('{')[0])
  return shape
