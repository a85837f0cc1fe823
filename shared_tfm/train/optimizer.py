"""The optax chain of a config: schedule, clipping, update rule.

Two things a bank of shared weights asks of an update rule that treats a leaf as
one matrix: its leading axis of rows is no part of the matrix. Muon is told so,
and LAMB's trust ratio is taken row by row. (Adafactor factors the two largest
axes, which are the matrix's own; its clipping looks at the whole leaf.)
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from shared_tfm.config import Config, Model, Optimizer, sides
from shared_tfm.train import by_visits


def schedule(config: Config) -> optax.Schedule:
  """The learning rate at every update: linear warm-up, then the named shape.

  linear, exponential and cosine go from the peak to `final_fraction` of it at
  the last step; rsqrt falls with the inverse square root of the step
  (1706.03762, section 5.3); wsd stays at the peak and falls linearly in the
  last `decay_fraction` of the run (2404.06395, section 4).
  """
  o = config.optimizer
  peak, warmup = o.learning_rate, o.warmup_steps
  steps = max(config.train.num_steps - warmup, 1)
  final = peak * o.final_fraction
  decay = max(round(config.train.num_steps * o.decay_fraction), 1)
  decay = min(decay, steps)  # a long warm-up leaves less room
  shapes: dict[str, optax.Schedule] = {
    'constant': optax.constant_schedule(peak),
    'linear': optax.linear_schedule(peak, final, steps),
    'exponential': lambda step: peak * o.final_fraction ** (step / steps),
    'cosine': optax.cosine_decay_schedule(peak, steps, o.final_fraction),
    'rsqrt': lambda step: peak * (1 + step / max(warmup, 1)) ** -0.5,
    'wsd': optax.linear_schedule(peak, final, decay, steps - decay),
  }
  if not warmup:
    return shapes[o.schedule]
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, shapes[o.schedule]], [warmup])


def make(config: Config) -> optax.GradientTransformationExtraArgs:
  """The whole update rule, given mean gradients: they are clipped first.

  Its update takes their `norm` over all leaves, where that is known.
  """
  if config.model.quantise.integers:  # nothing moves, and has no moments
    return optax.with_extra_args_support(optax.set_to_zero())
  rate = schedule(config)
  rule = _rule(config.optimizer, rate, config.model)
  if config.optimizer.visit_rate_power:
    power = config.optimizer.visit_rate_power
    rule = optax.chain(rule, by_visits.scaled_updates(config.model, power))
  if config.optimizer.clip_norm:
    rule = optax.chain(_clipped(config.optimizer.clip_norm), rule)
  return optax.with_extra_args_support(rule)


def _clipped(most: float) -> optax.GradientTransformationExtraArgs:
  """Gradients times what makes their norm at most `most`.

  `optax.clip_by_global_norm` divides them, and what is divided is written out
  before its use: another pass over all of it.
  """

  def update(
    grads: Any, state: Any, params: Any = None, *, norm: Any = None, **_: Any
  ) -> Any:
    norm = optax.tree.norm(grads) if norm is None else norm
    factor = jnp.where(norm < most, 1.0, most / norm)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), state

  return optax.GradientTransformationExtraArgs(
    lambda _: optax.EmptyState(), update
  )


def _rule(
  o: Optimizer, rate: optax.Schedule, model: Model
) -> optax.GradientTransformation:
  def decays(params: Any) -> Any:
    names = set(o.decay_mask.split(',')) if o.decay_mask else None

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
      keys = [key.key for key in path]
      if keys[1:2] == ['mix']:  # coefficients of templates never do
        return False
      return names is None or not names.isdisjoint(keys)

    return jax.tree_util.tree_map_with_path(decayed, params)

  def by_row(
    rule: optax.GradientTransformation,
  ) -> optax.GradientTransformation:
    return by_visits.scaled_decay(rule, model, o.visit_decay_power)

  # For rules that have no decay, or not one that follows the schedule.
  decay = by_row(
    optax.add_decayed_weights(lambda step: -o.weight_decay * rate(step), decays)
  )
  betas = {'b1': o.b1, 'b2': o.b2}
  if o.name == 'adamw':
    return by_row(
      optax.adamw(
        rate, **betas, eps=o.eps, weight_decay=o.weight_decay, mask=decays
      )
    )
  if o.name == 'adafactor':
    return optax.chain(optax.adafactor(rate), decay)
  if o.name == 'lion':
    return by_row(
      optax.lion(rate, **betas, weight_decay=o.weight_decay, mask=decays)
    )
  if o.name == 'muon':
    muon = optax.contrib.muon(
      rate,
      beta=o.b1,
      eps=o.eps,
      adam_b1=o.b1,
      adam_b2=o.b2,
      muon_weight_dimension_numbers=_matrices,
    )
    return optax.chain(muon, decay)
  return optax.chain(  # lamb (1904.00962)
    optax.scale_by_adam(**betas, eps=o.eps),
    by_row(optax.add_decayed_weights(o.weight_decay, decays)),
    _trust_ratio_by_row(),
    optax.scale_by_learning_rate(rate),
  )


def in_bank(path: tuple[Any, ...]) -> bool:
  """Whether a leaf of the parameter tree has a leading axis of rows."""
  return path[0].key in sides.BANKS


def _matrices(params: Any) -> Any:
  """Muon's matrices: the kernels' last two axes; Adam gets the rest.

  Rows of a bank, and experts of a mixture, are matrices of their own.
  """

  def axes(path: tuple[Any, ...], leaf: Any) -> Any:
    if path[-1].key != 'kernel':
      return None
    return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

  return jax.tree_util.tree_map_with_path(axes, params)


def _trust_ratio_by_row() -> optax.GradientTransformation:
  ratio = optax.scale_by_trust_ratio()

  def scale(path: tuple[Any, ...], update: jax.Array, param: jax.Array) -> Any:
    def one(update: jax.Array, param: jax.Array) -> Any:
      return ratio.update(update, optax.ScaleByTrustRatioState(), param)[0]

    return (jax.vmap(one) if in_bank(path) else one)(update, param)

  return optax.stateless(
    lambda updates, params: jax.tree_util.tree_map_with_path(
      scale, updates, params
    )
  )
