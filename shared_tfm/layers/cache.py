"""Keys and values of earlier tokens, kept while a text is written.

Letters besides those of the package: T tokens that are new, M places of a text,
S slots, R slots that a visit reads.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from shared_tfm.layers import dot_product


class Cache(flax.struct.PyTreeNode):
  """One slot of keys and values for every visit that makes its own.

  A token is written at its place in its text, whatever the other texts of the
  batch do: so texts of different lengths need no padding in front.

  Attributes:
    keys_SBGMK: what was written; zeros elsewhere.
    values_SBGMK: the same.
    seen_SBM: which places may be attended to.
  """

  keys_SBGMK: jax.Array
  values_SBGMK: jax.Array
  seen_SBM: jax.Array

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
      dtype: of keys and values.
    """
    zeros = jnp.zeros((slots, batch, heads, places, width), dtype)
    return cls(zeros, zeros, jnp.zeros((slots, batch, places), bool))


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
    dtype = cache.keys_SBGMK.dtype
    return self.replace(
      cache=Cache(
        cache.keys_SBGMK.at[at].set(k_BTGK.astype(dtype), mode='drop'),
        cache.values_SBGMK.at[at].set(v_BTGK.astype(dtype), mode='drop'),
        cache.seen_SBM.at[write, rows_B1, positions_BT].set(
          seen_BT, mode='drop'
        ),
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
    mixed_BTGNK = jnp.einsum(
      'bgntm,bgmk->btgnk',
      map_BHTM.reshape(b, g, h // g, t, m),
      values_BGMK.astype(map_BHTM.dtype),
    )
    return mixed_BTGNK.reshape(b, t, h, -1)

  def _read(self, kept_SBGMK: jax.Array) -> jax.Array:
    if self.read_R.shape == (1,):
      return jax.lax.dynamic_index_in_dim(
        kept_SBGMK, self.read_R[0], keepdims=False
      )
    b, g = kept_SBGMK.shape[1:3]
    read_BR = jnp.broadcast_to(self.read_R, (b, self.read_R.shape[-1]))
    read_BRGMK = kept_SBGMK[read_BR, jnp.arange(b)[:, None]]
    read_BGRMK = read_BRGMK.swapaxes(1, 2)
    return read_BGRMK.reshape(b, g, -1, kept_SBGMK.shape[-1])
