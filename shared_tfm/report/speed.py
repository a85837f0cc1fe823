"""How fast a config trains, as text for a terminal."""

import math

from shared_tfm.infer.latency import Latency
from shared_tfm.report.units import count, size, time
from shared_tfm.train.bench import Bench, Step, Traced
from shared_tfm.train.costly import Row

MOST = 10  # operations that are shown

NOTE = """\
Model FLOPs are those that `describe` counts, whatever the program does: what it
computes again (model.remat) is not among them, so that utilisation is what
PaLM (2204.02311, appendix B) calls MFU. The rate it is a part of was measured
here, between these steps, and is no data sheet's. Values are made up, and
nothing is padding."""
PAIRS = 'A source is counted as if it were as long as its target.'


def render(bench: Bench) -> str:
  """The machine, a block for each kind of batch, and where time went."""
  device, versions = bench.device, bench.versions
  ran = ', '.join(f'{name} {number}' for name, number in versions.items())
  programs = len(bench.kinds)
  fetched = ", from JAX's persistent cache" * bench.cached
  held = bench.device_peak_bytes
  rows = {
    'device': (
      f'{device["count"]} x {device["kind"]} ({device["platform"]}), a host of'
      f' {device["cores"]} cores'
    ),
    'versions': ran,
    'dtype': bench.dtype,
    'remat': bench.remat
    + f', of {bench.tried} policies tried' * (bench.tried > 1),
    'compiled in': (
      f'{time(bench.compile_seconds)}, {programs} program'
      f'{"s" * (programs > 1)}{fetched}'
    ),
    'stored parameters': size(bench.stored_bytes),
    'peak memory per device': (
      f'{size(bench.peak_bytes)} by the compiler'
      + (f', {size(held)} in use' if held else '')
    ),
    'matrix products': (
      f'{_rate(bench.product.flops_per_second)}'
      f' ({bench.product.size} x {bench.product.size})'
    ),
  }
  blocks = [_block(rows), *(_kind(step, bench.steps) for step in bench.kinds)]
  if bench.traced:
    blocks.append(_traced(bench.traced))
  blocks.append(NOTE)
  if any(_uneven(step) for step in bench.kinds):
    blocks[-1] += f' {PAIRS}'
  return '\n\n'.join(blocks)


def generation(found: Latency) -> str:
  """How fast a config generates."""

  def shown(seconds: dict[int, float]) -> str:
    return ', '.join(f'p{p} {time(value)}' for p, value in seconds.items())

  rows = {
    'texts': (
      f'{found.batch}, prompts of {found.prompt} tokens and {found.tokens} more'
    ),
    'first token': shown(found.first),
    'each further token': shown(found.token),
    'tokens per second': f'{found.tokens_per_second:,.1f}',
    'stored parameters': size(found.weight_bytes),
    'kept keys and values': size(found.cache_bytes),
    'compiled in': time(found.compile_seconds),
  }
  title = f'Greedy generation, {found.rounds} rounds; weights are made up'
  return f'{title}\n{_block(rows)}'


def _kind(step: Step, steps: int) -> str:
  """One kind of batch."""
  shapes = {name: step.batch.get(name) for name in ('source', 'inputs')}
  title = ', '.join(
    f'{name} {" x ".join(map(str, shape))}'
    for name, shape in shapes.items()
    if shape
  )
  rows = {
    'step': (
      f'{time(step.median)}, the median of {steps} ({time(step.fastest)} to'
      f' {time(step.slowest)})'
    ),
    'rows per second': f'{step.rows_per_second:,.1f}',
    'tokens per second': f'{step.tokens_per_second:,.0f}',
    'model FLOPs of a step': (
      f'{count(step.flops)} for {step.tokens:,} tokens'
    ),
    'model FLOPs rate': _rate(step.flops_per_second),
    'model FLOPs utilisation': f'{step.utilisation:.1%}',
  }
  if step.loss is None:
    rows['WARNING'] = 'the loss of the last step is not finite'
  return f'Training step, {title}\n{_block(rows)}'


def _uneven(step: Step) -> bool:
  source = step.batch.get('source')
  return source is not None and source != step.batch['inputs']


def _traced(traced: Traced) -> str:
  """The operations that took most of the time."""
  shown = traced.operations[:MOST]
  rest = math.fsum(row.seconds for row in traced.operations[MOST:])
  told = sum(row.share for row in traced.operations)
  lines = [
    ('share', 'time', 'count', 'operation'),
    *map(_cells, shown),
    (
      f'{rest / traced.seconds:.1%}',
      time(rest),
      f'{sum(row.count for row in traced.operations[MOST:]):,}',
      f'{len(traced.operations[MOST:])} others',
    ),
    (
      f'{1 - told:.1%}',
      time((1 - told) * traced.seconds),
      '',
      'no operation: between two of them',
    ),
  ]
  *widths, _ = (max(map(len, column)) for column in zip(*lines, strict=True))
  table = [
    '  '.join([*map(str.rjust, cells, widths), what]) for *cells, what in lines
  ]
  return '\n'.join(
    [
      f'Operations of {traced.steps} steps, {time(traced.seconds)}; the profile'
      f' is in {traced.folder}',
      *table,
    ]
  )


def _cells(row: Row) -> tuple[str, str, str, str]:
  what = f'{row.kind}, {row.place}' if row.place else row.kind
  phase = f' ({row.phase})' if row.phase else ''
  return f'{row.share:.1%}', time(row.seconds), f'{row.count:,}', what + phase


def _rate(flops_per_second: float) -> str:
  return f'{flops_per_second / 1e9:,.1f} GFLOP/s'


def _block(rows: dict[str, str]) -> str:
  width = max(map(len, rows))
  return '\n'.join(f'{name:<{width}}  {text}' for name, text in rows.items())
