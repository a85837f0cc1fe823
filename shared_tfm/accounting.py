"""Parameters, FLOPs and bytes, counted from the config alone.

Letters: N layers (visits), D model width, H query heads, G key/value heads, K
head width, F feed-forward width, V vocabulary, E embedding width, L length.
"""

from typing import Any

from shared_tfm.config import Config, Model, shapes
from shared_tfm.sharing import table

COMPONENTS = ('attention', 'feed_forward', 'norm')
SOURCES = ('kv_source', 'map_source')
BYTES = {'float32': 4, 'bfloat16': 2}


def outer_parameters(model: Model) -> dict[str, int]:
  """How many parameters stand outside the layers, by dotted part."""
  d, e, v = model.d_model, model.embed_dim, model.vocab_size
  encoder = model.family == 'encoder'
  scored = e if encoder or model.tie_embeddings else d
  sizes = {
    'embedding.token': v * e,
    'embedding.position': model.max_len * e * (model.position == 'learned'),
    'embedding.type': model.type_vocab_size * e,
    'embedding.norm': _norm(model, e) * model.embed_norm,
    'embedding.project': _linear(model, e, d) * (e != d),
    'norm': _norm(model, d) * (model.norm_position != 'post'),
    'head.project': _linear(model, d, e) * (encoder or scored != d),
    'head.norm': _norm(model, e) * encoder,
    'head.bias': v * encoder,
    'head.table': scored * v * (not model.tie_embeddings),
  }
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
  for path, tensor in shapes.layer(model).items():
    component = shapes.component_of(model, path)
    stored += component.stored(*tensor)
    applied += tensor.size * component.readers(model.num_layers)
  stored += sum(
    component.templates * model.num_layers
    for component in shapes.components(model).values()
  )
  outer = outer_parameters(model)
  outside = sum(outer.values())
  embedding = sum(
    size
    for name, size in outer.items()
    if name.startswith('embedding.')
    or name == 'head.table'
    or (name == 'head.project' and model.family == 'decoder')
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
  keys and values, or an attention map, does not make them. Sharing of weights
  changes nothing; what levels and templates cost is not counted, since it does
  not grow with the tokens.

  Args:
    model: the network.
    length: L, the tokens a token attends to; `max_len` unless given.

  Returns:
    'forward', and 'train': three times as much, since the backward pass has two
    products for each one (Kaplan et al., 2001.08361, section 2.1).
    Recomputation is not counted.
  """
  d, e, v = model.d_model, model.embed_dim, model.vocab_size
  heads = model.num_heads * model.head_dim
  n, length = model.num_layers, length or model.max_len
  layers = sum(
    2 * tensor.size * shapes.component_of(model, path).readers(n)
    for path, tensor in shapes.layer(model).items()
    if len(tensor.shape) > 1
  )
  layers += 2 * length * heads * (n + _makers(model, model.sharing.map_source))
  outer = outer_parameters(model)
  scored = e if model.family == 'encoder' or model.tie_embeddings else d
  projections = ('embedding.project' in outer) + ('head.project' in outer)
  forward = layers + 2 * d * e * projections + 2 * scored * v
  return {'forward': forward, 'train': 3 * forward}


def kv_bytes_per_token(model: Model) -> int:
  """Bytes of keys and values a decoder keeps for each token, one set a visit.

  2 G K entries in the computation's dtype for every layer that makes its own.
  An encoder keeps none.
  """
  if model.family == 'encoder':
    return 0
  layers = _makers(model, model.sharing.kv_source)
  entries = 2 * layers * model.num_kv_heads * model.head_dim
  return entries * BYTES[model.dtype]


def describe(config: Config) -> dict[str, Any]:
  """All of it as one object that JSON can hold.

    Returns:
  XX the three components and for
      each part that has a spec of its own; 'params', 'sharing_ratio' (applied /
      stored, layers only), 'flops_per_token', 'kv_bytes_per_token',
      'weight_bytes' (stored parameters in float32).
  """
  model = config.model
  counts = parameters(model)
  ratio = counts.pop('layers_applied') / counts.pop('layers_stored')
  sources = {
    name: list(table.owners(spec, model.num_layers))
    for name in SOURCES
    if (spec := getattr(model.sharing, name))
  }
  return {
    'owners': {
      **{name: _owners(model, name) for name in specs(model)},
      **sources,
    },
    'specs': specs(model),
    'params': counts,
    'sharing_ratio': ratio,
    'flops_per_token': flops_per_token(model),
    'kv_bytes_per_token': kv_bytes_per_token(model),
    'weight_bytes': BYTES['float32'] * counts['stored'],
  }


def specs(model: Model) -> dict[str, str]:
  """The spec of each component, and of each part that has its own."""
  given = model.sharing.specs()
  names = dict.fromkeys((*COMPONENTS, *given))
  names.pop(table.ROOT)
  return {name: given[table.resolve(given, name)] for name in names}


def _owners(model: Model, name: str) -> list[int | None]:
  component = shapes.component_of(model, name)
  if not component.owners or component.templates:
    return [None] * model.num_layers
  return [None if row < 0 else row for row in component.owners[0]]


def _makers(model: Model, source: str) -> int:
  """How many layers make an activation that others may reuse."""
  return len(set(table.owners(source or 'none', model.num_layers)))


def _linear(model: Model, inputs: int, outputs: int) -> int:
  return inputs * outputs + outputs * model.use_bias


def _norm(model: Model, width: int) -> int:
  scale_and_bias = model.norm != 'rmsnorm' and model.use_bias
  return width * (2 if scale_and_bias else 1)
