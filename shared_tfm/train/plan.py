"""What a training step would take on a mesh of devices that are not here.

The step is compiled for as many virtual CPU devices, without making an array.
What the program of one device holds, sends and multiplies is read from it; how
long that takes follows from a profile of the real device.

It is a plan and no promise: another compiler fuses, lays out and combines
otherwise. The one for CPUs widens much that is bfloat16 to float32, so that
temporaries and what tensor parallelism sends are rather too large here. XLA's
own cost analysis is not used: it counts the body of a loop once.
"""

import dataclasses
import math
from typing import Any

import jax

from shared_tfm import accounting
from shared_tfm.config import Config
from shared_tfm.config.precision import BYTES
from shared_tfm.errors import need
from shared_tfm.train import mesh as meshes
from shared_tfm.train import products, remat, traffic
from shared_tfm.train.profile import Profile
from shared_tfm.train.programs import Programs
from shared_tfm.train.shaped import peak


@dataclasses.dataclass(frozen=True)
class Held:
  """Bytes on each device while a step runs.

  Attributes:
    state: parameters, optimizer state and the rest of the train state.
    batch: the device's share of it.
    temporaries: what the step computes and does not return.
    peak: all of it, and results that do not replace the state.
  """

  state: int
  batch: int
  temporaries: int
  peak: int


@dataclasses.dataclass(frozen=True)
class Work:
  """What each device does in a step.

  Attributes:
    model_flops: what `accounting` counts for its part of the tokens.
    flops: of the matrix products in the program, recomputation among them.
    moved: bytes between its memory and its cores: state and batch are read, the
      state is written, and so are every matrix product's operands and result,
      in the compute dtype; all else is taken to be fused into these. What is
      to be an operand in float8 is read twice in that dtype, for its scale and
      to be rounded, and written and read in its own.
    sent: bytes to other devices, by kind of collective.
    looped: of them, those that are sent inside a loop, be it over depth or over
      micro-batches.
    eighths: of flops, those of products whose operands are in float8.
  """

  model_flops: int
  flops: int
  moved: int
  sent: dict[str, int]
  looped: int
  eighths: int = 0


@dataclasses.dataclass(frozen=True)
class Span:
  """A figure at best, where all work overlaps, and where none does."""

  best: float
  worst: float


@dataclasses.dataclass(frozen=True)
class Plan:
  """One step.

  Attributes:
    mesh: how many ways each axis cuts.
    step: how it is compiled, 'shard_map' or 'jit'.
    remat: the policy of recomputation: where the config leaves it to memory,
      the one that such a device would have.
    tokens: of a batch, all devices together.
    held: by each device.
    work: of each device.
    seconds: of each kind of work by itself.
    step_seconds: the longest of these, and their sum.
    tokens_per_second: of all devices together.
    utilisation: model_flops, as a part of what the device could have done.
    fits: whether the profile's memory holds the peak.
    profile: of each device.
    compile_seconds: how long it took to compile, under that policy.
  """

  mesh: dict[str, int]
  step: str
  remat: str
  tokens: int
  held: Held
  work: Work
  seconds: dict[str, float]
  step_seconds: Span
  tokens_per_second: Span
  utilisation: Span
  fits: bool
  profile: Profile
  compile_seconds: float


def plan(config: Config, profile: Profile) -> Plan:
  """Plans the largest training step of a config.

  Args:
    config: its mesh says how many devices; none of its axes is 0.
    profile: of each of them.

  Raises:
    BadInput: a batch cannot be cut, or this process has other devices already.
  """
  mesh = {axis: getattr(config.mesh, axis) for axis in meshes.AXES}
  devices = math.prod(mesh.values())
  _virtual(devices)
  if not config.train.memory_gb:
    held = remat.MARGIN * profile.memory_bytes / 2**30
    train = dataclasses.replace(config.train, memory_gb=held)
    config = dataclasses.replace(config, train=train)
  if profile.platform != 'cpu' and config.model.attention_kernel == 'auto':
    # Else what is counted would be a CPU's own form.
    model = dataclasses.replace(config.model, attention_kernel='xla')
    config = dataclasses.replace(config, model=model)
  programs = Programs(config, platform=profile.platform)
  found = zip(programs.train.compiled.values(), programs.batches, strict=True)
  compiled, batch = max(found, key=lambda pair: peak(pair[0]))
  length = _length(config, batch)
  tokens = config.train.batch_size * length
  counted = accounting.flops_per_token(config.model, length)['train'] * tokens
  work = _work(compiled, config, round(counted / devices))
  precision = config.model.precision
  best = profile.flops(precision.operand)
  seconds = {
    'products': work.eighths / best
    + (work.flops - work.eighths) / profile.flops(precision.compute),
    'memory': work.moved / profile.memory_bandwidth,
    'links': sum(work.sent.values()) / profile.link_bandwidth,
  }
  span = Span(max(seconds.values()), sum(seconds.values()))
  alone = work.model_flops / best
  return Plan(
    mesh=mesh,
    step='shard_map' if meshes.shard_maps(config, programs.mesh) else 'jit',
    remat=programs.remat,
    tokens=tokens,
    held=Held(
      state=on_device(programs.shapes),
      batch=on_device(batch),
      temporaries=compiled.memory_analysis().temp_size_in_bytes,
      peak=peak(compiled),
    ),
    work=work,
    seconds=seconds,
    step_seconds=span,
    tokens_per_second=Span(tokens / span.best, tokens / span.worst),
    utilisation=Span(alone / span.best, alone / span.worst),
    fits=peak(compiled) <= profile.memory_bytes,
    profile=profile,
    compile_seconds=programs.train.seconds,
  )


def _work(compiled: Any, config: Config, model_flops: int) -> Work:
  """Reads a compiled step."""
  text, memory = compiled.as_text(), compiled.memory_analysis()
  multiplied, sends = products.products(text), traffic.collectives(text)
  wide = BYTES[config.model.precision.compute]
  moved = sum(
    (wide * product.values + (wide + 2) * product.eighths) * product.runs
    for product in multiplied
  )
  ends = memory.argument_size_in_bytes + memory.output_size_in_bytes
  sent: dict[str, int] = {}
  for one in sends:
    sent[one.kind] = sent.get(one.kind, 0) + one.sent
  return Work(
    model_flops=model_flops,
    flops=sum(product.flops * product.runs for product in multiplied),
    eighths=sum(
      product.flops * product.runs for product in multiplied if product.eighths
    ),
    moved=ends + moved,
    sent=dict(sorted(sent.items())),
    looped=sum(one.sent for one in sends if one.looped),
  )


def _virtual(count: int) -> None:
  """Makes this process one of so many CPU devices, before it has any."""
  try:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', count)
  except RuntimeError:  # too late; perhaps it has them
    pass
  need(
    jax.device_count() == count or count == 1,
    f'a plan for {count} devices must be made in a process of its own: this'
    f' one has started with {jax.device_count()}',
  )


def on_device(shapes: Any) -> int:
  """Bytes that each device holds of arrays, from their shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(shapes)
  )


def _length(config: Config, batch: Any) -> int:
  """Tokens of one example, as accounting counts them."""
  if config.model.family == 'vision':
    return config.model.max_len
  return int(batch['inputs'].shape[1])
