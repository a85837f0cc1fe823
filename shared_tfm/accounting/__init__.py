"""Parameters, FLOPs and bytes, counted from the config alone.

Letters: N layers (visits), D model width, H query heads, G key/value heads, K
head width, F feed-forward width, V vocabulary, E embedding width, L length.
"""

from typing import Any

from shared_tfm.accounting.flops import flops_per_token
from shared_tfm.accounting.parameters import outer_parameters, parameters
from shared_tfm.accounting.sizes import kv_bytes_per_token, weight_bytes
from shared_tfm.config import Config, Model, pruning, shapes, sides
from shared_tfm.sharing import levels, table

__all__ = [
  'describe',
  'flops_per_token',
  'kv_bytes_per_token',
  'outer_parameters',
  'parameters',
  'specs',
  'weight_bytes',
]

SOURCES = ('kv_source', 'map_source')


def describe(config: Config) -> dict[str, Any]:
  """All of it as one object that JSON can hold.

  Returns:
    'owners' of every component, and of each part that has a spec of its own: a
    sum's first level, None where a layer reads no row of its own or mixes
    templates; 'params', 'sharing_ratio' (applied /
    stored, layers only), 'flops_per_token' (of the longest text that the data
    has), 'kv_bytes_per_token',
    'weight_bytes' (stored parameters, in float32 where they are no integers).
    Of a config that prunes, 'params' has 'non_zero', too: what is stored and
    not masked in the end.
  """
  model = config.model
  counts = parameters(model)
  ratio = counts.pop('layers_applied') / counts.pop('layers_stored')
  if zeros := pruning.removed(config):
    counts['non_zero'] = counts['stored'] - zeros
  owners: dict[str, Any] = {}
  for side, stack in sides.sides(model).items():
    at = '' if side == 'stack' else f'{side}.'
    for name in specs(stack):
      owners[at + name] = _owners(stack, name)
    for name in SOURCES:
      if spec := getattr(stack.sharing, name):
        owners[at + name] = list(table.owners(spec, stack.num_layers))
  return {
    'owners': owners,
    'params': counts,
    'sharing_ratio': ratio,
    'flops_per_token': flops_per_token(model, config.data.lengths[-1]),
    'kv_bytes_per_token': kv_bytes_per_token(model),
    'weight_bytes': weight_bytes(model),
  }


def specs(stack: Model) -> dict[str, str]:
  """The spec of each component, and of each part that has its own."""
  given = stack.sharing.specs()
  joint = dict(stack.joint) if isinstance(stack, sides.Side) else {}
  given |= {name: str(component.spec) for name, component in joint.items()}
  held = shapes.layer(stack)
  parts = dict.fromkeys(path.partition('.')[0] for path in held)
  names = dict.fromkeys((*parts, *given))
  found = {}
  for name in names:
    if name.partition('.')[0] in parts:
      spec = levels.parse(given[table.resolve(given, name)])
      found[name] = str(spec.of(_axes(stack, name)))
  return found


def _owners(model: Model, name: str) -> list[int | None]:
  component, axes = shapes.component_of(model, name), _axes(model, name)
  if not component.owners or (component.templates and axes > 1):
    return [None] * model.num_layers
  rows = component.owners[component.spec.terms(axes)[0]][component.here]
  return [None if row < 0 else row for row in rows]


def _axes(model: Model, name: str) -> int:
  """2 where a component or part has a matrix, 1 where it is all vectors."""
  parts = shapes.matrices(model)
  return 1 + any(f'{part}.'.startswith(f'{name}.') for part in parts)
