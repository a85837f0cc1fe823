"""What a preset is, and how one is written."""

import dataclasses
import inspect
import re
from collections.abc import Callable

from shared_tfm.errors import need, unknown

Value = str | int | float | bool
Fields = dict[str, Value]
Rule = Callable[..., Fields]

LAYER = 'model.sharing.layer'
FEED_FORWARD = 'model.sharing.feed_forward'
KV_SOURCE = 'model.sharing.kv_source'


@dataclasses.dataclass(frozen=True)
class Preset:
  """One published system.

  Attributes:
    name: what it is called here.
    rule: from the number of layers and integers to fields.
    source: where it is published, which is in the rule's docstring too.
    shared: what is shared, in words.
    example: a use of it that the docs draw and the tests train.
    layers: the number of layers of the example.
  """

  name: str
  rule: Rule
  source: str
  shared: str
  example: str
  layers: int

  @property
  def form(self) -> str:
    """How it is written, such as 'albert[:groups[,inner]]'."""
    form, ends = self.name, ''
    for i, parameter in enumerate(_integers(self.rule)):
      optional = parameter.default is not inspect.Parameter.empty
      form += '[' * optional + (',' if i else ':') + parameter.name
      ends += ']' * optional
    return form + ends


PRESETS: dict[str, Preset] = {}


def preset(
  source: str, example: str = '', layers: int = 12
) -> Callable[[Rule], Rule]:
  """Registers a rule under its function's name."""

  def register(rule: Rule) -> Rule:
    name = rule.__name__
    shared = ' '.join((rule.__doc__ or '').split())
    PRESETS[name] = Preset(name, rule, source, shared, example or name, layers)
    rule.__doc__ = f'{rule.__doc__}\n\n  Source: {source}'
    return rule

  return register


def fields(text: str, num_layers: int) -> Fields:
  """The fields of a config that a preset stands for.

  >>> fields('albert:2', num_layers=6)
  {'model.sharing.layer': 'sequence:2'}

  Args:
    text: a preset's name, with integers after it: 'huginn:2,4,2'.
    num_layers: the number of visits.

  Raises:
    BadInput: an unknown name, integers that it does not take, or a number of
      layers that it does not fit.
  """
  name, colon, numbers = ''.join(text.split()).partition(':')
  if name not in PRESETS:
    raise unknown('preset', name, PRESETS)
  found = PRESETS[name]
  parameters = _integers(found.rule)
  least = sum(p.default is inspect.Parameter.empty for p in parameters)
  given = numbers.split(',') if colon else []
  need(
    least <= len(given) <= len(parameters)
    and all(re.fullmatch(r'\d+', number) for number in given),
    f'{name} is written {found.form} with integers, got {text!r}',
  )
  return found.rule(num_layers, *map(int, given))


def _integers(rule: Rule) -> list[inspect.Parameter]:
  return list(inspect.signature(rule).parameters.values())[1:]


def part(name: str, layers: int, by: int, ends: int = 0) -> int:
  """`layers` without `ends` divided by `by`, which must come out even."""
  inside = layers - ends
  need(by > 0, f'{name} takes integers of at least 1')
  need(
    inside > 0 and inside % by == 0,
    f'{name} needs num_layers{f" - {ends}" if ends else ""} divisible by {by},'
    f' got num_layers {layers}',
  )
  return inside // by


def literal(owners: list[int]) -> str:
  """A table as a spec, its rows numbered as they first appear."""
  rows = list(dict.fromkeys(owners))
  return ','.join(str(rows.index(row)) for row in owners)
