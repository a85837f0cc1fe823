"""How many parameters a network has, and what they are for."""

import math

from shared_tfm.config import GATED, Model, loops, shapes, sides


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


def _linear(model: Model, inputs: int, outputs: int) -> int:
  return inputs * outputs + outputs * model.use_bias


def _norm(model: Model, width: int) -> int:
  scale_and_bias = model.norm != 'rmsnorm' and model.use_bias
  return width * (2 if scale_and_bias else 1)
