"""How the parts of a model fit together: sides, widths, specs, positions.

Every function raises BadInput with the rule that is broken and what was given.
"""

from shared_tfm.config import loops, shapes, sides
from shared_tfm.config.fields import SHARING_FIELDS, Model
from shared_tfm.errors import BadInput, need, unknown
from shared_tfm.sharing import checks, table


def check_sides(model: Model) -> None:
  """What only an encoder-decoder has, and how its sides fit together."""
  sharing, other = model.sharing, model.sharing_decoder
  if model.family != 'encoder_decoder':
    given = {
      'num_decoder_layers': model.num_decoder_layers,
      'd_ff_encoder': model.d_ff_encoder,
      'd_ff_decoder': model.d_ff_decoder,
      'sharing.across': sharing.across,
      'sharing_decoder': other.specs(),
    }
    for name, value in given.items():
      need(
        not value,
        f"model.{name} is for family 'encoder_decoder', got {value!r} and"
        f' family {model.family!r}',
      )
    return
  need(
    not model.type_vocab_size,
    'an encoder_decoder has no segment types, got model.type_vocab_size'
    f' {model.type_vocab_size}',
  )
  need(
    model.depth.rule in ('fixed', 'act', 'stick_breaking'),
    "an encoder_decoder needs model.depth.rule 'fixed', 'act' or"
    f" 'stick_breaking', got {model.depth.rule!r}",
  )
  names = sides.across(model)
  need(
    not other.across,
    'model.sharing.across is for both sides; model.sharing_decoder has none,'
    f' got {other.across!r}',
  )
  for name in names:
    _check_across(model, name)
  specs = sharing.specs()
  checks.check(
    {name: specs[table.resolve(specs, name)] for name in names},
    model.num_layers + model.num_decoder_layers,
    shapes.matrices(model),
    shapes.units(model),
  )


def _check_across(model: Model, name: str) -> None:
  where = 'model.sharing.across'
  allowed = [
    path
    for path in SHARING_FIELDS
    if not path.startswith((*sides.ONLY_DECODER, 'across'))
    and not path.endswith('_source')
  ]
  if name not in allowed:
    raise unknown(where, name, allowed)
  for path in model.sharing_decoder.specs():
    need(
      table.resolve({name: 0}, path) != name
      or path.startswith(sides.ONLY_DECODER),
      f'{where} names {name}, whose one table is in model.sharing; got'
      f' model.sharing_decoder.{SHARING_FIELDS[path]} too',
    )
  need(
    model.d_ff_encoder == model.d_ff_decoder
    or (
      name not in ('layer', 'feed_forward')
      and not name.startswith('feed_forward.')
    ),
    f'{where} {name} needs feed-forward networks of one width, got'
    f' d_ff_encoder {model.d_ff_encoder}, d_ff_decoder {model.d_ff_decoder}',
  )


def check_core(model: Model) -> None:
  """Layers of another width between the first and the last."""
  core = f'model.core_width {model.core_width}'
  for name, value, plain in (
    ('sharing.across', model.sharing.across, ''),
    ('tables', model.tables, 'fixed'),
    ('experts.num_ff', model.experts.num_ff, 0),
    ('experts.num_attention', model.experts.num_attention, 0),
  ):
    need(value == plain, f'{core} cannot go with model.{name} {value!r}')
  need(
    loops.is_plain(model),
    f'{core} needs a fixed depth, got model.depth.rule {model.depth.rule!r}',
  )
  need(
    model.d_ff > 0 and min(model.d_ff_encoder, model.d_ff_decoder) >= 0,
    f'{core} needs layers with a feed-forward network, got d_ff -1',
  )
  need(
    model.core_width % model.num_heads == 0
    or model.num_heads * model.head_dim != model.d_model,
    f'{core} must be divisible by num_heads {model.num_heads}',
  )
  for side in sides.sides(model).values():
    need(
      side.num_layers >= 3,
      f'{core} needs num_layers of at least 3, got {side.num_layers}',
    )
    for name in ('kv_source', 'map_source'):
      given = getattr(side.sharing, name)
      need(not given, f'{core} cannot go with model.sharing.{name} {given!r}')
    check_sharing(side)
    for name, component in shapes.components(side).items():
      for owners in component.owners:
        first, *middle, last = owners
        need(
          first != last
          and not {first, last} & {*middle}
          and not component.templates,
          f'{core} needs a first and a last layer with rows of their own, as'
          f' sandwich has; {name} has {component.spec}',
        )


def check_sharing(model: Model) -> None:
  """The specs of one stack."""
  sharing = model.sharing
  joint = dict(model.joint) if isinstance(model, sides.Side) else {}
  specs = {n: s for n, s in sharing.specs().items() if n not in joint}
  need(
    not (sharing.kv_source and sharing.map_source),
    'kv_source and map_source cannot both be given: a layer that reuses an'
    ' attention map has no keys',
  )
  for name in ('kv_source', 'map_source'):
    spec = getattr(sharing, name)
    if spec:
      try:
        table.owners(spec, model.num_layers)
      except BadInput as error:
        raise BadInput(f'model.sharing.{name}: {error}') from None
  checks.check(
    specs,
    model.num_layers,
    shapes.matrices(model),
    shapes.units(model),
    sides.readers(model),
    model.sharing_decoder.specs() if model.causal else (),
  )


def check_bits(model: Model) -> None:
  """What `model.quantise` says, by itself and beside the dtype."""
  q = model.quantise
  need(
    q.rounding is not None or not q.integers,
    'model.quantise.store integers needs model.quantise.weights, got none',
  )
  need(
    0 < q.percentile <= 100,
    'model.quantise.percentile must be above 0 and at most 100, got'
    f' {q.percentile}',
  )
  need(
    q.activations == 'none' or model.dtype != 'float8',
    f'model.quantise.activations {q.activations} needs a model.dtype that is'
    ' not float8, which rounds them, too',
  )


def check_parts(model: Model) -> None:
  """Specs are for parts that some stack of the model has."""
  held = {
    path
    for stack in sides.stacks(model).values()
    for path in shapes.layer(stack)
  }
  for group in ('sharing', 'sharing_decoder'):
    for name in getattr(model, group).specs():
      need(
        name == table.ROOT
        or any(f'{at}.'.startswith(f'{name}.') for at in held),
        f'model.{group} has a spec for {name}, which no layer of this model'
        ' has',
      )


def check_signals(model: Model) -> None:
  """What goes into the layers: embeddings and positions."""
  need(
    model.positions_at == 'input'
    or model.position in ('learned', 'sinusoidal'),
    "model.positions_at 'every_layer' is for learned and sinusoidal positions,"
    f' got {model.position!r}',
  )
  _check_relative(model)
  if model.embed_project == 'linear':
    return
  safe, e = "model.embed_project 'safe'", model.embed_dim
  need(
    e != model.d_model,
    f'{safe} needs an embed_dim other than d_model, got {e}',
  )
  even = 2 if model.position == 'rotary' else 1
  need(
    e % (even * model.num_heads) == 0,
    f'{safe} needs embed_dim divisible by {even * model.num_heads}, so that'
    f' {model.num_heads} heads share it, got {e}',
  )


def _check_relative(model: Model) -> None:
  """Distances that each have a bucket, and those that share one."""
  if model.position != 'relative':
    return
  buckets, farthest = model.relative_buckets, model.relative_distance
  need(
    buckets >= 4,
    'relative positions need model.relative_buckets of at least 4, so that each'
    f' direction has two, got {buckets}',
  )
  need(
    farthest > buckets // 2,
    'relative positions need model.relative_distance above relative_buckets / 2'
    f' = {buckets // 2}, as far as each distance has its own, got {farthest}',
  )
