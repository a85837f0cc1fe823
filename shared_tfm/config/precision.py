"""In which dtypes a network is stored, computed, multiplied and summed."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Precision:
  """One policy, and what `model.dtype` may name: `PRECISIONS`.

  Attributes:
    name: of the policy.
    compute: of what layers hand to each other, of keys and values, and of the
      operands of every product that the next two say nothing about.
    operand: what both operands of a layer's linear map are rounded to.
    gradient: what the gradient of its result is, before it is multiplied.
    param: of stored weights, their gradients and the optimizer's moments.
    accumulation: of the sums inside products, and over visits.
    output: of logits and losses.
  """

  name: str
  compute: str
  operand: str
  gradient: str
  param: str = 'float32'
  accumulation: str = 'float32'
  output: str = 'float32'

  @property
  def outside(self) -> 'Precision':
    """The same for what stands outside the layers: no float8."""
    return PRECISIONS[self.compute]


def _plain(dtype: str) -> Precision:
  return Precision(dtype, compute=dtype, operand=dtype, gradient=dtype)


PRECISIONS = {
  'float32': _plain('float32'),
  'bfloat16': _plain('bfloat16'),
  'float16': _plain('float16'),
  # Values are precise and gradients wide (2209.05433, section 3).
  'float8': Precision(
    'float8',
    compute='bfloat16',
    operand='float8_e4m3fn',
    gradient='float8_e5m2',
  ),
}
BYTES = {
  'float32': 4,
  'bfloat16': 2,
  'float16': 2,
  'float8_e4m3fn': 1,
  'float8_e5m2': 1,
}
