"""Whether the specs of a model fit its layers."""

from collections.abc import Collection, Mapping

from shared_tfm.errors import BadInput, need, unknown
from shared_tfm.sharing import table
from shared_tfm.sharing.levels import Shape, parse
from shared_tfm.sharing.table import ROOT


def check(
  specs: Mapping[str, str],
  num_layers: int,
  parts: Mapping[str, Shape],
  units: Mapping[str, int],
  readers: Mapping[str, tuple[bool, ...]] | None = None,
  elsewhere: Collection[str] = (),
) -> None:
  """Checks that specs fit a model.

  Args:
    specs: by name.
    num_layers: the number of visits.
    parts: the shape of every matrix of a layer, by dotted part.
    units: how many heads or neurons it has, by dotted part; 0: none.
    readers: see `component.components`.
    elsewhere: names whose spec was given in `sharing_decoder`.

  Raises:
    BadInput: the name, the rule and what was given.
  """
  for name, text in specs.items():
    try:
      spec = parse(text)
      spec.owners(num_layers)
      if spec.same_as:
        _check_same(name, spec.same_as, specs, parts, readers or {})
      if spec.within:
        _check_within(name, spec.within, specs, units)
    except BadInput as error:
      group = 'sharing_decoder' if name in elsewhere else 'sharing'
      field = name.replace('.', '_')
      raise BadInput(f'model.{group}.{field}: {error}') from None


def _check_within(
  name: str,
  within: table.Spec,
  specs: Mapping[str, str],
  units: Mapping[str, int],
) -> None:
  inside = [
    part for part in units if name == ROOT or f'{part}.'.startswith(f'{name}.')
  ]
  need(
    any(units[part] for part in inside),
    f'a table after | is for parts with heads or neurons, got |{within}',
  )
  for part in inside:
    if table.resolve(specs, part) == name and (count := units[part]):
      try:
        within.owners(count)
      except BadInput as error:
        raise BadInput(
          f'|{within} over the {count} heads or neurons of {part}: {error}'
        ) from None


def _check_same(
  name: str,
  other: str,
  specs: Mapping[str, str],
  parts: Mapping[str, Shape],
  readers: Mapping[str, tuple[bool, ...]],
) -> None:
  need(name in parts, f'={other} is for a part such as attention.key')
  if other not in parts:
    raise unknown('part', other, parts)
  need(
    not parse(specs.get(other, 'none')).same_as,
    f'{other} has no weights of its own either',
  )
  need(
    parts[name] == parts[other],
    f'={other} needs {name} {parts[name]} to have the shape of {other}'
    f' {parts[other]}',
  )
  need(
    other not in readers or readers.get(name) == readers[other],
    f'={other} needs {other} in every layer that has {name}; those that reuse'
    ' activations have none',
  )
