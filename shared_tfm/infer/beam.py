"""Beam search: the likeliest texts that an encoder-decoder makes of a source.

Shape letters besides the model's: K hypotheses of a sentence (the beam), T
places of a text with its start in front, C = 2K candidates of a step.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.config import Config
from shared_tfm.errors import need
from shared_tfm.model import build

SHORTEST = 8  # the length that texts are first computed at


class Beams(flax.struct.PyTreeNode):
  """Hypotheses, the best ones first.

  Attributes:
    place: how many tokens the open ones have, the start not counted.
    texts_BKT: tokens of the open ones; what is behind the place is nothing.
    scores_BK: their log-probabilities; -inf: there is none.
    ended_BKT: tokens of those that have ended, with their eos.
    ended_BK: their log-probabilities over the length penalty; -inf: none.
  """

  place: jax.Array
  texts_BKT: jax.Array
  scores_BK: jax.Array
  ended_BKT: jax.Array
  ended_BK: jax.Array

  @property
  def over_B(self) -> jax.Array:
    """Whether the search is over: K have ended, or there was no source."""
    full_B = jnp.all(self.ended_BK > -jnp.inf, axis=1)
    return full_B | jnp.all(self.scores_BK == -jnp.inf, axis=1)


@functools.partial(jax.jit, static_argnames=('config', 'max_len', 'beam_size'))
def beam_search(
  config: Config,
  variables: Any,
  source_BS: jax.Array,
  source_mask_BS: jax.Array,
  start: int,
  eos: int,
  max_len: int,
  beam_size: int,
  alpha: float,
) -> tuple[jax.Array, jax.Array]:
  """Searches for the texts of the highest score, for each source by itself.

  The score of a text Y is log P(Y | source) / ((5 + |Y|) / 6)^alpha, |Y| its
  number of tokens with the eos (GNMT, 1609.08144, equation 14). In each step
  the beam's texts are lengthened by every token. Of the 2K best results, those
  that end are kept if they are among the K best, and the K best of the others
  go on. It is over when K have ended. Beam size 1 is greedy.

  The source is encoded once. The target so far is computed anew for every
  token, at a length that is doubled when it is full.

  Args:
    config: of an encoder-decoder.
    variables: the model's, 'params' among them.
    source_BS: the sources.
    source_mask_BS: False at their padding. Nothing is searched for where all
      of a source is padding.
    start: the token before the first.
    eos: the token that ends a text.
    max_len: the most tokens of a text, its eos counted.
    beam_size: K.
    alpha: of the length penalty; 0 for none.

  Returns:
    The texts that have ended, the best ones first: tokens (B, K, max_len), in
    which nothing counts behind the first eos, and scores (B, K), -inf where
    there are fewer. For a source of which none has ended, those that were cut.

  Raises:
    BadInput: no encoder-decoder, or a length beyond the model's.
  """
  m = config.model
  need(
    m.family == 'encoder_decoder',
    f'beam search needs an encoder_decoder, got model.family {m.family}',
  )
  need(
    max_len <= m.max_len,
    f'the most tokens of a text, {max_len}, exceed model.max_len {m.max_len}',
  )
  model = build(config)
  encoded: Any = model.apply(
    variables, source_BS, source_mask_BS, method='encoded'
  )
  memory_NSD = jnp.repeat(encoded.hidden_XBLD[-1], beam_size, axis=0)
  mask_NS = jnp.repeat(source_mask_BS, beam_size, axis=0)

  def step(length: int, beams: Beams) -> Beams:
    tokens_NT = beams.texts_BKT[..., :length].reshape(-1, length)
    logits_NV: Any = model.apply(
      variables,
      tokens_NT,
      beams.place,
      memory_BSD=memory_NSD,
      source_mask_BS=mask_NS,
      method='following',
    )
    logits_BKV = logits_NV.reshape(*beams.scores_BK.shape, -1)
    return _lengthened(beams, jax.nn.log_softmax(logits_BKV), eos, alpha)

  def room(length: int, beams: Beams) -> jax.Array:
    return (beams.place < length) & ~jnp.all(beams.over_B)

  beams = _first(source_mask_BS, start, max_len, beam_size)
  for length in _lengths(max_len):
    beams = jax.lax.while_loop(
      functools.partial(room, length), functools.partial(step, length), beams
    )
  none_B11 = jnp.all(beams.ended_BK == -jnp.inf, axis=1)[:, None, None]
  cut_BK = beams.scores_BK / penalty(max_len, alpha)
  return (
    jnp.where(none_B11, beams.texts_BKT, beams.ended_BKT)[..., 1:],
    jnp.where(none_B11[..., 0], cut_BK, beams.ended_BK),
  )


def best(
  config: Config, variables: Any, source: np.ndarray, eos: int
) -> np.ndarray:
  """The best text of one source, as the config's task would have it.

  Args:
    config: of an encoder-decoder.
    variables: the model's, 'params' among them.
    source: token ids.
    eos: the token that texts begin and end with.

  Returns:
    Token ids without the eos.

  Raises:
    BadInput: a source that is empty or too long.
  """
  data, task = config.data, config.task
  need(
    0 < len(source) <= data.source_len,
    f'a source must have 1 to data.source_len {data.source_len} tokens, got'
    f' {len(source)}',
  )
  source_1S = np.full((1, data.source_len), eos, np.int32)
  source_1S[0, : len(source)] = source
  tokens_1KL, _ = beam_search(
    config,
    variables,
    source_1S,
    np.arange(data.source_len)[None] < len(source),
    eos,
    eos,
    task.max_decode or data.seq_len,
    task.beam_size,
    task.length_penalty,
  )
  return until(np.asarray(tokens_1KL[0, 0]), eos)


def until(tokens: np.ndarray, eos: int) -> np.ndarray:
  """Tokens up to the first eos, which is left out."""
  return tokens[: (*np.flatnonzero(tokens == eos), len(tokens))[0]]


def penalty(length: Any, alpha: Any) -> Any:
  """The length penalty of GNMT (1609.08144, equation 14)."""
  return ((5.0 + length) / 6.0) ** alpha


def _lengths(max_len: int) -> list[int]:
  """8, 16, 32, ... below the most, and the most."""
  found = [SHORTEST]
  while found[-1] < max_len:
    found.append(2 * found[-1])
  return [*found[:-1], max_len]


def _first(mask_BS: jax.Array, start: Any, max_len: int, k: int) -> Beams:
  """One hypothesis with no token yet, of the sources that there are."""
  texts_BKT = jnp.full((len(mask_BS), k, max_len + 1), start, jnp.int32)
  first_BK = jnp.any(mask_BS, axis=1)[:, None] & (jnp.arange(k) == 0)[None]
  return Beams(
    place=jnp.zeros((), jnp.int32),
    texts_BKT=texts_BKT,
    scores_BK=jnp.where(first_BK, 0.0, -jnp.inf),
    ended_BKT=texts_BKT,
    ended_BK=jnp.full(texts_BKT.shape[:2], -jnp.inf),
  )


def _lengthened(
  beams: Beams, logp_BKV: jax.Array, eos: Any, alpha: Any
) -> Beams:
  """The beams with one more token; those that are over stay as they are."""
  b, k, v = logp_BKV.shape
  place = beams.place + 1
  scores_BKV = beams.scores_BK[..., None] + logp_BKV
  scores_BC, index_BC = jax.lax.top_k(scores_BKV.reshape(b, -1), 2 * k)
  token_BC = index_BC % v
  texts_BCT = _picked(beams.texts_BKT, index_BC // v)
  texts_BCT = texts_BCT.at[:, :, place].set(token_BC)
  ends_BC = token_BC == eos

  best_BC = (jnp.arange(2 * k) < k)[None] & ends_BC
  normed_BC = jnp.where(best_BC, scores_BC / penalty(place, alpha), -jnp.inf)
  ended_BK, rows_BK = jax.lax.top_k(
    jnp.concatenate([beams.ended_BK, normed_BC], axis=1), k
  )
  ended_BKT = _picked(
    jnp.concatenate([beams.ended_BKT, texts_BCT], axis=1), rows_BK
  )
  open_BK, rows_BK = jax.lax.top_k(jnp.where(ends_BC, -jnp.inf, scores_BC), k)

  def kept(old: jax.Array, new: jax.Array) -> jax.Array:
    over_B = beams.over_B.reshape(-1, *(1,) * (new.ndim - 1))
    return jnp.where(over_B, old, new)

  return Beams(
    place,
    kept(beams.texts_BKT, _picked(texts_BCT, rows_BK)),
    kept(beams.scores_BK, open_BK),
    kept(beams.ended_BKT, ended_BKT),
    kept(beams.ended_BK, ended_BK),
  )


def _picked(texts_BNT: jax.Array, rows_BM: jax.Array) -> jax.Array:
  return jnp.take_along_axis(texts_BNT, rows_BM[..., None], axis=1)
