"""Sizes, counts and times in few digits."""


def size(count: float) -> str:
  """Bytes, such as '741 MB'."""
  return _scaled(count, ('B', 'kB', 'MB', 'GB', 'TB', 'PB'))


def count(flops: float) -> str:
  """Floating-point operations, such as '67.3 TFLOP'."""
  return _scaled(flops, ('FLOP', 'kFLOP', 'MFLOP', 'GFLOP', 'TFLOP', 'PFLOP'))


def time(seconds: float) -> str:
  """A duration, such as '40.7 ms'."""
  return _scaled(seconds * 1e6, ('us', 'ms', 's'))


def _scaled(value: float, units: tuple[str, ...]) -> str:
  """Three digits, in powers of 1000."""
  unit, *larger = units
  while value >= 999.5 and larger:
    value, (unit, *larger) = value / 1000, larger
  return f'{value:.3g} {unit}' if value < 999.5 else f'{value:,.0f} {unit}'
