"""Which weights are pruned, and how many: from the config alone.

What a bank stores of a layer's matrices can be masked: whole rows, templates,
and the factors of products. Vectors, diagonals, routers and what stands outside
the layers cannot.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from shared_tfm.config import shapes, sides
from shared_tfm.config.fields import Model
from shared_tfm.config.training import Config, Prune
from shared_tfm.errors import need, unknown
from shared_tfm.sharing.levels import DIAGONAL
from shared_tfm.sharing.table import ROOT

LARGEST = 2**31  # what places in a ranking are below


def derived(config: Config) -> Config:
  """The config with what `prune` leaves open filled in."""
  p = config.prune
  if p.method == 'none':
    return config
  sparsity = p.sparsity or 0.5
  if p.pattern and not p.sparsity:
    n, m = pattern(p)
    sparsity = 1 - n / m
  prune = dataclasses.replace(
    p, sparsity=sparsity, end=p.end or config.train.num_steps * 3 // 4
  )
  names = p.only.replace(' ', '') or ROOT
  model = dataclasses.replace(config.model, masked=names)
  return dataclasses.replace(config, model=model, prune=prune)


def without(config: Config) -> Config:
  """The config of the same network, of which nothing is pruned."""
  model = dataclasses.replace(config.model, masked='')
  return dataclasses.replace(config, model=model, prune=Prune())


def pattern(prune: Prune) -> tuple[int, int]:
  """N and M of a pattern.

  Raises:
    BadInput: it is none.
  """
  match = re.fullmatch(r'([0-9]{1,4}):([0-9]{1,4})', prune.pattern)
  n, m = map(int, match.groups()) if match else (0, 0)
  need(
    0 < n < m,
    'prune.pattern is written N:M, such as 2:4, with N from 1 to M - 1, got'
    f' {prune.pattern!r}',
  )
  return n, m


def masked(names: str, path: Sequence[str]) -> bool:
  """Whether a tensor of a bank has a mask.

  Args:
    names: `model.masked`.
    path: of the tensor in a layer's tree.
  """
  if 'kernel' not in path or path[-1] == DIAGONAL:
    return False
  if not names or any('router' in name for name in path):
    return False
  dotted = '.'.join(path) + '.'
  given = names.split(',')
  return ROOT in given or any(dotted.startswith(f'{n}.') for n in given)


def tensors(model: Model) -> dict[str, tuple[int, tuple[int, ...]]]:
  """What has a mask: (rows, shape of one), by the stack's name and the path."""
  found = {}
  for name, stack in sides.stacks(model).items():
    for path, tensor in shapes.layer(stack).items():
      component = shapes.component_of(stack, path)
      axes = len(tensor.shape)
      if component.borrowed or axes < 2:
        continue
      stored = component.shrunk(tensor.shape, tensor.units, tensor.axis)
      for level in component.spec.terms(axes):
        each = component.spec.levels[level].shapes(stored)
        for suffix, shape in each.items():
          place = f'{path}.{suffix}' if suffix else path
          if masked(model.masked, place.split('.')):
            where = f'{name}.{place}' + f' of level {level}' * (level > 0)
            found[where] = component.copies(level, axes), shape
  return found


def removed(config: Config, sparsity: float | None = None) -> int:
  """How many weights are masked at a sparsity; None: at that of the end."""
  p, sizes = config.prune, tensors(config.model)
  if p.method == 'none':
    return 0
  share = p.sparsity if sparsity is None else sparsity
  each = [(rows, math.prod(shape)) for rows, shape in sizes.values()]
  if p.pattern:
    _, m = pattern(p)
    return sum(rows * size // m for rows, size in each) * count(share, m)
  if p.scope == 'tensor':
    return sum(rows * count(share, size) for rows, size in each)
  return count(share, sum(rows * size for rows, size in each))


def count(sparsity: float, size: int) -> int:
  """How many of so many weights are masked: never more than asked for."""
  return math.floor(sparsity * size + 1e-6)


def check(config: Config) -> None:
  """Checks what `prune` says.

  Raises:
    BadInput: the rule, and what was given.
  """
  p, model, steps = config.prune, config.model, config.train.num_steps
  parts = {
    name
    for stack in sides.stacks(model).values()
    for part in shapes.matrices(stack)
    for name in (ROOT, part, part.partition('.')[0])
    if masked(ROOT, (*part.split('.'), 'kernel'))
  }
  for name in model.masked.split(',') if model.masked else ():
    if name not in parts:
      raise unknown('component in prune.only', name, parts)
  if p.method == 'none':
    return
  need(
    not model.quantise.integers,
    f'prune.method {p.method} masks weights that are trained, and those of'
    f' model.quantise.weights {model.quantise.weights} are stored as integers:'
    ' prune first',
  )
  need(
    model.tables == 'fixed',
    f'prune.method {p.method} masks rows that stay where they are, and'
    f' adapt.method {config.adapt.method} moves them',
  )
  least = int(p.method == 'movement')  # which looks at updates before it
  need(
    least <= p.start < steps,
    f'prune.start must lie between {least} and train.num_steps - 1 ='
    f' {steps - 1} for the method {p.method}, got {p.start}',
  )
  need(
    p.schedule == 'once' or p.start < p.end < steps,
    f'prune.end must lie behind start {p.start} and before train.num_steps'
    f' {steps}, got {p.end}',
  )
  found = tensors(model)
  need(
    sum(rows * math.prod(shape) for rows, shape in found.values()) < LARGEST,
    f'prune ranks fewer than {LARGEST} weights; prune.only names some of them',
  )
  if not p.pattern:
    return
  n, m = pattern(p)
  need(
    math.isclose(p.sparsity, 1 - n / m),
    f'prune.pattern {p.pattern} has a sparsity of {1 - n / m:g}, got'
    f' prune.sparsity {p.sparsity:g}',
  )
  for name, (_, shape) in found.items():
    need(
      shape[-2] % m == 0,
      f'prune.pattern {p.pattern} needs inputs divisible by {m}, got'
      f' {shape[-2]} of {name}',
    )
