"""How the visits of a model divide into loops, and what rules of depth need."""

import functools
from typing import NamedTuple

from shared_tfm.config import shapes
from shared_tfm.config.fields import Model
from shared_tfm.errors import BadInput, need
from shared_tfm.sharing import levels, table
from shared_tfm.sharing.component import Component

HALTING = ('act', 'stick_breaking', 'ponder')  # rules with a halting unit


class Loops(NamedTuple):
  """P visits, a core of C visits that loops `times` times, K visits."""

  prelude: int
  core: int
  times: int
  coda: int


@functools.lru_cache
def loops(model: Model) -> Loops:
  """How the visits of a model divide into loops.

  Raises:
    BadInput: what `model.depth` says does not fit the number of layers.
  """
  n, depth = model.num_layers, model.depth
  if depth.core:
    rest = n - depth.prelude - depth.coda
    need(
      rest > 0 and rest % depth.core == 0,
      'model.depth needs num_layers = prelude + core * loops + coda, got'
      f' {n} and {depth.prelude} + {depth.core} * loops + {depth.coda}',
    )
    return Loops(depth.prelude, depth.core, rest // depth.core, depth.coda)
  first = levels.parse(model.sharing.layer).levels[:1]
  rows = first[0].table if first else table.Spec('none')
  if rows.name == 'all':
    return Loops(0, 1, n, 0)
  if rows.name == 'cycle':
    return Loops(0, rows.args[0], n // rows.args[0], 0)
  if rows.name == 'middle_cycle':
    return Loops(1, rows.args[0], (n - 2) // rows.args[0], 1)
  if rows.name == 'recurrent':
    p, c, times, k = rows.args
    return Loops(p, c, times, k)
  return Loops(0, n, 1, 0)


def exits(model: Model) -> int:
  """At how many places a training step scores the residual stream."""
  if model.depth.rule == 'two_level':
    return model.depth.supervision
  if model.depth.rule in ('ponder', 'exits'):
    return loops(model).times
  return 1


def control_parameters(model: Model) -> dict[str, int]:
  """How many parameters decide about depth, by part; see model/depth.py."""
  depth, d = model.depth, model.d_model
  halts = depth.rule in HALTING
  routes = depth.rule in ('expert_choice', 'token_choice')
  scale_and_bias = model.norm != 'rmsnorm' and model.use_bias
  sizes = {
    'halt': (d + 1) * halts,
    'adapter': 2 * d * d * (depth.injection == 'linear'),
    'router': d * loops(model).times * routes,
    'norm': d * (2 if scale_and_bias else 1) * depth.norm,
  }
  return {name: size for name, size in sizes.items() if size}


def shares(model: Model) -> tuple[float, ...]:
  """The share of a sequence that each visit runs.

  Less than 1 where tokens are gathered: loop r of R of expert_choice has (R -
  r) / R of them. Reused keys and values are for all, so that none is left out.
  """
  p, c, times, k = loops(model)
  if model.depth.rule != 'expert_choice' or model.sharing.kv_source:
    return (1.0,) * model.num_layers
  core = tuple((times - i // c) / times for i in range(c * times))
  return (1.0,) * p + core + (1.0,) * k


def attended_loops(model: Model) -> tuple[int, ...]:
  """How many loops' keys each visit attends to."""
  p, c, times, k = loops(model)
  if model.depth.attention == 'loop':
    return (1,) * model.num_layers
  core = tuple(1 + i // c for i in range(c * times))
  return (1,) * p + core + (1,) * k


def control_flops(model: Model) -> int:
  """Of injection, halting units and routers, forward, for one token."""
  depth, d, times = model.depth, model.d_model, loops(model).times
  halts = depth.rule in HALTING
  per_loop = 2 * d * halts + 4 * d * d * (depth.injection == 'linear')
  router = 2 * d * times * (depth.rule in ('expert_choice', 'token_choice'))
  return per_loop * times + router


def segments(model: Model) -> int:
  """How many times all of it is run for one update, one after the other."""
  return model.depth.supervision if model.depth.rule == 'two_level' else 1


def check(model: Model) -> None:
  """Checks what `model.depth` says.

  Raises:
    BadInput: the rule, and what was given.
  """
  depth = model.depth
  _, c, times, k = loops(model)
  rule = f'model.depth.rule {depth.rule}'
  if depth.attention == 'all_loops':
    plain = ('fixed', 'act', 'ponder', 'exits')
    need(
      depth.rule in plain and times > 1,
      'model.depth.attention all_loops needs a core that loops and one of the'
      f' rules {", ".join(plain)}, got {rule} and {times} loop'
      f'{"s" * (times > 1)}',
    )
    need(
      not (model.sharing.kv_source or model.sharing.map_source),
      'model.depth.attention all_loops cannot be had with kv_source or'
      ' map_source',
    )
  if is_plain(model):
    return
  if depth.rule != 'fixed':
    need(
      times > 1,
      f'{rule} needs layers that loop: sharing.layer all, cycle, middle_cycle'
      f' or recurrent, or model.depth.core; {model.sharing.layer!r} with'
      f' {model.num_layers} layers runs its core once',
    )
  need(
    depth.rule != 'stick_breaking' or (c == 1 and depth.injection == 'none'),
    f'{rule} needs a core of one layer and no injection, as that layer attends'
    f' to what left the loop before, got {c} layer{"s" * (c > 1)} and'
    f' model.depth.injection {depth.injection}',
  )
  routed = depth.rule in ('expert_choice', 'token_choice')
  injects = not routed and depth.rule != 'two_level'
  need(
    injects or depth.injection == 'none',
    f'{rule} has no input injection, got {depth.injection}',
  )
  need(
    injects or not depth.norm,
    f'{rule} has no norm after its loops (model.depth.norm)',
  )
  need(
    depth.start == 'input'
    or depth.rule == 'two_level'
    or (injects and depth.injection != 'none'),
    f'model.depth.start {depth.start} needs an injection, or the core never'
    ' sees its input',
  )
  need(
    depth.rule not in ('random', 'two_level') or model.shared_gradient == 'sum',
    f'{rule} trains the last visits only and needs model.shared_gradient sum,'
    f' got {model.shared_gradient}',
  )
  need(
    model.norm != 'batchnorm',
    f'batchnorm keeps statistics per visit and needs a fixed depth, got {rule}',
  )
  need(
    model.quantise.activations == 'none',
    'model.quantise.activations keeps ranges per visit and needs a fixed depth,'
    f' got {rule}',
  )
  need(
    model.remat_group == 1,
    'model.remat_group is for a fixed depth without injection, got'
    f' {model.remat_group} and {rule}',
  )
  need(
    depth.rule != 'two_level' or times % (depth.inner_loops + 1) == 0,
    'two_level needs as many loops as a multiple of inner_loops + 1 ='
    f' {depth.inner_loops + 1}, got {times}',
  )
  need(
    depth.rule != 'ponder' or 0 < depth.prior_rate < 1,
    f'model.depth.prior_rate must lie between 0 and 1, got {depth.prior_rate}',
  )
  need(
    depth.rule != 'random' or depth.mean_loops >= 1,
    f'model.depth.mean_loops must be at least 1, got {depth.mean_loops}',
  )
  exits = ('fixed', 'ponder', 'exits', 'random')
  need(
    depth.criterion == 'none' or depth.rule in exits,
    f'model.depth.criterion is for the rules {", ".join(exits)}, got {rule}',
  )
  need(
    depth.criterion != 'cdf' or depth.rule == 'ponder',
    f'the criterion cdf needs the rule ponder, got {depth.rule}',
  )
  need(
    not (routed and model.sharing.map_source),
    f'{rule} cannot reuse attention maps (map_source)',
  )
  several = depth.rule in ('ponder', 'exits') or depth.criterion != 'none'
  reuses = bool(model.sharing.kv_source or model.sharing.map_source)
  need(
    not (several and k and reuses),
    'a coda behind several exits cannot reuse activations of the core',
  )
  if depth.rule == 'random':
    check_repeats(model)


def check_repeats(model: Model) -> None:
  """Raises BadInput unless every loop of the core reads the same rows."""
  for name, component in changing(model).items():
    raise BadInput(
      'loops whose number may vary need the same rows in every loop, got'
      f' {component.spec} for {name}'
    )


def changing(model: Model) -> dict[str, Component]:
  """Components that read other rows from one loop of the core to the next."""
  prelude, c, times, _ = loops(model)

  def changes(owners: tuple[int, ...]) -> bool:
    core = owners[prelude : prelude + c * times]
    return core != core[:c] * times

  return {
    name: component
    for name, component in shapes.components(model).items()
    if any(map(changes, component.owners))
  }


_PLAIN = ('fixed', 'none', 'input', False, 'none')


def is_plain(model: Model) -> bool:
  """Whether depth is what the tables say, and nothing else."""
  d = model.depth
  return (d.rule, d.injection, d.start, d.norm, d.criterion) == _PLAIN
