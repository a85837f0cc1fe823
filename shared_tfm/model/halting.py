"""Rules of depth by which tokens leave the loop, in training and after it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm.model.depth import Core, Ran, every_loop
from shared_tfm.model.visit import STREAMS


def act(core: Core, state: Any) -> Ran:
  """Adaptive computation time (Graves, 1603.08983, section 2), as in T2T.

  Before every loop a unit says how likely each position is to halt. It halts
  when these sum to more than 1 - epsilon; its last weight is the remainder. A
  halted position's state is still updated, since others attend to it; the
  result is what its weights select:

    accumulated  sum of w * state, Graves' equation 13; a position that has not
                 halted by the last loop has weights of less than 1 in all
    basic        new * w + previous * (1 - w), a running interpolation, which
                 is what Tensor2Tensor's 'basic' Universal Transformer does

  The loss is `halt_weight` times the mean of loops + remainder. Once all
  positions have halted, the loops left are skipped.
  """
  depth, first_BLD = core.model.depth, state.x_BLD
  shape = first_BLD.shape[:2]
  zeros_BL = jnp.zeros(shape, jnp.float32)
  mask_BL = core.context.mask_BL
  halted_BL = zeros_BL if mask_BL is None else (~mask_BL).astype(jnp.float32)
  state = state.replace(x_BLD=core.start(first_BLD))

  def loop(carry: Any, i: jax.Array) -> Any:
    state, out_BLD, sum_BL, remainder_BL, loops_BL = carry
    p_BL = core.halting(state.x_BLD)
    running_BL = sum_BL < 1
    over_BL = sum_BL + p_BL > 1 - depth.halt_epsilon
    last_BL = running_BL & over_BL
    rest_BL = jnp.where(last_BL, 1 - sum_BL, 0)
    weight_BL = jnp.where(running_BL & ~over_BL, p_BL, rest_BL)
    state = core.step(state, i, first_BLD)
    weight_BL1 = weight_BL[..., None].astype(out_BLD.dtype)
    kept_BLD = out_BLD
    if depth.act_sum == 'basic':
      kept_BLD = out_BLD * (1 - weight_BL1)
    return (
      state,
      kept_BLD + state.x_BLD * weight_BL1,
      jnp.where(last_BL, 1.0, sum_BL + weight_BL),
      remainder_BL + rest_BL,
      loops_BL + running_BL,
    )

  carry = (state, jnp.zeros_like(first_BLD), halted_BL, zeros_BL, zeros_BL)
  carry = _until(lambda carry: jnp.all(carry[2] >= 1), loop, carry, core)
  state, out_BLD, _, remainder_BL, loops_BL = carry
  ponder = core.mean(loops_BL + remainder_BL)
  return Ran(
    out_BLD[None],
    state,
    losses={'ponder': depth.halt_weight * ponder},
    metrics={'loops': core.mean(loops_BL)},
    loops_BL=loops_BL,
  )


def stick_breaking(core: Core, state: Any) -> Ran:
  """Halting as the breaking of a stick (SUT, 2310.07096, section 3.2).

  After every loop a unit says how likely each position is to halt there; the
  loop takes that share of what the earlier ones have left of 1, and the last
  one all that is left. What a position hands on is its expected state: the sum
  of the states it may have halted with, and the latest for what is left. Keys
  and values of the next loop are made of that, queries of the latest state.

  Where less than `halt_epsilon` is left, a position has halted, and what it
  hands on changes no more. The loss is `halt_weight` times the mean of the
  expected number of loops. Once all have halted, the loops left are skipped.
  """
  depth, first_BLD = core.model.depth, state.x_BLD
  mask_BL = core.context.mask_BL
  zeros_BL = jnp.zeros(first_BLD.shape[:2], jnp.float32)
  left_BL = zeros_BL + 1 if mask_BL is None else mask_BL.astype(jnp.float32)

  def loop(carry: Any, i: jax.Array) -> Any:
    state, expected_BLD, halted_BLD, left_BL, cost_BL, loops_BL = carry
    context = core.context.replace(attended_BLD=expected_BLD)
    seeing = dataclasses.replace(core, context=context)
    state = seeing.step(state, i, first_BLD)
    running_BL = _running(left_BL)
    left_BL1 = left_BL[..., None].astype(first_BLD.dtype)
    expected_BLD = jnp.where(
      running_BL[..., None], halted_BLD + left_BL1 * state.x_BLD, expected_BLD
    )
    p_BL1 = core.halting(state.x_BLD)[..., None]
    return (
      state,
      expected_BLD,
      halted_BLD + (left_BL1 * p_BL1).astype(first_BLD.dtype) * state.x_BLD,
      left_BL * (1 - p_BL1[..., 0]),
      cost_BL + jnp.where(running_BL, left_BL, 0),
      loops_BL + running_BL,
    )

  def _running(left_BL: jax.Array) -> jax.Array:
    return left_BL >= depth.halt_epsilon

  carry = (
    state,
    first_BLD,
    jnp.zeros_like(first_BLD),
    left_BL,
    zeros_BL,
    zeros_BL,
  )
  carry = _until(lambda carry: ~jnp.any(_running(carry[3])), loop, carry, core)
  state, expected_BLD, _, _, cost_BL, loops_BL = carry
  return Ran(
    expected_BLD[None],
    state,
    losses={'ponder': depth.halt_weight * core.mean(cost_BL)},
    metrics={'loops': core.mean(loops_BL)},
    loops_BL=loops_BL,
  )


def _until(done: Any, loop: Any, carry: Any, core: Core) -> Any:
  """The carry after R loops, of which those after `done` are skipped.

  None is where keys and values are kept: what is written later may attend to
  those of any loop. Nor is any where visits are watched.
  """

  def unless_done(carry: Any, i: jax.Array) -> tuple[Any, None]:
    going = functools.partial(loop, i=i)
    watched = STREAMS[0] in carry[0].observed
    if carry[0].kept is not None or watched:
      return going(carry), None
    return jax.lax.cond(done(carry), lambda c: c, going, carry), None

  times = jnp.arange(core.loops.times)
  return jax.lax.scan(unless_done, carry, times)[0]


def ponder(core: Core, state: Any) -> Ran:
  """PonderNet (2107.05407, section 2): the loss is an expectation over exits.

  A unit gives the probability of halting after loop n, given that n was
  reached; p_n is the product with not having halted before, and what is left
  goes to the last loop. Every exit counts p_n in the loss, which also has
  `prior_weight` KL(p || prior): a geometric prior of `prior_rate`, cut off at R
  and normalised, or a uniform one, which regularises the entropy (Ouro,
  2510.25741).
  """
  depth, times = core.model.depth, core.loops.times
  state, x_RBLD = every_loop(core, state)
  p_RBL = halting_distribution(jax.vmap(core.halting)(x_RBLD))
  n_R = jnp.arange(times)
  prior_R = jnp.full(times, 1 / times)
  if depth.prior == 'geometric':
    prior_R = depth.prior_rate * (1 - depth.prior_rate) ** n_R
    prior_R /= jnp.sum(prior_R)
  tiny = jnp.finfo(jnp.float32).tiny
  log_RBL = jnp.log(jnp.maximum(p_RBL, tiny)) - jnp.log(prior_R)[:, None, None]
  divergence = core.mean(jnp.sum(p_RBL * log_RBL, axis=0))
  expected_BL = jnp.einsum('rbl,r->bl', p_RBL, n_R + 1.0)
  return Ran(
    x_RBLD,
    state,
    p_RBL,
    losses={'prior': depth.prior_weight * divergence},
    metrics={'loops': core.mean(expected_BL)},
  )


def halting_distribution(halting_RBL: jax.Array) -> jax.Array:
  """p_n from the probabilities of halting at n once n is reached; sums to 1."""
  going_RBL = jnp.cumprod(1 - halting_RBL, axis=0)
  before_RBL = jnp.concatenate([jnp.ones_like(going_RBL[:1]), going_RBL[:-1]])
  return jnp.concatenate(
    [(before_RBL * halting_RBL)[:-1], before_RBL[-1:]], axis=0
  )


def exits(core: Core, state: Any) -> Ran:
  """Scored after every loop: the last counts 1, the others `exit_weight`."""
  state, x_RBLD = every_loop(core, state)
  weight_R = jnp.full(len(x_RBLD), core.model.depth.exit_weight).at[-1].set(1)
  shape = x_RBLD.shape[:3]
  return Ran(x_RBLD, state, jnp.broadcast_to(weight_R[:, None, None], shape))


RULES = {
  'act': act,
  'stick_breaking': stick_breaking,
  'ponder': ponder,
  'exits': exits,
}
