"""Parameters, FLOPs and bytes, counted from the config alone.

Letters: N layers (visits), D model width, H query heads, G key/value heads, K
head width, F feed-forward width, V vocabulary, E embedding width, L length.
"""

import math
from typing import Any

from shared_tfm.config import (
  GATED,
  Config,
  Model,
  loops,
  pruning,
  shapes,
  sides,
)
from shared_tfm.config.precision import BYTES
from shared_tfm.sharing import levels, table
from shared_tfm.sharing.rounding import SCALE_BYTES

SOURCES = ('kv_source', 'map_source')


def outer_parameters(model: Model) -> dict[str, int]:
  """How many parameters stand outside the layers, by dotted part."""
  d, e, v = model.d_model, model.embed_dim, model.vocab_size
  vision, tokens = model.family == 'vision', 'tokens' in model.head
  encoder = model.family == 'encoder' and tokens
  told = 'classes' in model.head
  scored = e if encoder or model.tie_embeddings else d
  sizes = {
    'embedding.patch': _linear(model, model.patch_values, d) * vision,
    'embedding.class': d * (vision and model.pool == 'first'),
    'embedding.token': v * e,
    'embedding.position': model.max_len
    * e
    * ((model.position, model.positions_at) == ('learned', 'input')),
    'relative': model.relative_buckets
    * model.num_heads
    * (model.position == 'relative'),
    'embedding.type': model.type_vocab_size * e,
    'embedding.norm': _norm(model, e) * model.embed_norm,
    'embedding.project': _widening(model) * (not vision),
    'norm': _norm(model, d) * (model.norm_position != 'post'),
    'head.project': _linear(model, d, e) * tokens * (encoder or scored != d),
    'head.norm': _norm(model, e) * encoder,
    'head.bias': v * tokens * (encoder or model.head_bias),
    'head.table': scored * v * tokens * (not model.tie_embeddings),
    'classes.pool': _linear(model, d, d) * told * model.pooler,
    'classes.score': _linear(model, d, model.num_classes) * told,
    'spans.score': _linear(model, d, 2) * (model.head == 'spans'),
  }
  if model.family == 'encoder_decoder':
    inputs = ('embedding.position', 'embedding.norm', 'embedding.project')
    sizes |= {n.replace('embedding', 'source'): sizes[n] for n in inputs}
    sizes['source.token'] = sizes['embedding.token'] * (not model.tie_source)
    sizes['encoder_norm'] = sizes['norm']
    sizes['encoder_relative'] = sizes['relative']
  for name, width in sides.resizes(model).items():
    other = d + model.core_width - width
    sizes[name] = _linear(model, other, width) + _norm(model, width)
  prefixes = {'stack': 'controls', 'encoder': 'encoder_controls'}
  for name, stack in sides.stacks(model).items():
    for part, size in loops.control_parameters(stack).items():
      sizes[f'{prefixes[name]}.{part}'] = size
  return {name: size for name, size in sizes.items() if size}


def parameters(model: Model) -> dict[str, int]:
  """Counts parameters.

  Returns:
    'stored': what the parameter tree holds. 'applied': the same with every
    layer weight counted once per visit. 'embedding': token, position and type
    tables, their norm and projections, and an untied output table.
    'non_embedding': stored minus embedding. 'layers_stored' and
    'layers_applied': the part of stored and applied inside the layers.
  """
  stored = applied = 0
  for stack in sides.stacks(model).values():
    for path, tensor in shapes.layer(stack).items():
      component = shapes.component_of(stack, path)
      stored += component.stored(tensor.shape, tensor.units, tensor.axis)
      applied += tensor.size * component.readers(stack.num_layers)
    stored += sum(math.prod(mix) for mix in shapes.mixes(stack).values())
  outer = outer_parameters(model)
  outside = sum(outer.values())
  embedding = sum(
    size
    for name, size in outer.items()
    if name.startswith(('embedding.', 'source.'))
    or name in ('head.table', 'relative', 'encoder_relative')
    or (name == 'head.project' and model.family != 'encoder')
  )
  return {
    'stored': stored + outside,
    'applied': applied + outside,
    'embedding': embedding,
    'non_embedding': stored + outside - embedding,
    'layers_stored': stored,
    'layers_applied': applied,
  }


def flops_per_token(model: Model, length: int | None = None) -> dict[str, int]:
  """Floating-point operations for one token, two for each multiply-add.

  Matrix products alone are counted: per visit those with every matrix of the
  layer, the scores and the mixing of values 2LHK each (every query meets every
  key, which is what a dense product computes for a causal mask too); and once
  the projections between E and D, 2DE each, and the logits. A layer that reuses
  keys and values, or an attention map, does not make them. Of experts, those
  that a token uses are counted, and their router. Sharing of weights
  changes nothing; what levels and templates cost is not counted, since it does
  not grow with the tokens. Depth that adapts is counted as if every token ran
  all loops, but for expert_choice, whose loops gather what they select; the
  head is counted once. An encoder-decoder reads one token of a source and
  one of a target, both texts being L long.

  Args:
    model: the network.
    length: L, the tokens a token attends to; `max_len` unless given.

  Returns:
    'forward', and 'train': three times as much, since the backward pass has two
    products for each one (Kaplan et al., 2001.08361, section 2.1).
    Recomputation is not counted.
  """
  d, e, v = model.d_model, model.embed_dim, model.vocab_size
  length = length or model.max_len
  layers = sum(
    _layer_flops(stack, length) for stack in sides.stacks(model).values()
  )
  outer = outer_parameters(model)
  scored = e if model.family == 'encoder' or model.tie_embeddings else d
  widened = sum(f'{name}.project' in outer for name in ('embedding', 'source'))
  forward = layers + widened * _widening_flops(model, length)
  forward += 2 * scored * v * ('tokens' in model.head)
  forward += 2 * model.patch_values * d * (model.family == 'vision')
  forward += 4 * d * (model.head == 'spans')
  if 'classes' in model.head:  # once for all L tokens
    pooled = d * model.pooler + model.num_classes
    forward += round(2 * d * pooled / length)
  forward += 2 * d * e * ('head.project' in outer)
  forward += 2 * d * model.core_width * len(sides.resizes(model))
  return {'forward': forward, 'train': 3 * forward}


def _layer_flops(stack: Model, length: int) -> int:
  """Of all layers of one stack, forward, for one token."""
  n = stack.num_layers
  total = sum(
    round(2 * tensor.size * tensor.used)
    * shapes.component_of(stack, path).readers(n)
    for path, tensor in shapes.layer(stack).items()
    if len(tensor.shape) > 1
  )
  products: float = n + _makers(stack, stack.sharing.map_source)
  products += 2 * n * ('cross_attention' in stack.sublayers)
  shares = loops.shares(stack)
  total = round(total * sum(shares) / n) * loops.segments(stack)
  total += loops.control_flops(stack)
  products *= sum(share**2 for share in shares) / n
  products += 2 * (sum(loops.attended_loops(stack)) - n)
  products *= loops.segments(stack)
  return total + round(2 * length * stack.num_heads * stack.head_dim * products)


def kv_bytes_per_token(model: Model) -> int:
  """Bytes of keys and values a decoder keeps for each token, one set a visit.

  G K keys and as many values, in the compute dtype, for every layer that
  makes its own; one that reuses an attention map needs no keys. In eight bits
  a key, and a value, has a scale besides. An encoder
  keeps none; what a decoder keeps of a source is not counted.
  """
  if not model.causal:
    return 0
  entries = 0.0
  for name, stack in sides.stacks(model).items():
    if name.startswith('encoder'):
      continue
    sharing = stack.sharing
    kept: float = _makers(stack, sharing.kv_source)
    kept += _makers(stack, sharing.kv_source or sharing.map_source)
    kept *= sum(loops.shares(stack)) / stack.num_layers
    entries += kept * stack.num_kv_heads * stack.head_dim
  if model.quantise.cache == 'none':
    return round(entries * BYTES[model.precision.compute])
  scales = entries / model.head_dim  # one for each token and head
  return round(entries + SCALE_BYTES * scales)


def weight_bytes(model: Model) -> int:
  """Bytes of what the parameter tree holds, scales of whole numbers with it."""
  each, rounding = BYTES[model.precision.param], model.quantise.rounding
  total = each * parameters(model)['stored']
  if rounding is None or not model.quantise.integers:
    return total
  for stack in sides.stacks(model).values():
    for path, tensor in shapes.layer(stack).items():
      if not shapes.is_multiplied(path.split('.')):
        continue
      stored = shapes.component_of(stack, path).tensors(
        tensor.shape, tensor.units, tensor.axis
      )
      for suffix, shape in stored:
        if suffix != levels.DIAGONAL:
          total += rounding.bytes_of(shape) - each * math.prod(shape)
  return total


def describe(config: Config) -> dict[str, Any]:
  """All of it as one object that JSON can hold.

  Returns:
    'owners' of every component, and of each part that has a spec of its own: a
    sum's first level, None where a layer reads no row of its own or mixes
    templates; 'params', 'sharing_ratio' (applied /
    stored, layers only), 'flops_per_token', 'kv_bytes_per_token',
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
    'flops_per_token': flops_per_token(model),
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


def _makers(model: Model, source: str) -> int:
  """How many layers make an activation that others may reuse."""
  return len(set(table.owners(source or 'none', model.num_layers)))


def _widening(model: Model) -> int:
  """What leads from E features to D."""
  d, e = model.d_model, model.embed_dim
  if model.embed_project == 'linear':
    return _linear(model, e, d) * (e != d)
  gates = model.activation in GATED
  return (
    (5 + gates) * _linear(model, e, e)
    + _linear(model, e, d)
    + _norm(model, e)
    + _norm(model, d)
  )


def _widening_flops(model: Model, length: int) -> int:
  """Of what leads from E features to D, forward, for one token."""
  d, e = model.d_model, model.embed_dim
  if model.embed_project == 'linear':
    return 2 * d * e
  gates = model.activation in GATED
  return 2 * ((5 + gates) * e * e + e * d) + 4 * length * e


def _linear(model: Model, inputs: int, outputs: int) -> int:
  return inputs * outputs + outputs * model.use_bias


def _norm(model: Model, width: int) -> int:
  scale_and_bias = model.norm != 'rmsnorm' and model.use_bias
  return width * (2 if scale_and_bias else 1)
