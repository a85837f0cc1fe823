"""Routers: what chooses, for every token, a few of many experts.

Letters besides those of the package: M experts, C of them chosen. Scores and
what is observed of them are computed in float32.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.layers.linear import KERNEL_INIT


class Routing(NamedTuple):
  """What a router says of every token.

  Attributes:
    gates_BLHC: how much each chosen expert counts, for each of H heads.
    chosen_BLHC: the experts, those of all heads numbered through.
    observed: 'usage', the mean probability of each expert in a sequence, (B, H,
      M), and in style sut 'entropy', the mean of tokens' own, (B, H).
  """

  gates_BLHC: jax.Array
  chosen_BLHC: jax.Array
  observed: dict[str, jax.Array]


class Router(nn.Module):
  """Scores all experts for every token and chooses the best.

  Style moeut (sigma-MoE, 2310.10837, section 5): one linear map; the gates are
  sigmoids of the best scores, and are not normalised. The vectors of all
  experts begin with one length. Style sut (2310.07096, with its released code):
  two linear maps around a tanh; the gates are a softmax over the best scores.

  Attributes:
    model: the network.
    experts: M, of each head.
    top_k: C.
    heads: H, each of which chooses for itself.
    axis: logical name of the axis of scores.
  """

  model: Model
  experts: int
  top_k: int
  heads: int = 1
  axis: str = 'expert'

  def setup(self) -> None:
    """Declares the maps; in style moeut in the router's own scope."""
    names = nn.with_logical_partitioning
    hidden = self.model.experts.style == 'sut'
    if hidden:
      self.hidden = nn.Dense(
        self.model.d_model,
        dtype=jnp.float32,
        kernel_init=names(KERNEL_INIT, ('embed', None)),
        bias_init=names(nn.initializers.zeros, (None,)),
      )
    self.scores = nn.Dense(
      self.heads * self.experts,
      use_bias=False,
      dtype=jnp.float32,
      kernel_init=names(
        KERNEL_INIT if hidden else functools.partial(_columns, self.model),
        (None if hidden else 'embed', self.axis),
      ),
    )
    if not hidden:
      nn.share_scope(self, self.scores)

  def __call__(self, x_BLD: jax.Array, mask_BL: jax.Array | None) -> Routing:
    """Routes (B, L, D); padding, where `mask_BL` is False, is not observed."""
    sut = self.model.experts.style == 'sut'
    if sut:
      x_BLD = jnp.tanh(self.hidden(x_BLD))
    scores_BLHM = self.scores(x_BLD).reshape(
      *x_BLD.shape[:2], self.heads, self.experts
    )
    best_BLHC, chosen_BLHC = jax.lax.top_k(scores_BLHM, self.top_k)
    gates_BLHC = jax.nn.softmax(best_BLHC) if sut else jax.nn.sigmoid(best_BLHC)
    first_H = jnp.arange(self.heads) * self.experts
    return Routing(
      gates_BLHC.astype(jnp.dtype(self.model.precision.compute)),
      chosen_BLHC + first_H[None, None, :, None],
      self._observed(scores_BLHM, mask_BL),
    )

  def _observed(
    self, scores_BLHM: jax.Array, mask_BL: jax.Array | None
  ) -> dict[str, jax.Array]:
    counts_BL = jnp.ones(scores_BLHM.shape[:2])
    if mask_BL is not None:
      counts_BL = mask_BL.astype(jnp.float32)
    total_B1 = jnp.maximum(jnp.sum(counts_BL, axis=1, keepdims=True), 1)
    weights_BL = counts_BL / total_B1
    log_BLHM = jax.nn.log_softmax(scores_BLHM)
    p_BLHM = jnp.exp(log_BLHM)
    observed = {'usage': jnp.einsum('bl,blhm->bhm', weights_BL, p_BLHM)}
    if self.model.experts.style == 'sut':
      own_BLH = -jnp.sum(p_BLHM * log_BLHM, axis=-1)
      observed['entropy'] = jnp.einsum('bl,blh->bh', weights_BL, own_BLH)
    return observed


def _columns(
  model: Model, key: jax.Array, shape: tuple[int, int], dtype: Any
) -> jax.Array:
  """Random directions of one length."""
  drawn = jax.random.normal(key, shape, dtype)
  return (
    drawn * initial_scale(model) / jnp.linalg.norm(drawn, axis=0, keepdims=True)
  )


def initial_scale(model: Model) -> float:
  """What initial weights are multiplied by; see experts.py."""
  moeut = model.experts.style == 'moeut'
  return float((2 / model.depth_applied) ** 0.5) if moeut else 1.0
