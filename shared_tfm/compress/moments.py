"""The optimizer's moments, under other specs.

They go where weights go: rows that split take a copy each, and rows that join
take the mean, as where tables change in training (sharing/adaptive.py).
"""

import dataclasses
from typing import Any

import jax
import optax

from shared_tfm.compress.convert import convert
from shared_tfm.config import Config, Quantise, sides
from shared_tfm.config.shapes import components
from shared_tfm.errors import need

_RULES = ('adamw', 'lion', 'lamb')  # whose moments have their weights' shapes


def carried(
  source: Config, params: Any, state: Any, target: Config, fresh: Any
) -> Any:
  """An optimizer's state for a config, with another config's moments.

  What a schedule counts is the new run's own; all other counts are kept.

  Args:
    source: the config of the run that `state` is of.
    params: its parameters.
    state: its optimizer's state.
    target: the same network and update rule under other specs.
    fresh: the state that its optimizer begins with.

  Raises:
    BadInput: the rule or a spec is one whose moments have no such place.
  """
  rules = source.optimizer.name, target.optimizer.name
  need(
    rules[0] == rules[1] and rules[0] in _RULES,
    f'--optimizer_state is for one rule, of {", ".join(_RULES)}, got'
    f' {rules[0]} there and {rules[1]} here',
  )
  for config in (source, target):
    for stack in sides.stacks(config.model).values():
      for component in components(stack).values():
        spec = component.spec
        full = len(spec.levels) == 1 and spec.levels[0].full
        need(
          bool(spec.same_as) or (full and not spec.within),
          '--optimizer_state follows rows, and needs specs of one full-rank'
          f' level; got {spec}',
        )
    need(
      not config.model.quantise.integers,
      '--optimizer_state is for weights that are trained, got'
      ' model.quantise.store integers',
    )
  models = [  # moments are never rounded
    dataclasses.replace(config.model, quantise=Quantise())
    for config in (source, target)
  ]
  tree: Any = jax.tree.structure(params)

  def alike(leaf: Any) -> bool:
    return bool(tree == jax.tree.structure(leaf))

  def whole(leaf: Any) -> bool:
    return isinstance(leaf, optax.ScaleByScheduleState) or alike(leaf)

  def move(there: Any, here: Any) -> Any:
    if isinstance(there, optax.ScaleByScheduleState):
      return here
    if not alike(there):
      return there
    return convert(models[0], there, {}, models[1], None).params

  return jax.tree.map(move, state, fresh, is_leaf=whole)
