"""What all rows of a comparison have alike, solved for row by row.

The first row is the reference, and stays as it is. Of the others

* `params` adjusts the width, or with `adjust` depth the number of layers, so
  that stored parameters outside the embeddings come nearest;
* `flops` adjusts the steps: FLOPs of a token x tokens of a step x steps;
* `time` adjusts the steps: seconds of a step, as measured here, x steps.

A width keeps the number of heads, and what was proportional to it stays so; the
feed-forward width may leave its proportion by FF to come nearer. With the steps
go schedule, warm-up, and whatever else is counted from the start of a run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.config import Config, Model
from shared_tfm.errors import BadInput, need
from shared_tfm.report.sweep import Sweep
from shared_tfm.report.sweep_file import Solved

Fields: TypeAlias = dict[str, Any]
Timed: TypeAlias = Callable[[Sequence[Config]], Sequence[float]]
NEAR = 0.25  # a budget that is missed by more is not one
FF = 0.05
DEEPER = 8  # times the layers that are tried at most
FROM_START = (  # counted in steps from the start of a run
  'optimizer.warmup_steps',
  'prune.start',
  'prune.end',
  'adapt.step',
)
FF_WIDTHS = ('d_ff', 'd_ff_encoder', 'd_ff_decoder', 'core_ff')


def solve(
  sweep: Sweep,
  crossed: Mapping[str, Config],
  known: Mapping[str, Solved],
  timed: Timed,
) -> dict[str, Solved]:
  """What each row of a sweep is to have so that all have the budget.

  Args:
    sweep: with the budget, `equal`.
    crossed: the config of each row as it is asked for, by label.
    known: what was solved before, and stays as it is.
    timed: configs -> seconds of a training step of each.

  Raises:
    BadInput: the budget cannot be had for a row.
  """
  new = [label for label in sweep.labels if label not in known]
  first, *others = new if new == sweep.labels else [sweep.labels[0], *new]
  like, found = crossed[first], {first: Solved()}
  if sweep.equal == 'time' and new:
    theirs, *taken = timed([crossed[label] for label in (first, *others)])
    found[first] = seconds(like, like, theirs, theirs)
  for place, label in enumerate(others):
    config = crossed[label]
    try:
      match sweep.equal:
        case 'steps':
          found[label] = Solved()
        case 'params':
          found[label] = parameters(config, like, sweep.adjust)
        case 'flops':
          found[label] = flops(config, like)
        case _:
          found[label] = seconds(config, like, taken[place], theirs)
    except BadInput as error:
      raise BadInput(f'row {label!r}: {error}') from None
  return {**found, **known}


def parameters(config: Config, like: Config, adjust: str) -> Solved:
  """The width or depth that stores as many parameters as another config.

  Args:
    config: to be adjusted.
    like: the reference; its parameters outside the embeddings count.
    adjust: 'width' or 'depth'.

  Raises:
    BadInput: nothing that the config allows comes within NEAR.
  """
  target = _stored(like)
  tried = _depths(config) if adjust == 'depth' else _widths(config, target)
  best = _nearest(config, tried, target)
  if adjust == 'width':
    best = _nearest(config, [best, *_feed_forwards(config, best)], target)
  made = configs.with_fields(config, best)
  off = _stored(made) / target - 1
  name = 'num_layers' if adjust == 'depth' else 'd_model'
  need(
    abs(off) <= NEAR,
    f'--equal=params: {_stored(made):,} parameters with {name}'
    f' {getattr(made.model, name)} is the nearest to {target:,} that'
    f' adjusting the {adjust} of this row gives',
  )
  notes = [(adjust, name)]
  if adjust == 'width' and made.model.d_ff > 0:
    notes.append(('d_ff', 'd_ff'))
  changes = [
    _change(what, getattr(config.model, field), getattr(made.model, field))
    for what, field in notes
  ]
  note = f'{"".join(changes)}params {_percent(off)}'
  changed = {n: v for n, v in best.items() if _value(config, n) != v}
  return Solved(changed, note)


def flops(config: Config, like: Config) -> Solved:
  """The steps that take as many training FLOPs as another config's."""
  target = _step_flops(like) * like.train.num_steps
  found = steps(config, round(target / _step_flops(config)))
  made = configs.with_fields(config, found)
  off = _step_flops(made) * made.train.num_steps / target - 1
  return Solved(found, f'{_steps_note(config, made)}FLOPs {_percent(off)}')


def seconds(
  config: Config, like: Config, taken: float, theirs: float
) -> Solved:
  """The steps that take as long as another config's.

  Args:
    config: to be adjusted.
    like: the reference.
    taken: seconds of a step of `config`.
    theirs: seconds of a step of the reference.
  """
  found = steps(config, round(like.train.num_steps * theirs / taken))
  made = configs.with_fields(config, found)
  off = made.train.num_steps * taken / (like.train.num_steps * theirs) - 1
  each = f'{1000 * taken:.3g} ms a step'
  note = f'{_steps_note(config, made)}{each}, time {_percent(off)}'
  return Solved(found, note)


def steps(config: Config, number: int) -> Fields:
  """The fields of a run of another length: what follows steps goes along."""
  number = max(number, 1)
  factor = number / config.train.num_steps
  if factor == 1:
    return {}
  changes = config.adapt.method != 'none'  # else the field says nothing
  names = (*FROM_START, *['adapt.every'] * changes)
  counted = {name: _value(config, name) for name in names}
  return {
    'train.num_steps': number,
    **{n: max(round(v * factor), 1) for n, v in counted.items() if v},
  }


def _percent(off: float) -> str:
  return f'{round(100 * off, 1) + 0.0:+.1f} %'  # 0 is no -0


def _change(what: str, before: int, after: int) -> str:
  return f'{what} {before} -> {after}, ' if before != after else ''


def _steps_note(config: Config, made: Config) -> str:
  return _change('steps', config.train.num_steps, made.train.num_steps)


def _stored(config: Config) -> int:
  return accounting.parameters(config.model)['non_embedding']


def _step_flops(config: Config) -> int:
  tokens = config.train.batch_size * config.data.seq_len
  length = config.data.lengths[-1]
  return accounting.flops_per_token(config.model, length)['train'] * tokens


def _value(config: Config, name: str) -> Any:
  value: Any = config
  for part in name.split('.'):
    value = getattr(value, part)
  return value


def _nearest(config: Config, tried: Iterable[Fields], target: int) -> Fields:
  """Of what the config allows, the fields whose parameters come nearest.

  Of those that come equally near, the first.
  """
  best, least, rule = None, 0, ''
  for fields in tried:
    try:
      off = abs(_stored(configs.with_fields(config, fields)) - target)
    except BadInput as error:
      rule = str(error)
      continue
    if best is None or off < least:
      best, least = fields, off
  if best is None:
    raise BadInput(f'--equal=params: nothing near fits the config: {rule}')
  return best


def _depths(config: Config) -> Iterator[Fields]:
  """Numbers of layers, those near the config's own first."""
  own, theirs = config.model.num_layers, config.model.num_decoder_layers
  for number in sorted(range(1, DEEPER * own + 1), key=lambda n: abs(n - own)):
    fields = {'model.num_layers': number}
    if theirs:
      fields['model.num_decoder_layers'] = max(round(theirs * number / own), 1)
    yield fields


def _widths(config: Config, target: int) -> list[Fields]:
  """Widths around the one that the target asks for, whether legal or not."""
  model = config.model
  unit = model.num_heads * (1 + (model.head_dim % 2 == 0))
  unit = unit if model.d_model % unit == 0 else 1

  def stored(number: int) -> int:
    wide = configs.replaced(config, _width(model, number * unit))
    return _stored(wide)

  low, high = 0, 1
  while stored(high) < target:
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if stored(middle) < target else (low, middle)
  around = range(max(high - 8, 1), high + 8)
  return [_width(model, number * unit) for number in around]


def _width(model: Model, width: int) -> Fields:
  """The fields of a network of another width."""
  scale = width / model.d_model
  fields: Fields = {'d_model': width}
  if model.head_dim * model.num_heads == model.d_model:
    fields['head_dim'] = width // model.num_heads
  else:
    fields['head_dim'] = _scaled(model.head_dim, scale, 2)
  if model.embed_dim == model.d_model:
    fields['embed_dim'] = width
  for name in ('core_width', *FF_WIDTHS):
    if (value := getattr(model, name)) > 0:
      fields[name] = _scaled(value, scale, 8)
  if model.experts.num_ff:
    fields['experts.ff_width'] = _scaled(model.experts.ff_width, scale, 8)
  return {f'model.{name}': value for name, value in fields.items()}


def _scaled(value: int, scale: float, unit: int) -> int:
  """A size times `scale`, a multiple of `unit` where it was one."""
  unit = unit if value % unit == 0 else 1
  return max(round(value * scale / unit), 1) * unit


def _feed_forwards(
  config: Config, width: Mapping[str, Any]
) -> Iterator[Fields]:
  """A width with feed-forward widths a little off their proportion."""
  own = width.get('model.d_ff')
  if not own:
    return
  unit = 8 if config.model.d_ff % 8 == 0 else 1
  most = int(own * FF / unit)
  for number in range(-most, most + 1):
    scale = 1 + number * unit / own
    yield {
      name: _scaled(value, scale, 8)
      if name.removeprefix('model.') in FF_WIDTHS
      else value
      for name, value in width.items()
    }
