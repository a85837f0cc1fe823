"""What a network computes for one token."""

from shared_tfm.accounting.parameters import outer_parameters
from shared_tfm.config import GATED, Model, loops, shapes, sides
from shared_tfm.sharing import table


def flops_per_token(model: Model, length: int | None = None) -> dict[str, int]:
  """Floating-point operations for one token, two for each multiply-add.

  Matrix products alone are counted: per visit those with every matrix of the
  layer, the scores and the mixing of values 2LHK each (every query meets every
  key, as a dense product computes for a causal mask too, though not every
  kernel); and once the projections between E and D, 2DE each, and the logits. A
  layer that reuses keys and values, or an attention map, does not make them. Of
  experts, those that a token uses are counted, and their router. Sharing of
  weights changes nothing; what levels and templates cost is not counted, since
  it does not grow with the tokens. Depth that adapts is counted as if every
  token ran all loops, but for expert_choice, whose loops gather what they
  select; the head is counted once. An encoder-decoder reads one token of a
  source and one of a target, both texts being L long.

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
  products: float = n + makers(stack, stack.sharing.map_source)
  products += 2 * n * ('cross_attention' in stack.sublayers)
  shares = loops.shares(stack)
  total = round(total * sum(shares) / n) * loops.segments(stack)
  total += loops.control_flops(stack)
  products *= sum(share**2 for share in shares) / n
  products += 2 * (sum(loops.attended_loops(stack)) - n)
  products *= loops.segments(stack)
  return total + round(2 * length * stack.num_heads * stack.head_dim * products)


def _widening_flops(model: Model, length: int) -> int:
  """Of what leads from E features to D, forward, for one token."""
  d, e = model.d_model, model.embed_dim
  if model.embed_project == 'linear':
    return 2 * d * e
  gates = model.activation in GATED
  return 2 * ((5 + gates) * e * e + e * d) + 4 * length * e


def makers(model: Model, source: str) -> int:
  """How many layers make an activation that others may reuse."""
  return len(set(table.owners(source or 'none', model.num_layers)))
