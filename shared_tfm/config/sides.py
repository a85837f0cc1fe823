"""The stacks of a model, each as a model of its own.

Most models have one stack. An encoder-decoder has two sides, each with its own
depth, feed-forward width and specs. A side whose first and last layers are of
another width than the layers between them is three stacks. Here they are told
apart once, so that whoever builds or counts a stack need not know which it is.
"""

import dataclasses
import functools
from typing import Any

from shared_tfm.config.fields import SHARING_FIELDS, Model, Sharing
from shared_tfm.sharing import levels, reuse, table
from shared_tfm.sharing.component import Component, components

ONLY_DECODER = (
  'cross_attention',
  'norm.cross_attention',
  'norm.cross_attention_out',
)
BANKS = (  # every name a stack can have
  'stack',
  'encoder',
  'prelude',
  'coda',
  'encoder_prelude',
  'encoder_coda',
)
_Joint = tuple[tuple[str, Component], ...]


@dataclasses.dataclass(frozen=True)
class Side(Model):
  """One stack of a model that has several.

  Its family is 'encoder', or 'encoder_decoder' for the decoder: to a layer that
  means causal attention, and cross-attention beside it.

  Attributes:
    joint: components whose table runs on in the other stack, by name.
    depth_applied: visits of the whole side.
    first_visit: the number of this stack's first visit in its side.
    memory_width: D of what cross-attention reads.
  """

  joint: _Joint = ()
  depth_applied: int = 0
  first_visit: int = 0
  memory_width: int = 0


@functools.lru_cache
def stacks(model: Model) -> dict[str, Model]:
  """Every stack, by its name in the parameter tree, in the order of visits.

  Args:
    model: with its derived sizes.
  """
  found: dict[str, Model] = {}
  for name, side in sides(model).items():
    if model.core_width and not isinstance(model, Side):
      found.update(_cut(side, '' if name == 'stack' else f'{name}_', name))
    else:
      found[name] = side
  return found


@functools.lru_cache
def sides(model: Model) -> dict[str, Model]:
  """The encoder and the decoder ('stack'), or the one stack there is."""
  if model.family != 'encoder_decoder' or isinstance(model, Side):
    return {'stack': model}
  ours, theirs = _specs(model)
  joint = _joint(model, ours, theirs)
  last = model.num_layers + model.num_decoder_layers
  return {
    'encoder': _side(
      model,
      family='encoder',
      d_ff=model.d_ff_encoder,
      sharing=ours,
      joint=tuple(
        (
          name,
          dataclasses.replace(component, layers=(0, model.num_layers)),
        )
        for name, component in joint.items()
        if name not in ONLY_DECODER
      ),
    ),
    'stack': _side(
      model,
      num_layers=model.num_decoder_layers,
      d_ff=model.d_ff_decoder,
      sharing=theirs,
      joint=tuple(
        (
          name,
          dataclasses.replace(
            component,
            layers=(model.num_layers, last),
            borrowed=name not in ONLY_DECODER,
          ),
        )
        for name, component in joint.items()
      ),
    ),
  }


def resizes(model: Model) -> dict[str, int]:
  """What leads into the layers of another width and back: name to width."""
  if not model.core_width:
    return {}
  found: dict[str, int] = {}
  for name in sides(model):
    at = '' if name == 'stack' else f'{name}_'
    found |= {
      f'{at}core_in': model.core_width,
      f'{at}core_out': model.d_model,
    }
  return found


def across(model: Model) -> tuple[str, ...]:
  """The components whose table runs over both stacks."""
  return tuple(
    name.strip() for name in model.sharing.across.split(',') if name.strip()
  )


def readers(model: Model) -> dict[str, tuple[bool, ...]]:
  """For parts that not every layer has, which layers of a stack do.

  A layer that reuses keys and values has no such projections, one that reuses
  an attention map no queries and keys.
  """
  sharing, found = model.sharing, {}
  for spec, parts in (
    (sharing.kv_source, ('attention.key', 'attention.value')),
    (sharing.map_source, ('attention.query', 'attention.key')),
  ):
    if spec:
      own = reuse.plan(table.owners(spec, model.num_layers)).own
      found.update({part: own for part in parts})
  return found


def _specs(model: Model) -> tuple[Sharing, Sharing]:
  """The encoder's specs and the decoder's."""
  base, other = model.sharing, model.sharing_decoder
  fields = SHARING_FIELDS.items()
  mine = {f: '' for path, f in fields if path.startswith(ONLY_DECODER)}
  theirs = {f: getattr(other, f) or getattr(base, f) for _, f in fields}
  return dataclasses.replace(base, **mine), Sharing(**theirs)


def _joint(
  model: Model, ours: Sharing, theirs: Sharing
) -> dict[str, Component]:
  """Components of one list of visits: the encoder's, then the decoder's."""
  names = across(model)
  if not names:
    return {}
  first, second = model.num_layers, model.num_decoder_layers
  given = model.sharing.specs()
  specs = {name: given[table.resolve(given, name)] for name in names}
  near = {**given, **specs}
  reads = {name: (False,) * first for name in ONLY_DECODER}
  reads = {name: no + (True,) * second for name, no in reads.items()}
  mine = readers(dataclasses.replace(model, sharing=ours))
  other = readers(dataclasses.replace(model, num_layers=second, sharing=theirs))
  for part in mine:
    reads[part] = mine[part] + other[part]
  return components(
    specs,
    first + second,
    {
      part: flags
      for part, flags in reads.items()
      if table.resolve(near, part) in names
    },
  )


def _side(model: Model, **changed: Any) -> Side:
  fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(Model)}
  fields |= {'memory_width': model.d_model, **changed}
  return Side(**{'depth_applied': fields['num_layers'], **fields})


def _cut(side: Model, prefix: str, name: str) -> dict[str, Model]:
  """The stacks of a side with layers of another width in the middle.

  Every spec becomes the literal tables of a part. Where heads share D among
  them they share the other width too; else they are as wide as elsewhere.
  """
  n, width = side.num_layers, side.core_width
  wide = side.num_heads * side.head_dim == side.d_model

  def part(start: int, end: int, **changed: Any) -> Side:
    specs = {
      SHARING_FIELDS[path]: _literal(spec, n, slice(start, end))
      for path, spec in side.sharing.specs().items()
    }
    return _side(
      side,
      num_layers=end - start,
      depth_applied=n,
      first_visit=start,
      memory_width=side.d_model,
      sharing=Sharing(**specs),
      **changed,
    )

  return {
    f'{prefix}prelude': part(0, 1, remat_group=1),
    name: part(
      1,
      n - 1,
      d_model=width,
      d_ff=side.core_ff,
      head_dim=width // side.num_heads if wide else side.head_dim,
    ),
    f'{prefix}coda': part(n - 1, n, remat_group=1),
  }


def _literal(spec: str, num_layers: int, part: slice) -> str:
  """A spec whose tables are those of some of the layers, rows from 0."""
  parsed = levels.parse(spec)
  changed = []
  for level in parsed.levels:
    rows = level.table.owners(num_layers)[part]
    dense = tuple(sorted(set(rows)).index(row) for row in rows)
    literal = table.Spec('literal', dense)
    changed.append(dataclasses.replace(level, table=literal))
  return str(dataclasses.replace(parsed, levels=tuple(changed)))
