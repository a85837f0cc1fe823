"""How often the core of the stack is run.

The stack is a prelude of P visits, a core of C visits that loops R times, and a
coda of K. A rule decides how many loops there are, what is trained of them, and
at which of them the residual stream is scored:

    fixed      R loops
    act        every token halts by itself, 1603.08983; UT, 1807.03819
    stick_breaking  so too, and is attended to as its expected state, 2310.07096
    ponder     a distribution over halting after every loop, 2107.05407; Ouro
    exits      scored after every loop, 2410.20672, section 3.4
    random     R is drawn for every step, the last loops are trained, 2502.05171
    two_level  a slow state is updated after L updates of a fast one, 2506.21734

    expert_choice, token_choice  tokens are chosen for every loop, 2507.10524

They stand in recurrence.py, halting.py and routing.py: plain functions over
`Core`, which hides what a visit is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.config.loops import HALTING, Loops, loops
from shared_tfm.layers.context import Context
from shared_tfm.layers.norm import Norm


class Ran(flax.struct.PyTreeNode):
  """What the stack hands to the head.

  Attributes:
    x_XBLD: the residual stream at each of X exits.
    weight_XBL: how much each exit counts in the loss; None: the last, 1.
    losses: further terms of the loss, weighted.
    metrics: scalars worth logging.
    state: what travelled with it, after the last loop.
    used_R: token_choice: the share of tokens that chose each loop.
    logits_BLV: where loops were left out, what was made of the only exit.
    loops_BL: how many loops each token ran, where a rule says so; where loops
      were left out, how many were not.
  """

  x_XBLD: jax.Array
  state: Any
  weight_XBL: jax.Array | None = None
  losses: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
  metrics: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
  used_R: jax.Array | None = None
  logits_BLV: jax.Array | None = None
  loops_BL: jax.Array | None = None


class Controls(nn.Module):
  """What decides about depth, outside every layer: parameters, and a bias."""

  model: Model
  train: bool = False

  def setup(self) -> None:
    """Declares what the rule needs."""
    depth, d = self.model.depth, self.model.d_model
    times = loops(self.model).times
    made: dict[str, Any] = {}
    if depth.rule in HALTING:
      made['halt'] = self.param(
        'halt', lambda key: _halting_unit(key, d, depth.halt_bias)
      )
    if depth.injection == 'linear':
      made['adapter'] = self.param('adapter', _kernel, (2 * d, d))
    if depth.rule in ('expert_choice', 'token_choice'):
      made['router'] = self.param('router', _kernel, (d, times))
    if depth.norm:
      norm = Norm(self.model, parent=None)
      blank = jnp.zeros((1, 1, d))
      made['norm'] = self.param(
        'norm', lambda key: norm.init(key, blank)['params']
      )
    self.made = made
    self.balances = depth.rule == 'token_choice' and depth.balance == 'bias'
    if self.balances:
      self.bias = self.variable('routing', 'bias', jnp.zeros, (times,))

  def __call__(self) -> dict[str, Any]:
    """Trees of arrays by name; 'bias' is what balances the loops' use."""
    return {**self.made, **({'bias': self.bias.value} if self.balances else {})}

  def after(self, ran: Ran) -> None:
    """Moves the bias towards loops used too little (2408.15664, Alg. 1)."""
    if self.balances and self.train:
      used_R: Any = ran.used_R
      way_R = jnp.sign(1 / len(used_R) - used_R)
      self.bias.value += self.model.depth.balance_rate * way_R


def _kernel(key: jax.Array, shape: tuple[int, int]) -> dict[str, Any]:
  value = jax.random.normal(key, shape) * shape[0] ** -0.5
  return {'kernel': nn.LogicallyPartitioned(value, ('embed', None))}


def _halting_unit(key: jax.Array, width: int, bias: float) -> dict[str, Any]:
  full = jnp.full((1,), bias)
  return {
    **_kernel(key, (width, 1)),
    'bias': nn.LogicallyPartitioned(full, (None,)),
  }


@dataclasses.dataclass(frozen=True)
class Core:
  """The loop as rules see it.

  Attributes:
    model: the network.
    loops: P, C, R and K.
    controls: the parameters of `Controls`.
    run: (state, loop, context) -> state: the C visits of a loop, whose number
      may be traced. A state is the residual stream with what travels with it.
    frozen: the same, through which no gradient reaches a stored weight.
    context: what every visit sees.
    train: whether losses are wanted.
    key: for what is drawn; a fixed one at evaluation.
  """

  model: Model
  loops: Loops
  controls: dict[str, Any]
  run: Callable[..., Any]
  frozen: Callable[..., Any]
  context: Context
  train: bool
  key: jax.Array

  def detached(self) -> 'Core':
    """The same loop with all parameters as constants."""
    return dataclasses.replace(
      self, run=self.frozen, controls=jax.lax.stop_gradient(self.controls)
    )

  def step(self, state: Any, loop: Any, first_BLD: jax.Array) -> Any:
    """One loop: injects the core's first input, runs the visits, normalises."""
    depth, x_BLD = self.model.depth, state.x_BLD
    if depth.injection == 'add':
      x_BLD = x_BLD + first_BLD
    if depth.injection == 'linear':
      both = jnp.concatenate([x_BLD, first_BLD], axis=-1)
      x_BLD = both @ self.controls['adapter']['kernel'].astype(both.dtype)
    state = self.run(state.replace(x_BLD=x_BLD), loop, self.context)
    if not depth.norm:
      return state
    norm = Norm(self.model, self.train, parent=None)
    params = {'params': self.controls['norm']}
    normed: Any = norm.apply(params, state.x_BLD, self.context.mask_BL)
    return state.replace(x_BLD=normed)

  def start(self, first_BLD: jax.Array) -> jax.Array:
    """What the first loop starts from, beside what is injected.

    Noise of an evaluation is that of a position, whatever stands around it.
    """
    depth = self.model.depth
    if depth.start == 'input':
      return first_BLD
    if depth.start == 'zeros':
      return jnp.zeros_like(first_BLD)
    key = jax.random.fold_in(self.key, 1)
    if self.train:
      noise = jax.random.normal(key, first_BLD.shape, first_BLD.dtype)
      return noise * depth.start_std

    def drawn(position: jax.Array) -> jax.Array:
      own = jax.random.fold_in(key, position)
      return jax.random.normal(own, first_BLD.shape[2:], first_BLD.dtype)

    noise = jax.vmap(jax.vmap(drawn))(self.context.positions_BL)
    return noise * depth.start_std

  def halting(self, x_BLD: jax.Array) -> jax.Array:
    """The halting unit's probability at every position: float32 (B, L)."""
    unit, x_BLD = self.controls['halt'], x_BLD.astype(jnp.float32)
    return jax.nn.sigmoid((x_BLD @ unit['kernel'] + unit['bias'][0])[..., 0])

  def mean(self, values_BL: jax.Array) -> jax.Array:
    """The mean over positions that are not padding."""
    mask_BL = self.context.mask_BL
    if mask_BL is None:
      return jnp.mean(values_BL)
    return jnp.sum(values_BL * mask_BL) / jnp.maximum(jnp.sum(mask_BL), 1)


def every_loop(core: Core, state: Any) -> tuple[Any, jax.Array]:
  """R loops: the last state, and the stream after each, (R, B, L, D)."""
  first_BLD = state.x_BLD
  state = state.replace(x_BLD=core.start(first_BLD))

  def loop(state: Any, i: jax.Array) -> tuple[Any, jax.Array]:
    state = core.step(state, i, first_BLD)
    return state, state.x_BLD

  return jax.lax.scan(loop, state, jnp.arange(core.loops.times))
