"""What a mesh of devices asks of a config, before any device is looked at."""

import math
import re

from shared_tfm.config.training import Config
from shared_tfm.errors import need, unknown

AXES = ('data', 'fsdp', 'tensor', 'sequence')
MOST = 4096  # devices of a mesh that is only planned

# Rules of depth whose loss and loops are those of every sequence by itself.
_OF_SEQUENCES = ('fixed', 'exits', 'two_level')


def check(config: Config) -> None:
  """Checks what is cut against the numbers of ways it is cut.

  Raises:
    BadInput: a size that a mesh axis does not divide, or a step by shard_map of
      a model that looks at its whole batch.
  """
  model, mesh = config.model, config.mesh
  reason = whole_batch(config)
  need(
    mesh.step != 'shard_map' or not reason,
    f"mesh.step 'shard_map' gives every device its own sequences, but"
    f" {reason} looks at the whole batch: take 'auto' or 'jit'",
  )
  need(
    mesh.step != 'shard_map' or min(mesh.tensor, mesh.sequence) == 1,
    "mesh.step 'shard_map' can leave one axis to the compiler, tensor or"
    f' sequence, got {mesh.tensor} and {mesh.sequence}',
  )
  for name, size in (
    ('num_heads', model.num_heads),
    ('num_kv_heads', model.num_kv_heads),
  ):
    need(
      size % mesh.tensor == 0,
      f'mesh.tensor must divide model.{name} {size}, got {mesh.tensor}',
    )
  need(
    mesh.sequence == 1 or model.family != 'vision',
    f'mesh.sequence cuts text, got {mesh.sequence} and model.family vision',
  )
  for length in {config.data.seq_len, *config.data.lengths}:
    need(
      length % mesh.sequence == 0,
      f'mesh.sequence must divide every length of data.seq_len, source_len and'
      f' buckets, got {mesh.sequence} and {length}',
    )


def sizes(text: str) -> dict[str, int]:
  """The sizes of a mesh that is written 'data:16,fsdp:16'.

  Returns:
    That of every axis; 1 for those that are not named.

  Raises:
    BadInput: it is not written so.
  """
  found: dict[str, int] = {}
  for part in text.split(','):
    match = re.fullmatch(r'\s*(\w+):0*([1-9]\d{0,8})\s*', part, re.ASCII)
    need(
      match is not None,
      f"a mesh is written 'data:16,fsdp:16', got {part.strip()!r} in {text!r}",
    )
    assert match
    if match[1] not in AXES:
      raise unknown('mesh axis', match[1], AXES)
    need(match[1] not in found, f'{match[1]} is given twice in mesh {text!r}')
    found[match[1]] = int(match[2])
  need(
    math.prod(found.values()) <= MOST,
    f'a mesh to plan must have at most {MOST} devices, got {text!r}',
  )
  return dict.fromkeys(AXES, 1) | found


def overrides(mesh: str | None, profile: str | None) -> list[str]:
  """A mesh that is to be planned, as if each axis had been given as a field.

  Args:
    mesh: see `sizes`; None: nothing is to be planned.
    profile: of its devices; None: not given.

  Raises:
    BadInput: see `sizes`; or only a profile is given.
  """
  need(
    mesh is not None or profile is None,
    '--profile is of the devices of a --mesh',
  )
  given = sizes(mesh) if mesh is not None else {}
  return [f'--config.mesh.{axis}={size}' for axis, size in given.items()]


def whole_batch(config: Config) -> str:
  """The field by which a training step is more than a sum over sequences.

  Empty where there is none: then devices need only add up their gradients.
  """
  model = config.model
  if model.norm == 'batchnorm':
    return 'model.norm batchnorm'
  if model.quantise.activations != 'none':
    return f'model.quantise.activations {model.quantise.activations}'
  if model.depth.rule not in _OF_SEQUENCES:
    return f'model.depth.rule {model.depth.rule}'
  if model.depth.start == 'normal':
    return 'model.depth.start normal'
  if model.experts.style == 'sut' and (
    model.experts.num_ff or model.experts.num_attention
  ):
    return 'model.experts.style sut'
  return ''
