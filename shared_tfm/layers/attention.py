"""Multi-head attention, with as many key/value heads as the config says."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shared_tfm.config import Model
from shared_tfm.layers import dot_product
from shared_tfm.layers.context import Context, Left
from shared_tfm.layers.dot import PRODUCTS
from shared_tfm.layers.keep import keep
from shared_tfm.layers.linear import linear
from shared_tfm.layers.position import rotate


class Attention(nn.Module):
  """Scaled dot-product self-attention (1706.03762, section 3.2).

  One key/value head for every query head is MHA; fewer is GQA (2305.13245);
  one is MQA (1911.02150). A decoder attends to itself and what came before.
  """

  model: Model

  def setup(self) -> None:
    """Declares the four projections: a component's parts."""
    m = self.model
    heads, kv_heads = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    self.query: Any = linear(m, heads, ('embed', 'heads'))
    self.key = linear(m, kv_heads, ('embed', 'kv_heads'))
    self.value: Any = linear(m, kv_heads, ('embed', 'kv_heads'))
    self.out: Any = linear(m, m.d_model, ('heads', 'embed'))

  def __call__(
    self, x_BLD: jax.Array, context: Context
  ) -> tuple[jax.Array, Left]:
    """Attends.

    Args:
      x_BLD: the sequence.
      context: positions, padding, and what may be reused.

    Returns:
      The mixed values, (B, L, D), and what was made or reused for them.
    """
    if context.map is not None:
      mixed_BLHK, left = self._attend_by_map(x_BLD, context)
    else:
      kv = self._keys_values(x_BLD, context)
      mixed_BLHK, left = self._attend(self._query(x_BLD, context), kv, context)
    mixed_BLHK = keep(mixed_BLHK, PRODUCTS)
    return self.out(mixed_BLHK.reshape(*x_BLD.shape[:2], -1)), left

  def _heads(self, x_BLD: jax.Array) -> jax.Array:
    return x_BLD.reshape(*x_BLD.shape[:2], -1, self.model.head_dim)

  def _rotated(self, x_BLHK: jax.Array, context: Context) -> jax.Array:
    if self.model.position != 'rotary':
      return x_BLHK
    m, positions_BL = self.model, context.positions_BL
    return rotate(x_BLHK, positions_BL, m.rope_theta, m.rotary_fraction)

  def _key(self, x_BLD: jax.Array, context: Context) -> jax.Array:
    read_BLD = context.read_by_keys(x_BLD)
    return self._rotated(self._heads(self.key(read_BLD)), context)

  def _value(self, x_BLD: jax.Array, context: Context) -> jax.Array:
    return self._heads(self.value(context.read_by_values(x_BLD)))

  def _query(self, x_BLD: jax.Array, context: Context) -> jax.Array:
    return self._rotated(self._heads(self.query(x_BLD)), context)

  def _keys_values(self, x_BLD: jax.Array, context: Context) -> Any:
    """A pair (B, L, G, K), this layer's own or an earlier one's."""

    def own(self: 'Attention') -> Any:
      return self._key(x_BLD, context), self._value(x_BLD, context)

    kv = context.kv
    if kv is None:
      return own(self)
    return nn.cond(kv.own, own, lambda _: kv.made, self)

  def _attend(
    self, q_BLHK: jax.Array, kv: Any, context: Context
  ) -> tuple[jax.Array, Left]:
    mask_BL = context.mask_BL
    if context.cache is not None:
      cache = context.cache.added(kv[0], kv[1], context.positions_BL, mask_BL)
      positions_BL, bias = context.positions_BL, context.bias_BHLM
      mixed_BLHK = cache.attend(q_BLHK, positions_BL, bias)
      return mixed_BLHK, Left(kv=kv, cache=cache.cache)
    if context.past is not None:
      return self._attend_to_past(q_BLHK, kv, context), Left(kv=kv)
    mixed_BLHK = dot_product.attend(
      q_BLHK,
      kv[0],
      kv[1],
      mask=None if mask_BL is None else mask_BL[:, None, None, :],
      is_causal=self.model.causal,
      kernel=self.model.attention_kernel,
      bias=context.bias_BHLM,
    )
    return mixed_BLHK, Left(kv=kv)

  def _attend_to_past(
    self, q_BLHK: jax.Array, kv: Any, context: Context
  ) -> jax.Array:
    """Attends to this loop and those before (CoTFormer, 2310.10845, 3.2)."""
    past: Any = context.past
    b, length = q_BLHK.shape[:2]

    def joined(own_BLGK: jax.Array, past_RBLGK: jax.Array) -> jax.Array:
      all_RBLGK = jnp.concatenate([own_BLGK[None], past_RBLGK])
      return all_RBLGK.swapaxes(0, 1).reshape(b, -1, *own_BLGK.shape[2:])

    seen_BLL = jnp.ones((b, length, length), bool)
    if self.model.causal:
      seen_BLL = jnp.tril(seen_BLL)
    if context.mask_BL is not None:
      seen_BLL &= context.mask_BL[:, None]
    loops_R = jnp.concatenate([jnp.ones(1, bool), past.readable])
    seen_BLRL = seen_BLL[:, :, None] & loops_R[None, None, :, None]
    bias = context.bias_BHLM
    if bias is not None:
      bias = jnp.tile(bias, len(loops_R))
    return dot_product.attend(
      q_BLHK,
      joined(kv[0], past.made[0]),
      joined(kv[1], past.made[1]),
      mask=seen_BLRL.reshape(b, 1, length, -1),
      kernel=self.model.attention_kernel,
      bias=bias,
    )

  def _attend_by_map(
    self, x_BLD: jax.Array, context: Context
  ) -> tuple[jax.Array, Left]:
    """Mixes values by weights that may be an earlier layer's."""
    earlier: Any = context.map
    v_BLGK, cache = self._value(x_BLD, context), context.cache
    if cache is not None:
      k_BLGK = nn.cond(
        earlier.own,
        lambda self: self._key(x_BLD, context),
        lambda _: jnp.zeros_like(v_BLGK),
        self,
      )
      cache = cache.added(k_BLGK, v_BLGK, context.positions_BL, context.mask_BL)

    def own(self: 'Attention') -> jax.Array:
      if cache is None:
        return self._map(x_BLD, context)
      positions_BL, bias = context.positions_BL, context.bias_BHLM
      return cache.weights(self._query(x_BLD, context), positions_BL, bias)

    map_BHLM = nn.cond(earlier.own, own, lambda _: earlier.made, self)
    if cache is not None:
      left = Left(map=map_BHLM, cache=cache.cache)
      return cache.mixed(map_BHLM), left
    return self._mix(map_BHLM, v_BLGK), Left(map=map_BHLM)

  def _map(self, x_BLD: jax.Array, context: Context) -> jax.Array:
    """The attention weights, (B, H, L, L)."""
    m = self.model
    q_BLHK = self._query(x_BLD, context)
    k_BLHK = self._per_query_head(self._key(x_BLD, context))
    b, length, heads, _ = q_BLHK.shape
    allowed = jnp.ones((b, heads, length, k_BLHK.shape[1]), bool)
    if m.causal:
      allowed = jnp.tril(allowed)
    if context.mask_BL is not None:
      allowed &= context.mask_BL[:, None, None, :]
    return dot_product.weights(q_BLHK, k_BLHK, allowed, context.bias_BHLM)

  def _mix(self, map_BHLL: Any, v_BLGK: jax.Array) -> jax.Array:
    return dot_product.mixed(map_BHLL, self._per_query_head(v_BLGK))

  def _per_query_head(self, x_BLGK: jax.Array) -> jax.Array:
    m = self.model
    return jnp.repeat(x_BLGK, m.num_heads // m.num_kv_heads, axis=2)
