"""Rules of depth that choose tokens: Mixture-of-Recursions (2507.10524).

A token that a loop does not run keeps its state, and nobody in that loop
attends to it (the paper's recursion-wise caching). Under `kv_source` a token
attends to the keys and values of the first loop instead (recursive sharing).
"""

from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm.model.depth import Core, Ran


def expert_choice(core: Core, state: Any) -> Ran:
  """Every loop takes the tokens it scores highest (section 2.2.1, eq. 2.1).

  Loop r of R takes (R - r) / R of the sequence, among those the loop before
  took, and adds to a token g times what the block made of it, with g = alpha *
  sigmoid(router). In training the tokens are gathered, so that a loop costs
  what it selects, and `router_loss` times a binary cross-entropy teaches the
  router to tell by itself which tokens are among the highest. At evaluation,
  where looking at the whole sequence would look ahead, a token is taken where
  the router says more than 1/2; the first loop takes all.
  """
  if core.train and state.kv is None:
    return _gathered(core, state)
  return _masked(core, state)


def _gathered(core: Core, state: Any) -> Ran:
  depth, times = core.model.depth, core.loops.times
  x_BLD, context = state.x_BLD, core.context
  length = x_BLD.shape[1]
  chosen_BM = jnp.broadcast_to(jnp.arange(length)[None], x_BLD.shape[:2])
  loss: Any = 0.0
  z: Any = 0.0
  for r in range(times):
    y_BMD = _take(x_BLD, chosen_BM)
    logits_BM = _logits(core, y_BMD, r)
    capacity = max(1, length * (times - r) // times)
    live_BM = jnp.ones(logits_BM.shape, bool)
    if context.mask_BL is not None:
      live_BM = _take(context.mask_BL, chosen_BM)
    among_BM = jnp.where(live_BM, logits_BM, -jnp.inf)
    selected_BM, places_BK = _highest(among_BM, capacity)
    seen = jnp.maximum(jnp.sum(live_BM), 1)
    entropy_BM = _cross_entropy(logits_BM, selected_BM & live_BM) * live_BM
    loss += jnp.sum(entropy_BM) / seen
    z += jnp.sum(logits_BM**2 * live_BM) / seen
    gate_BK = depth.router_alpha * jax.nn.sigmoid(_take(logits_BM, places_BK))
    chosen_BM = _take(chosen_BM, places_BK)
    padded = context.mask_BL is not None
    state = core.run(
      state.replace(x_BLD=_take(y_BMD, places_BK)),
      r,
      context.replace(
        positions_BL=_take(context.positions_BL, chosen_BM),
        bias_BHLM=_between(context.bias_BHLM, chosen_BM),
        mask_BL=_take(live_BM, places_BK) if padded else None,
      ),
    )
    added_BKD = state.x_BLD * gate_BK[..., None].astype(x_BLD.dtype)
    x_BLD = jax.vmap(lambda x, at, new: x.at[at].add(new))(
      x_BLD, chosen_BM, added_BKD
    )
  mean = sum((times - r) / times for r in range(times))
  return Ran(
    x_BLD[None],
    state.replace(x_BLD=x_BLD),
    losses=_losses(core, loss, z),
    metrics={'loops': jnp.float32(mean)},
  )


def _losses(core: Core, loss: Any, z: Any) -> dict[str, jax.Array]:
  """The router's, from sums over loops."""
  depth, times = core.model.depth, core.loops.times
  losses = {'router': depth.router_loss * loss / times}
  if depth.z_loss:
    losses['router_z'] = depth.z_loss * z / times
  return losses


def _masked(core: Core, state: Any) -> Ran:
  """The same with masks: all tokens run, and those not taken are kept as is."""
  depth, times = core.model.depth, core.loops.times
  x_BLD, context = state.x_BLD, core.context
  length = x_BLD.shape[1]
  live_BL = jnp.ones(x_BLD.shape[:2], bool)
  if context.mask_BL is not None:
    live_BL = context.mask_BL
  taken_BL = live_BL
  loss: Any = 0.0
  z: Any = 0.0
  loops_BL = jnp.zeros(x_BLD.shape[:2], jnp.float32)
  for r in range(times):
    logits_BL = _logits(core, x_BLD, r)
    if core.train:
      capacity = max(1, length * (times - r) // times)
      among_BL = jnp.where(taken_BL, logits_BL, -jnp.inf)
      now_BL, _ = _highest(among_BL, capacity)
      now_BL &= taken_BL
      entropy_BL = _cross_entropy(logits_BL, now_BL) * taken_BL
      seen = jnp.maximum(jnp.sum(taken_BL), 1)
      loss += jnp.sum(entropy_BL) / seen
      z += jnp.sum(logits_BL**2 * taken_BL) / seen
      taken_BL = now_BL
    elif r:
      taken_BL = taken_BL & (logits_BL > 0)
    loops_BL += taken_BL
    gate_BL = depth.router_alpha * jax.nn.sigmoid(logits_BL)
    state = _run(core, state.replace(x_BLD=x_BLD), r, taken_BL)
    gate_BL = jnp.where(taken_BL, gate_BL, 0).astype(x_BLD.dtype)
    x_BLD = x_BLD + state.x_BLD * gate_BL[..., None]
  return Ran(
    x_BLD[None],
    state.replace(x_BLD=x_BLD),
    losses=_losses(core, loss, z) if core.train else {},
    metrics={'loops': core.mean(loops_BL)},
    loops_BL=loops_BL,
  )


def token_choice(core: Core, state: Any) -> Ran:
  """Every token chooses its number of loops at the start (section 2.2.1).

  With i the router's highest of R scores, a token runs loops 1 to i, and is
  then its first state plus g times its last, g being the score itself
  (equation 2.2 as the authors' code has it, which weights the last loop only;
  sigmoid scores are multiplied by `router_alpha`). Loops are kept in use by R
  sum_i f_i P_i (2101.03961, equation 4) with f the fraction of tokens that
  choose i and P their mean score, times `balance_weight`; or by a bias that is
  moved after every step towards loops used too little (2408.15664), and that
  plays no part in g.
  """
  depth, times = core.model.depth, core.loops.times
  first_BLD = state.x_BLD
  kernel_DR = core.controls['router']['kernel']
  logits_BLR = first_BLD.astype(jnp.float32) @ kernel_DR
  if depth.router_function == 'softmax':
    scores_BLR = jax.nn.softmax(logits_BLR, axis=-1)
  else:
    scores_BLR = depth.router_alpha * jax.nn.sigmoid(logits_BLR)
  ranked_BLR = scores_BLR
  if depth.balance == 'bias':
    ranked_BLR = scores_BLR + core.controls['bias'][None, None]
  choice_BL = jnp.argmax(ranked_BLR, axis=-1)
  gate_BL1 = jnp.take_along_axis(scores_BLR, choice_BL[..., None], axis=-1)

  x_BLD = first_BLD
  for r in range(times):
    active_BL = choice_BL >= r
    if core.context.mask_BL is not None:
      active_BL &= core.context.mask_BL
    state = _run(core, state.replace(x_BLD=x_BLD), r, active_BL)
    x_BLD = jnp.where(active_BL[..., None], state.x_BLD, x_BLD)
  x_BLD = first_BLD + x_BLD * gate_BL1.astype(x_BLD.dtype)

  chosen_BLR = jax.nn.one_hot(choice_BL, times)
  used_R = jnp.stack([core.mean(chosen_BLR[..., r]) for r in range(times)])
  losses = {}
  if depth.balance == 'loss':
    mean_R = jnp.stack([core.mean(scores_BLR[..., r]) for r in range(times)])
    balance = times * jnp.sum(jax.lax.stop_gradient(used_R) * mean_R)
    losses['balance'] = depth.balance_weight * balance
  if depth.z_loss:
    z_BL = jax.nn.logsumexp(logits_BLR, axis=-1) ** 2
    losses['router_z'] = depth.z_loss * core.mean(z_BL)
  return Ran(
    x_BLD[None],
    state.replace(x_BLD=x_BLD),
    losses=losses,
    metrics={'loops': core.mean(choice_BL + 1.0)},
    loops_BL=choice_BL + 1.0,
    used_R=used_R,
  )


def _run(core: Core, state: Any, loop: int, taken_BL: jax.Array) -> Any:
  """One loop, in which only those tokens can be attended to.

  Where keys and values are the first loop's, all tokens can be. While a text is
  written, a loop that takes no token is left out.
  """
  context = core.context
  if state.kv is None:
    context = context.replace(mask_BL=taken_BL)
  if state.kept is None:
    return core.run(state, loop, context)
  return jax.lax.cond(
    jnp.any(taken_BL),
    lambda state: core.run(state, loop, context),
    lambda state: state,
    state,
  )


def _logits(core: Core, x_BLD: jax.Array, loop: int) -> jax.Array:
  kernel_D = core.controls['router']['kernel'][:, loop]
  return x_BLD.astype(jnp.float32) @ kernel_D


def _highest(logits_BM: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """The highest of each row: whether an entry is one, and their places."""
  _, places_BK = jax.lax.top_k(logits_BM, count)
  places_BK = jnp.sort(places_BK, axis=-1)  # the order of the text is kept
  selected_BM = jax.vmap(lambda row, at: row.at[at].set(True))(
    jnp.zeros(logits_BM.shape, bool), places_BK
  )
  return selected_BM, places_BK


def _take(values_BM: jax.Array, places_BK: jax.Array) -> jax.Array:
  """Those places of every row; further axes go along."""
  return jax.vmap(lambda row, at: row[at])(values_BM, places_BK)


def _between(bias_BHLL: Any, places_BK: jax.Array) -> jax.Array | None:
  """The bias of scores between those places of every row."""
  if bias_BHLL is None:
    return None
  shape = len(places_BK), *bias_BHLL.shape[1:]
  taken = jax.vmap(lambda bias_HLL, at: bias_HLL[:, at[:, None], at[None]])
  return taken(jnp.broadcast_to(bias_BHLL, shape), places_BK)


def _cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
  """Binary cross-entropy of logits, elementwise."""
  return jnp.where(target, jax.nn.softplus(-logits), jax.nn.softplus(logits))


RULES = {'expert_choice': expert_choice, 'token_choice': token_choice}
