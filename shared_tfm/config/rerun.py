"""Running what was trained for some number of loops for another."""

import dataclasses

from shared_tfm.config import shapes
from shared_tfm.config.fields import Model
from shared_tfm.config.loops import loops
from shared_tfm.errors import need
from shared_tfm.sharing import levels, table


def rerun(model: Model, times: int) -> Model:
  """The same stored weights, their core run another number of times.

  Raises:
    BadInput: the model's core does not loop, its rule has parameters for each
      loop, or a table is not one that repeats
      (every layer of `none` has a row of its own, a literal has an end).
  """
  p, c, now, k = loops(model)
  need(times > 0, f'the number of loops must be at least 1, got {times}')
  rule = model.depth.rule
  need(
    model.family != 'encoder_decoder',
    'an encoder_decoder runs the loops that it was trained for',
  )
  need(
    model.tables == 'fixed',
    'tables that change have a row ready for every layer, and no more',
  )
  need(
    rule not in ('expert_choice', 'token_choice', 'two_level'),
    f'a model of rule {rule} runs as many loops as it was trained for',
  )
  need(
    model.quantise.activations == 'none',
    'model.quantise.activations has a range for every visit, and no more',
  )
  need(
    now > 1 or c < model.num_layers,
    f'the core of {model.sharing.layer!r} does not loop',
  )
  fields = {
    field.name: _rerun(getattr(model.sharing, field.name), times)
    for field in dataclasses.fields(model.sharing)
  }
  depth, visits = model.depth, p + c * times + k
  if times == 1 and rule in ('random', 'exits'):  # which need loops to train
    depth = dataclasses.replace(depth, rule='fixed')
  after = dataclasses.replace(
    model,
    num_layers=visits,
    sharing=dataclasses.replace(model.sharing, **fields),
    depth=depth,
    remat_group=1,
    residual_visits=model.scaled_visits if model.scaled_visits != visits else 0,
  )
  new = shapes.components(after)
  for name, component in shapes.components(model).items():
    rows = [max(owners) + 1 for owners in component.owners]
    others = [max(owners) + 1 for owners in new[name].owners]
    for level, one, other in zip(
      component.spec.levels, rows, others, strict=True
    ):
      need(
        one == other,
        f'{level} for {name} stores {one} rows at {now} loops and {other}'
        f' at {times}; only tables that repeat can be run for another number'
        ' of loops',
      )
  return after


def _rerun(spec: str, times: int) -> str:
  """A spec with R of its recurrent tables replaced."""
  if 'recurrent' not in spec:
    return spec
  parsed = levels.parse(spec)
  changed = []
  for level in parsed.levels:
    args = level.table.args
    if level.table.name == 'recurrent':
      args = (args[0], args[1], times, args[3])
    rows = table.Spec(level.table.name, args)
    changed.append(dataclasses.replace(level, table=rows))
  return str(dataclasses.replace(parsed, levels=tuple(changed)))
