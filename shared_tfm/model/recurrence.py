"""Rules that loop: a fixed or random number of times, or on two levels."""

from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm.model.depth import Core, Ran, every_loop


def fixed(core: Core, state: Any) -> Ran:
  """R loops, with injection, start and norm as the config says.

  At evaluation a criterion looks at the stream after every one of them.
  """
  if core.model.depth.criterion != 'none' and not core.train:
    state, x_RBLD = every_loop(core, state)
    return Ran(x_RBLD, state)
  first_BLD = state.x_BLD
  state = state.replace(x_BLD=core.start(first_BLD))

  def loop(state: Any, i: jax.Array) -> tuple[Any, None]:
    return core.step(state, i, first_BLD), None

  state, _ = jax.lax.scan(loop, state, jnp.arange(core.loops.times))
  return Ran(state.x_BLD[None], state)


def random(core: Core, state: Any) -> Ran:
  """A random number of loops, the last of them trained (Huginn, 2502.05171).

  In training, loops ~ Poisson(rate) + 1 with rate ~ LogNormal(log(mean) -
  sigma^2 / 2, sigma), section 3.2; the last `backprop_loops` of them are
  differentiated, the others run in a loop that keeps nothing. Where there are
  others, what comes before the core is trained by what is injected. At
  evaluation there are as many loops as the config's depth says.
  """
  if not core.train:
    return fixed(core, state)
  depth, kept = core.model.depth, core.model.depth.backprop_loops
  loops = drawn_loops(core.key, depth.mean_loops, depth.sigma)
  first_BLD = state.x_BLD
  state = state.replace(x_BLD=core.start(first_BLD))
  untrained = jnp.maximum(loops - kept, 0)
  still = jax.lax.stop_gradient(first_BLD)
  constant = jax.lax.fori_loop(
    0,
    untrained,
    lambda i, s: core.detached().step(s, i, still),
    jax.lax.stop_gradient(state),
  )
  state = jax.tree.map(
    lambda a, b: jnp.where(untrained > 0, a, b), constant, state
  )

  def loop(state: Any, i: jax.Array) -> tuple[Any, None]:
    return jax.lax.cond(
      i < loops,
      lambda s: core.step(s, i, first_BLD),
      lambda s: s,
      state,
    ), None

  state, _ = jax.lax.scan(loop, state, untrained + jnp.arange(kept))
  metrics = {'loops': loops.astype(jnp.float32)}
  return Ran(state.x_BLD[None], state, metrics=metrics)


def drawn_loops(key: jax.Array, mean: float, sigma: float) -> jax.Array:
  """Log-normal Poisson numbers of loops, at least 1: an int32 scalar."""
  noise, count = jax.random.split(key)
  rate = jnp.exp(
    jnp.log(mean) - sigma**2 / 2 + sigma * jax.random.normal(noise)
  )
  return jax.random.poisson(count, rate) + 1


def two_level(core: Core, state: Any) -> Ran:
  """Two states: L updates of a fast one, then one of a slow one, and again.

  HRM (2506.21734) and TRM (2510.04871): with x the core's first input,
    fast = block(fast + slow + x)   `inner_loops` times
    slow = block(slow + fast)
  R / (inner_loops + 1) times over, each block a loop of the core with its own
  row of the tables (HRM: two blocks; TRM: one). The last `backprop_loops`
  blocks are differentiated (HRM's one-step gradient: 2). `supervision` repeats
  all of it, scores every segment alike and detaches the states in between;
  the papers update the weights after every segment, here one update has all.
  """
  depth, times = core.model.depth, core.loops.times
  period = depth.inner_loops + 1
  x_BLD = state.x_BLD
  still = jax.lax.stop_gradient(x_BLD)
  trained = min(depth.backprop_loops, times)

  def block(carry: Any, i: jax.Array, x_BLD: jax.Array, run: Any) -> Any:
    fast, slow, state = carry
    is_slow = i % period == period - 1
    into = fast + slow + jnp.where(is_slow, 0, x_BLD)
    state = run(state.replace(x_BLD=into), i, core.context)
    out = state.x_BLD
    fast = jnp.where(is_slow, fast, out)
    return fast, jnp.where(is_slow, out, slow), state

  def segment(carry: Any, number: jax.Array) -> Any:
    fast, slow, state = carry
    state = state.replace(kept=state.kept and state.kept.run(number))
    carry = jax.lax.stop_gradient((fast, slow, state))
    carry, _ = jax.lax.scan(
      lambda c, i: (block(c, i, still, core.frozen), None),
      carry,
      jnp.arange(times - trained),
    )
    carry = jax.lax.stop_gradient(carry)
    carry, _ = jax.lax.scan(
      lambda c, i: (block(c, i, x_BLD, core.run), None),
      carry,
      jnp.arange(times - trained, times),
    )
    return carry, carry[1]

  start = core.start(x_BLD)
  (_, _, state), x_XBLD = jax.lax.scan(
    segment, (start, start, state), jnp.arange(depth.supervision)
  )
  weight_XBL = jnp.full(x_XBLD.shape[:3], 1 / depth.supervision)
  return Ran(x_XBLD, state, weight_XBL)


RULES = {'fixed': fixed, 'random': random, 'two_level': two_level}
