"""A plan of a training step, as text for a terminal."""

import dataclasses
import math
from typing import Any

from shared_tfm.config import Config
from shared_tfm.report.units import count, size, time
from shared_tfm.train import profile as profiles
from shared_tfm.train.plan import Plan, plan

DEVICE = 'h100'  # unless told

NOTE = """\
A plan and no promise: it was compiled for CPUs, whose compiler keeps much of
what is bfloat16 in float32 (memory and tensor parallelism's sums come out too
large), and fuses, lays out and combines otherwise than that of a GPU or TPU.
Edit the figures of the device with --profile=FILE.json, such as
{"base": "h100", "link_bandwidth": 200e9}."""


def make(config: Config, profile: str | None) -> tuple[dict[str, Any], str]:
  """Plans a training step.

  Args:
    config: its mesh is that of the devices.
    profile: of each of them, a name or a file; None: `DEVICE`.

  Returns:
    The plan as JSON can hold it, and as text that follows another.
  """
  made = plan(config, profiles.profile(profile or DEVICE))
  return dataclasses.asdict(made), f'\n\n{render(made)}'


def render(plan: Plan) -> str:
  """The figures, a warning where memory does not do, and what they rest on."""
  held, work, profile = plan.held, plan.work, plan.profile
  seconds = plan.seconds
  cuts = ' x '.join(f'{axis} {n}' for axis, n in plan.mesh.items() if n > 1)
  devices = math.prod(plan.mesh.values())
  kinds = [f'{kind} {size(n)}' for kind, n in work.sent.items()]
  sent = sum(work.sent.values())
  step, told = plan.step_seconds, plan.tokens_per_second
  used = plan.utilisation
  rows = {
    'devices': f'{devices} ({cuts or "no cut"}), step by {plan.step}',
    'remat': plan.remat,
    'tokens per step': f'{plan.tokens:,}',
    'state': size(held.state),
    'batch': size(held.batch),
    'temporaries': size(held.temporaries),
    'peak memory': f'{size(held.peak)} of {size(profile.memory_bytes)}',
    'FLOPs, model': count(work.model_flops),
    'FLOPs, with recomputation': (
      f'{count(work.flops)}, {time(seconds["products"])}'
    ),
    **({'  of it in float8': count(work.eighths)} if work.eighths else {}),
    'memory traffic': f'{size(work.moved)}, {time(seconds["memory"])}',
    'sent to others': f'{size(sent)}, {time(seconds["links"])}',
    '  of it in loops': size(work.looped),
    '  by kind': ', '.join(kinds) or 'nothing',
    'step': f'{time(step.best)} (all overlaps) to {time(step.worst)}',
    'tokens per second': f'{told.worst:,.0f} to {told.best:,.0f}',
    'model FLOPs utilisation': f'{used.worst:.1%} to {used.best:.1%}',
    'compiled in': f'{plan.compile_seconds:.0f} s',
    'device': profile.source,
  }
  width = max(map(len, rows))
  lines = [f'{name:<{width}}  {text}' for name, text in rows.items()]
  if not plan.fits:
    lines.append(
      f'WARNING: it does not fit: {size(held.peak)} are needed, and a device'
      f' has {size(profile.memory_bytes)}'
    )
  return '\n'.join(['Plan, per device', *lines, '', NOTE])
