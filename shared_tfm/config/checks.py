"""What the values of a config must obey, and what is derived from them."""

import dataclasses

from shared_tfm.config import (
  fitting,
  loops,
  parallel,
  pruning,
  ranges,
  shapes,
  sides,
  tasks,
)
from shared_tfm.config.choices import CHOICES
from shared_tfm.config.fields import Model
from shared_tfm.config.training import Config
from shared_tfm.errors import need, unknown


def checked(config: Config) -> Config:
  """The config with its derived sizes, every value checked.

  Raises:
    BadInput: the field, the rule it breaks, and the value.
  """
  for name, value in ranges.leaves(dataclasses.asdict(config)):
    if name in CHOICES and value not in CHOICES[name]:
      raise unknown(name, value, CHOICES[name])
  config = tasks.with_head(config)
  config = dataclasses.replace(config, model=_derived(config.model))
  if config.adapt.method != 'none':
    model = dataclasses.replace(config.model, tables='state')
    config = dataclasses.replace(config, model=model)
  config = pruning.derived(config)
  length = config.data.seq_len or config.model.max_len
  data = dataclasses.replace(
    config.data, seq_len=length, source_len=config.data.source_len or length
  )
  config = dataclasses.replace(config, data=data)
  ranges.check(config)
  _check_model(config.model)
  _check_training(config)
  _check_adapting(config)
  pruning.check(config)
  parallel.check(config)
  return config


def _derived(model: Model) -> Model:
  """Fills in the sizes that were left at 0."""
  heads = model.num_heads
  need(heads > 0, f'model.num_heads must be at least 1, got {heads}')
  if not model.head_dim:
    need(
      model.d_model % heads == 0,
      'model.d_model must be divisible by num_heads unless head_dim is'
      f' given, got {model.d_model} and {heads}',
    )
  model = dataclasses.replace(
    model,
    num_kv_heads=model.num_kv_heads or heads,
    head_dim=model.head_dim or model.d_model // heads,
    d_ff=model.d_ff or 4 * model.d_model,
    embed_dim=model.embed_dim or model.d_model,
    core_ff=model.core_ff or 4 * model.core_width,
  )
  if model.family == 'vision':
    patches = (model.image_size // model.patch_size) ** 2
    length = patches + (model.pool == 'first')
    return dataclasses.replace(model, vocab_size=0, max_len=length)
  if model.family != 'encoder_decoder':
    return model
  return dataclasses.replace(
    model,
    num_decoder_layers=model.num_decoder_layers or model.num_layers,
    d_ff_encoder=model.d_ff_encoder or model.d_ff,
    d_ff_decoder=model.d_ff_decoder or model.d_ff,
  )


def _check_model(model: Model) -> None:
  need(
    model.num_heads % model.num_kv_heads == 0,
    'model.num_heads must be divisible by num_kv_heads, got'
    f' {model.num_heads} and {model.num_kv_heads}',
  )
  need(
    model.position != 'rotary'
    or model.head_dim % 2 == 0
    or model.rotary_fraction < 1,
    f'rotary positions need an even head_dim, got {model.head_dim}',
  )
  need(
    model.head_dim * model.rotary_fraction >= 2,
    'model.rotary_fraction needs to leave 2 features of head_dim'
    f' {model.head_dim} to be rotated, got {model.rotary_fraction}',
  )
  need(
    not model.residual_visits or model.residual_scale == 'depth',
    'model.residual_visits is of model.residual_scale depth, got'
    f' {model.residual_visits} and {model.residual_scale!r}',
  )
  tasks.check_head(model)
  fitting.check_bits(model)
  fitting.check_signals(model)
  _check_experts(model)
  fitting.check_sides(model)
  if model.core_width:
    fitting.check_core(model)
  for stack in sides.stacks(model).values():
    need(
      stack.num_layers % stack.remat_group == 0,
      f'model.remat_group must divide num_layers {stack.num_layers}, got'
      f' {stack.remat_group}',
    )
    fitting.check_sharing(stack)
    loops.check(stack)
  fitting.check_parts(model)


def _check_experts(model: Model) -> None:
  given, sharing = model.experts, model.sharing
  for experts, used in (
    ('num_ff', 'top_k'),
    ('num_attention', 'attention_top_k'),
  ):
    most, count = getattr(given, experts), getattr(given, used)
    need(
      not most or count <= most,
      f'model.experts.{used} must be at most {experts} {most}, got {count}',
    )
  need(
    model.norm_position != 'peri' or bool(given.num_ff),
    "model.norm_position 'peri' normalises what feeds a router, and needs"
    ' model.experts.num_ff, got 0',
  )
  need(
    not given.num_ff
    or -1 not in (model.d_ff, model.d_ff_encoder, model.d_ff_decoder),
    'model.experts.num_ff needs layers with a feed-forward network, got d_ff'
    ' -1',
  )
  need(
    not model.core_width or not (given.num_ff or given.num_attention),
    f'model.core_width {model.core_width} needs layers without experts, got'
    f' model.experts.num_ff {given.num_ff} and num_attention'
    f' {given.num_attention}',
  )
  if not given.num_attention:
    return
  for name in ('kv_source', 'map_source'):
    source = getattr(sharing, name) or getattr(model.sharing_decoder, name)
    need(
      not source,
      f'model.sharing.{name} needs dense attention, got {source!r} and'
      f' model.experts.num_attention {given.num_attention}',
    )
  heads = given.attention_top_k * model.num_kv_heads
  need(
    given.style != 'sut' or model.num_heads == heads,
    'model.experts.style sut needs num_heads = attention_top_k *'
    f' num_kv_heads = {heads}, got {model.num_heads}',
  )


def _check_training(config: Config) -> None:
  train, data = config.train, config.data
  need(
    train.batch_size % train.accumulate == 0,
    f'train.accumulate must divide batch_size {train.batch_size}, got'
    f' {train.accumulate}',
  )
  need(
    data.seq_len <= config.model.max_len,
    f'data.seq_len must be at most model.max_len {config.model.max_len},'
    f' got {data.seq_len}',
  )
  need(
    data.easiest <= data.difficulty,
    f'data.easiest must be at most data.difficulty {data.difficulty}, got'
    f' {data.easiest}',
  )
  need(
    config.optimizer.warmup_steps <= train.num_steps,
    f'optimizer.warmup_steps must be at most train.num_steps'
    f' {train.num_steps}, got {config.optimizer.warmup_steps}',
  )
  tasks.check_text(config)
  tasks.check_pairs(config)


def _check_adapting(config: Config) -> None:
  """What tables that change, and factors by visits, can be combined with."""
  model, adapt, optimizer = config.model, config.adapt, config.optimizer
  soft = [
    str(component.spec)
    for stack in sides.stacks(model).values()
    for component in shapes.components(stack).values()
    if component.templates
  ]
  by_visits = optimizer.visit_rate_power or optimizer.visit_decay_power
  if by_visits:
    need(
      not soft and model.tables == 'fixed',
      'optimizer.visit_rate_power and visit_decay_power count the visits of a'
      f' fixed table, got {soft[0] if soft else "tables that change"}',
    )
  if model.tables == 'fixed':
    return
  given = model.sharing
  need(
    model.family != 'encoder_decoder',
    'tables that change (adapt.method) need a model of one stack, got an'
    ' encoder_decoder',
  )
  need(
    not (soft or given.kv_source or given.map_source),
    'tables that change (adapt.method) can be combined with no soft spec,'
    ' kv_source or map_source, got'
    f' {(soft or [given.kv_source or given.map_source])[0]}',
  )
  need(
    model.depth.rule != 'random',
    'tables that change (adapt.method) may not repeat in every loop, as'
    ' model.depth.rule random needs',
  )
  need(
    optimizer.name != 'adafactor' or model.num_layers < 128,
    'adafactor, which would factor the axis of rows, needs fewer than 128'
    f' layers where tables change, got {model.num_layers}',
  )
  found = shapes.components(model)
  adapted = [name for name, component in found.items() if component.owners]
  for name in adapt.only.replace(' ', '').split(',') if adapt.only else ():
    if name not in adapted:
      raise unknown('component in adapt.only', name, adapted)
  need(
    adapt.rows <= model.num_layers,
    f'adapt.rows must be at most num_layers {model.num_layers}, got'
    f' {adapt.rows}',
  )
