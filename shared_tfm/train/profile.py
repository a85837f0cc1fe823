"""What a device can do at best, from its data sheet or from a user's file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from shared_tfm.config.precision import BYTES
from shared_tfm.errors import BadInput, need, unknown

LARGEST = 1e30  # of any figure
PLATFORMS = 'cpu', 'gpu', 'tpu'


@dataclasses.dataclass(frozen=True)
class Profile:
  """One kind of device, in units of one and per second.

  Attributes:
    bfloat16_flops: of matrix products, dense.
    float32_flops: so too.
    memory_bytes: of its own.
    memory_bandwidth: bytes read or written.
    link_bandwidth: bytes that it can send to others, in one direction.
    source: where the figures are from.
    platform: JAX's word for it: cpu, gpu, tpu.
    float8_flops: of matrix products, dense; None: it has none of its own, and
      makes them of bfloat16 ones.
  """

  bfloat16_flops: float
  float32_flops: float
  memory_bytes: float
  memory_bandwidth: float
  link_bandwidth: float
  source: str = ''
  platform: str = 'gpu'
  float8_flops: float | None = None

  def flops(self, dtype: str) -> float:
    """The rate of products whose operands have a dtype."""
    if dtype == 'float32':
      return self.float32_flops
    eight = BYTES[dtype] == 1 and self.float8_flops
    return eight or self.bfloat16_flops  # float16 is as fast


_DGX = (
  'links are the network between machines, one port a GPU: inside one machine'
  ' NVLink is faster'
)
_TPU = (
  'links are all of a chip together; no float32 figure is published, and JAX'
  ' by default makes such products of bfloat16 ones'
)

PROFILES = {
  'a100': Profile(
    312e12,
    19.5e12,
    80e9,
    2.039e12,
    25e9,
    'NVIDIA A100 data sheet, SXM 80 GB, and DGX A100 (200 Gb/s HDR); ' + _DGX,
  ),
  'h100': Profile(
    989.4e12,
    67e12,
    80e9,
    3.35e12,
    50e9,
    'NVIDIA H100 data sheet, SXM, half of what it says "with sparsity", and'
    ' DGX H100 (400 Gb/s NDR); ' + _DGX,
    float8_flops=1978.9e12,
  ),
  'h200': Profile(
    989.4e12,
    67e12,
    141e9,
    4.8e12,
    50e9,
    'NVIDIA H200 data sheet, SXM, half of what it says "with sparsity", and'
    ' DGX H200 (400 Gb/s NDR); ' + _DGX,
    float8_flops=1978.9e12,
  ),
  'tpu_v4': Profile(
    275e12,
    275e12,
    32 * 2**30,
    1.228e12,
    300e9,
    'Google Cloud, TPU v4: 2400 Gb/s of links; ' + _TPU,
    'tpu',
  ),
  'tpu_v5e': Profile(
    197e12,
    197e12,
    16e9,
    0.819e12,
    200e9,
    'Google Cloud, TPU v5e: 1600 Gb/s of links; ' + _TPU,
    'tpu',
  ),
  'tpu_v5p': Profile(
    459e12,
    459e12,
    95e9,
    2.765e12,
    600e9,
    'Google Cloud, TPU v5p: 4800 Gb/s of links; ' + _TPU,
    'tpu',
  ),
  'tpu_v6e': Profile(
    918e12,
    918e12,
    32e9,
    1.6e12,
    400e9,
    'Google Cloud, TPU v6e: 3200 Gb/s of links; ' + _TPU,
    'tpu',
  ),
  'cpu': Profile(
    1.5e12,
    0.3e12,
    16e9,
    20e9,
    1e9,
    'no data sheet: matrix products as measured on two server cores, the'
    ' rest is a guess to be edited',
    'cpu',
  ),
}


def profile(name: str) -> Profile:
  """A known profile, or one in a JSON file.

  Args:
    name: one of `PROFILES`, or a file that ends in .json. It has all fields of
      a Profile, or those that differ from the profile it names as 'base'.

  Raises:
    BadInput: there is none of that name, or the file is no profile.
  """
  if not name.endswith('.json'):
    if name not in PROFILES:
      raise unknown('profile (or FILE.json)', name, PROFILES)
    return PROFILES[name]
  try:
    given = json.loads(Path(name).read_text(encoding='utf-8'))
  except (ValueError, RecursionError) as error:
    line = str(error).split('\n')[0]
    raise BadInput(f'the profile {name} is no JSON: {line}') from None
  need(
    isinstance(given, dict),
    f'the profile {name} must be an object, got {str(given)[:80]}',
  )
  return _checked(name, given)


def _checked(name: str, given: dict[str, Any]) -> Profile:
  fields = [field.name for field in dataclasses.fields(Profile)]
  base = given.pop('base', '')
  for field in given:
    if field not in fields:
      raise unknown(f'field of the profile {name}:', field, [*fields, 'base'])
  if not isinstance(base, str) or (base and base not in PROFILES):
    raise unknown(f'base of the profile {name}:', str(base), PROFILES)
  start: dict[str, Any] = {
    'source': name,
    'platform': 'gpu',
    'float8_flops': None,
  }
  if base:
    start = dataclasses.asdict(PROFILES[base])
  given = start | given
  missing = [field for field in fields if field not in given]
  need(
    not missing,
    f"the profile {name} must have {', '.join(missing)}, or a 'base' to take"
    ' them from',
  )
  for field, value in given.items():
    if field == 'source':
      need(isinstance(value, str), f'source of the profile {name} must be text')
      continue
    if field == 'platform':
      need(
        value in PLATFORMS,
        f'platform of the profile {name} must be one of'
        f' {", ".join(PLATFORMS)}, got {str(value)[:80]}',
      )
      continue
    if field == 'float8_flops' and value is None:
      continue
    need(
      type(value) in (int, float) and 0 < value < LARGEST,
      f'{field} of the profile {name} must be a number above 0 and below'
      f' {LARGEST:.0e}, got {str(value)[:80]}',
    )
  return Profile(**given)
