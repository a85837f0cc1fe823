"""Mixtures of experts: a router chooses, for every token, a few of many maps.

Where values and experts read a stream that nothing normalises, it would grow
exponentially with depth: in style moeut all weights begin as if sublayers were
divided by their number, with the factor sqrt(2 / N) of MoEUT's released code.

Letters besides those of the package: M experts, C of them chosen, T = B * L
tokens, S = T * C rows sorted by expert.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared_tfm.config import GATED, Model
from shared_tfm.layers import grouped
from shared_tfm.layers.attention import Attention
from shared_tfm.layers.context import Context, Left
from shared_tfm.layers.feed_forward import ACTIVATIONS
from shared_tfm.layers.linear import linear
from shared_tfm.layers.router import Router, Routing, initial_scale

Axes = tuple[str | None, ...]


class Kernels(nn.Module):
  """One matrix for every expert: a tensor (M, d_in, d_out).

  Attributes:
    model: gives the compute dtype, which operands have: float8 is for one
      matrix that all rows meet.
    shape: of the tensor.
    axes: logical names of its axes.
    fan_in: they begin with the variance 1 / fan_in, times a scale.
  """

  model: Model
  shape: tuple[int, int, int]
  axes: Axes
  fan_in: int

  @nn.compact
  def __call__(self, x_SD: jax.Array, sizes_M: jax.Array) -> jax.Array:
    """Multiplies rows sorted by expert with their expert's matrix."""
    init = nn.initializers.normal(initial_scale(self.model) * self.fan_in**-0.5)
    kernel_MDF: Any = self.param(
      'kernel', nn.with_logical_partitioning(init, self.axes), self.shape
    )
    x_SD = x_SD.astype(self.model.precision.compute)
    return grouped.product(x_SD, kernel_MDF, sizes_M)


class FeedForwardExperts(nn.Module):
  """A mixture of feed-forward networks (sigma-MoE, 2310.10837; SUT).

  Style moeut initialises an expert's last matrix as if it were a part of one
  dense network of the width of all experts (2310.10837, section 5).
  """

  model: Model

  def setup(self) -> None:
    """Declares the router, and the experts' two or three matrices."""
    m, e = self.model, self.model.experts
    into = (e.num_ff, m.d_model, e.ff_width)
    back = (e.num_ff, e.ff_width, m.d_model)
    whole = e.ff_width * (e.num_ff if e.style == 'moeut' else 1)
    axes = ('expert', 'embed', 'mlp')
    self.router = Router(m, e.num_ff, e.top_k)
    self.up = Kernels(m, into, axes, m.d_model)
    if m.activation in GATED:
      self.gate = Kernels(m, into, axes, m.d_model)
    self.down = Kernels(m, back, ('expert', 'mlp', 'embed'), whole)

  def __call__(
    self, x_BLD: jax.Array, context: Context
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Maps every position by its experts.

    Args:
      x_BLD: what the router reads.
      context: what the experts read, where it is something else; padding.

    Returns:
      (B, L, D), and what the router observed.
    """
    m = self.model
    routing = self.router(x_BLD, context.mask_BL)
    chosen_TC, gates_TC = _flat(routing)
    where = grouped.routes(chosen_TC, m.experts.num_ff)
    read_TD = context.read_by_experts(x_BLD).reshape(-1, m.d_model)
    read_SD = read_TD[where.order_S // m.experts.top_k]
    activate = ACTIVATIONS[m.activation]
    inner_SF = self.up(read_SD, where.sizes_M).astype(jnp.float32)
    if m.activation in GATED:
      gate_SF = self.gate(read_SD, where.sizes_M).astype(jnp.float32)
      inner_SF = activate(gate_SF) * inner_SF
    else:
      inner_SF = activate(inner_SF)
    out_SD = self.down(inner_SF, where.sizes_M)
    y_TD = jnp.einsum('tcd,tc->td', out_SD[where.place_TC], gates_TC)
    return y_TD.reshape(x_BLD.shape), _named('feed_forward.router', routing)


class SwitchHead(Attention):
  """Attention whose heads choose experts (SwitchHead, 2312.07987, section 2.2).

  Queries and keys are dense. For each key/value head a router at the source
  position chooses among matrices that make values, and for each query head one
  at the destination chooses among matrices that read them out.
  """

  def setup(self) -> None:
    """Declares dense and expert projections, and the two routers."""
    m, e = self.model, self.model.experts
    d, k, count = m.d_model, m.head_dim, e.num_attention
    plain = dataclasses.replace(m, use_bias=False)
    init = nn.initializers.normal(initial_scale(m) * d**-0.5)
    self.query = linear(plain, m.num_heads * k, ('embed', 'heads'), init)
    self.key = linear(plain, m.num_kv_heads * k, ('embed', 'kv_heads'), init)
    values, outs = (m.num_kv_heads * count, d, k), (m.num_heads * count, k, d)
    self.value = Kernels(m, values, ('kv_heads', 'embed', None), d)
    self.out = Kernels(m, outs, ('heads', None, 'embed'), m.num_heads * k)
    top_k = e.attention_top_k
    self.value_router = Router(m, count, top_k, m.num_kv_heads, 'kv_heads')
    self.out_router = Router(m, count, top_k, m.num_heads, 'heads')

  def __call__(
    self, x_BLD: jax.Array, context: Context
  ) -> tuple[jax.Array, Left]:
    """Attends: see `Attention`."""
    m, d = self.model, self.model.d_model
    source = self.value_router(context.read_by_keys(x_BLD), context.mask_BL)
    target = self.out_router(x_BLD, context.mask_BL)
    read_TD = context.read_by_values(x_BLD).reshape(-1, d)
    v_TCK = _by_experts(self.value, read_TD, _flat(source)[0])
    v_BLGCK = v_TCK.reshape(*source.gates_BLHC.shape, m.head_dim)
    v_BLGK = jnp.einsum('blgck,blgc->blgk', v_BLGCK, source.gates_BLHC)
    kv = self._key(x_BLD, context), v_BLGK
    mixed_BLHK, left = self._attend(self._query(x_BLD, context), kv, context)
    out_TCD = _by_experts(
      self.out,
      mixed_BLHK.reshape(-1, m.head_dim),  # a row for every head
      target.chosen_BLHC.reshape(-1, m.experts.attention_top_k),
    )
    y_BLD = jnp.einsum(
      'blhcd,blhc->bld',
      out_TCD.reshape(*target.gates_BLHC.shape, d),
      target.gates_BLHC,
    )
    return y_BLD, left.replace(
      observed={
        **_named('attention.value_router', source),
        **_named('attention.out_router', target),
      },
    )


class MixtureOfHeads(Attention):
  """Attention whose query heads are experts (MoMHA; SUT, 2310.07096).

  An expert is a query projection and an output projection of G heads; keys and
  values, of G heads too, are dense and the same for all. What a token's C
  experts attend with are H = C * G query heads, C for each key/value head.
  """

  def setup(self) -> None:
    """Declares dense and expert projections, and the router."""
    m, e = self.model, self.model.experts
    count, wide = e.num_attention, m.num_kv_heads * m.head_dim
    plain = dataclasses.replace(m, use_bias=False)
    self.key = linear(plain, wide, ('embed', 'kv_heads'))
    self.value = linear(plain, wide, ('embed', 'kv_heads'))
    into, back = (count, m.d_model, wide), (count, wide, m.d_model)
    self.query = Kernels(m, into, ('expert', 'embed', 'kv_heads'), m.d_model)
    self.out = Kernels(m, back, ('expert', 'kv_heads', 'embed'), wide)
    self.router = Router(m, count, e.attention_top_k)

  def __call__(
    self, x_BLD: jax.Array, context: Context
  ) -> tuple[jax.Array, Left]:
    """Attends: see `Attention`."""
    m, (b, length, d) = self.model, x_BLD.shape
    g, k, top_k = m.num_kv_heads, m.head_dim, m.experts.attention_top_k
    routing = self.router(x_BLD, context.mask_BL)
    chosen_TC, gates_TC = _flat(routing)
    where = grouped.routes(chosen_TC, m.experts.num_attention)
    rows_SD = x_BLD.reshape(-1, d)[where.order_S // top_k]
    q_SF = self.query(rows_SD, where.sizes_M)
    q_BLCGK = q_SF[where.place_TC].reshape(b, length, top_k, g, k)
    q_BLHK = q_BLCGK.swapaxes(2, 3).reshape(b, length, -1, k)
    kv = self._key(x_BLD, context), self._value(x_BLD, context)
    mixed_BLHK, left = self._attend(self._rotated(q_BLHK, context), kv, context)
    mixed_BLGCK = mixed_BLHK.reshape(b, length, g, top_k, k)
    mixed_SF = mixed_BLGCK.swapaxes(2, 3).reshape(-1, g * k)[where.order_S]
    out_TCD = self.out(mixed_SF, where.sizes_M)[where.place_TC]
    y_TD = jnp.einsum('tcd,tc->td', out_TCD, gates_TC)
    return y_TD.reshape(x_BLD.shape), left.replace(
      observed=_named('attention.router', routing)
    )


ATTENTION: dict[str, type[Attention]] = {
  'moeut': SwitchHead,
  'sut': MixtureOfHeads,
}


def _by_experts(
  experts: Kernels, x_TD: jax.Array, chosen_TC: jax.Array
) -> jax.Array:
  """What every chosen expert makes of a token's row: (T, C, d_out)."""
  where = grouped.routes(chosen_TC, experts.shape[0])
  rows_SD = x_TD[where.order_S // chosen_TC.shape[1]]
  return experts(rows_SD, where.sizes_M)[where.place_TC]


def _flat(routing: Routing) -> tuple[jax.Array, jax.Array]:
  """The choices of all heads of each token, and their gates."""
  tokens = routing.chosen_BLHC.shape[0] * routing.chosen_BLHC.shape[1]
  return (
    routing.chosen_BLHC.reshape(tokens, -1),
    routing.gates_BLHC.reshape(tokens, -1),
  )


def _named(router: str, routing: Routing) -> dict[str, jax.Array]:
  """What a router observed, under its dotted path in a layer."""
  return {f'{router}.{name}': x for name, x in routing.observed.items()}
