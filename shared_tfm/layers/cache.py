"""Keys and values of earlier tokens, kept while a text is written.

In eight bits a token's key, and its value, is 127 at its largest, times a scale
of its own for each head. A scale is a factor of a whole score, or weight, so
that what is kept is multiplied as it is.

Letters besides those of the package: T tokens that are new, M places of a text,
S slots, R slots that a visit reads.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from shared_tfm.layers import dot_product

MOST = 127
_LEAST = float(jnp.finfo(jnp.float32).tiny)  # a scale, where all is zero


class Cache(flax.struct.PyTreeNode):
  """One slot of keys and values for every visit that makes its own.

  A token is written at its place in its text, whatever the other texts of the
  batch do: so texts of different lengths need no padding in front.

  Attributes:
    keys_SBGMK: what was written; zeros elsewhere.
    values_SBGMK: the same.
    seen_SBM: which places may be attended to.
    key_scales_SBGM: float32, of keys in eight bits; None: of no others.
    value_scales_SBGM: of values.
  """

  keys_SBGMK: jax.Array
  values_SBGMK: jax.Array
  seen_SBM: jax.Array
  key_scales_SBGM: jax.Array | None = None
  value_scales_SBGM: jax.Array | None = None

  @classmethod
  def empty(
    cls, slots: int, batch: int, heads: int, places: int, width: int, dtype: Any
  ) -> 'Cache':
    """Nothing written yet.

    Args:
      slots: S.
      batch: B.
      heads: G.
      places: M.
      width: K.
      dtype: of keys and values; int8: rounded.
    """
    zeros = jnp.zeros((slots, batch, heads, places, width), dtype)
    seen_SBM = jnp.zeros((slots, batch, places), bool)
    scales = None
    if zeros.dtype == jnp.int8:
      scales = jnp.zeros(zeros.shape[:-1], jnp.float32)
    return cls(zeros, zeros, seen_SBM, scales, scales)


class Slots(flax.struct.PyTreeNode):
  """A cache as one visit sees it.

  Attributes:
    cache: the whole of it.
    write: the slot it writes to; one that does not exist: to none. Or one for
      every row of the batch, (B,).
    read_R: the slots it attends to; so too (B, R).
    readable_R: whether it really does; so too.
  """

  cache: Cache
  write: jax.Array
  read_R: jax.Array
  readable_R: jax.Array

  def added(
    self,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    positions_BT: jax.Array,
    mask_BT: jax.Array | None,
  ) -> 'Slots':
    """With new tokens in the slot to be written.

    Args:
      k_BTGK: their keys.
      v_BTGK: their values.
      positions_BT: their places.
      mask_BT: False where nobody may attend to them; None: nowhere.
    """
    cache, rows_B1 = self.cache, jnp.arange(len(positions_BT))[:, None]
    write = jnp.broadcast_to(self.write, len(rows_B1))[:, None]
    at = write, rows_B1, slice(None), positions_BT
    seen_BT = jnp.ones(positions_BT.shape, bool) if mask_BT is None else mask_BT

    def put(kept: jax.Array | None, new: jax.Array | None) -> Any:
      if kept is None or new is None:
        return kept
      return kept.at[at].set(new.astype(kept.dtype), mode='drop')

    rounds = cache.key_scales_SBGM is not None
    k_BTGK, k_scale_BTG = _rounded(k_BTGK) if rounds else (k_BTGK, None)
    v_BTGK, v_scale_BTG = _rounded(v_BTGK) if rounds else (v_BTGK, None)
    return self.replace(
      cache=Cache(
        put(cache.keys_SBGMK, k_BTGK),
        put(cache.values_SBGMK, v_BTGK),
        cache.seen_SBM.at[write, rows_B1, positions_BT].set(
          seen_BT, mode='drop'
        ),
        put(cache.key_scales_SBGM, k_scale_BTG),
        put(cache.value_scales_SBGM, v_scale_BTG),
      )
    )

  def attend(
    self,
    q_BTHK: jax.Array,
    positions_BT: jax.Array,
    bias_BHTM: jax.Array | None = None,
  ) -> jax.Array:
    """Mixes the values of all places up to each token's own: (B, T, H, K)."""
    return self.mixed(self.weights(q_BTHK, positions_BT, bias_BHTM))

  def weights(
    self,
    q_BTHK: jax.Array,
    positions_BT: jax.Array,
    bias_BHTM: jax.Array | None = None,
  ) -> jax.Array:
    """How much each token attends to each place: (B, H, T, R * M).

    Args:
      q_BTHK: queries.
      positions_BT: where their tokens stand.
      bias_BHTM: added to the scores, of each slot the same; None: nothing.
    """
    keys_BGMK = self._read(self.cache.keys_SBGMK)
    rows_B1 = jnp.arange(len(positions_BT))[:, None]
    read_BR = jnp.broadcast_to(
      self.read_R, (len(positions_BT), self.read_R.shape[-1])
    )
    readable_BR = jnp.broadcast_to(self.readable_R, read_BR.shape)
    seen_BRM = self.cache.seen_SBM[read_BR, rows_B1] & readable_BR[..., None]
    places_11M = jnp.arange(seen_BRM.shape[-1])[None, None]
    before_BTM = places_11M <= positions_BT[..., None]
    allowed_BTRM = seen_BRM[:, None] & before_BTM[:, :, None]
    allowed_BTM = allowed_BTRM.reshape(*positions_BT.shape, -1)
    (b, t, h, k), g = q_BTHK.shape, keys_BGMK.shape[1]
    scores_BGNTM = jnp.einsum(
      'btgnk,bgmk->bgntm',
      q_BTHK.reshape(b, t, g, h // g, k),
      keys_BGMK.astype(q_BTHK.dtype),
      preferred_element_type=jnp.float32,
    )
    scores_BGNTM = self._scaled(scores_BGNTM, self.cache.key_scales_SBGM)
    scores_BGNTM *= k**-0.5
    if bias_BHTM is not None:
      grouped = bias_BHTM.shape[0], g, h // g, *bias_BHTM.shape[2:]
      scores_BGNTM += jnp.tile(bias_BHTM.reshape(grouped), read_BR.shape[1])
    scores_BGNTM = jnp.where(
      allowed_BTM[:, None, None], scores_BGNTM, dot_product.NEVER
    )
    map_BGNTM = jax.nn.softmax(scores_BGNTM, axis=-1).astype(q_BTHK.dtype)
    return map_BGNTM.reshape(b, h, t, -1)

  def mixed(self, map_BHTM: jax.Array) -> jax.Array:
    """Values, mixed by weights: (B, T, H, K)."""
    values_BGMK = self._read(self.cache.values_SBGMK)
    (b, h, t, m), g = map_BHTM.shape, values_BGMK.shape[1]
    map_BGNTM = map_BHTM.reshape(b, g, h // g, t, m)
    map_BGNTM = self._scaled(map_BGNTM, self.cache.value_scales_SBGM)
    mixed_BTGNK = jnp.einsum(
      'bgntm,bgmk->btgnk', map_BGNTM, values_BGMK.astype(map_BHTM.dtype)
    )
    return mixed_BTGNK.reshape(b, t, h, -1)

  def _scaled(
    self, of_places_BGNTM: jax.Array, scales_SBGM: jax.Array | None
  ) -> jax.Array:
    """What is about each place, times the scale of what is kept of it."""
    if scales_SBGM is None:
      return of_places_BGNTM
    scale_BGM = self._read(scales_SBGM).astype(of_places_BGNTM.dtype)
    return of_places_BGNTM * scale_BGM[:, :, None, None]

  def _read(self, kept: jax.Array) -> jax.Array:
    """The slots that are read, as one: (B, G, R * M, ...)."""
    if self.read_R.shape == (1,):
      return jax.lax.dynamic_index_in_dim(kept, self.read_R[0], keepdims=False)
    b, g, _, *width = kept.shape[1:]
    read_BR = jnp.broadcast_to(self.read_R, (b, self.read_R.shape[-1]))
    read_BRGM = kept[read_BR, jnp.arange(b)[:, None]]
    return read_BRGM.swapaxes(1, 2).reshape(b, g, -1, *width)


def _rounded(new_BTGK: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Whole numbers of eight bits, and for every token and head their scale."""
  largest_BTG1 = jnp.max(jnp.abs(new_BTGK), axis=-1, keepdims=True)
  scale_BTG1 = jnp.maximum(largest_BTG1.astype(jnp.float32) / MOST, _LEAST)
  return jnp.round(new_BTGK / scale_BTG1), scale_BTG1[..., 0]
