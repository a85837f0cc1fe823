"""Beam search: the likeliest texts behind a prompt, or of a source.

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
from shared_tfm.infer.decoding import Texts, begun
from shared_tfm.model import build
from shared_tfm.model.rows import repeated, rows_of


class Beams(flax.struct.PyTreeNode):
  """Hypotheses, the best ones first.

  Attributes:
    place: how many tokens the open ones have, the start not counted.
    texts_BKT: tokens of the open ones; what is behind the place is nothing.
    scores_BK: their log-probabilities; -inf: there is none.
    ended_BKT: tokens of those that have ended, with their eos.
    ended_BK: their log-probabilities over the length penalty; -inf: none.
    logits_BKV: of what follows the open ones.
    kept: keys and values of the open ones; see model/kept.py.
  """

  place: jax.Array
  texts_BKT: jax.Array
  scores_BK: jax.Array
  ended_BKT: jax.Array
  ended_BK: jax.Array
  logits_BKV: jax.Array
  kept: Any

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

  The source is encoded once, and keys and values are kept.

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
  texts = begun(
    config,
    variables,
    jnp.full((len(source_BS), 1), start, jnp.int32),
    jnp.ones(len(source_BS), jnp.int32),
    jnp.full(len(source_BS), max_len + 1, jnp.int32),
    places=max_len + 1,
    source_BS=source_BS,
    source_mask_BS=source_mask_BS,
  )
  there_B = jnp.any(source_mask_BS, axis=1)
  return _search(
    config, variables, texts, there_B, eos, max_len, beam_size, alpha
  )


@functools.partial(jax.jit, static_argnames=('config', 'most', 'beam_size'))
def continuations(
  config: Config,
  variables: Any,
  prompts_BT: jax.Array,
  length_B: jax.Array,
  eos: int,
  most: int,
  beam_size: int,
  alpha: float,
) -> tuple[jax.Array, jax.Array]:
  """As `beam_search`: the best continuations of a decoder's prompts.

  Args:
    config: of a decoder.
    variables: the model's, 'params' among them.
    prompts_BT: tokens, with anything behind the shorter ones.
    length_B: how many each prompt has; at least one.
    eos: the token that ends a text.
    most: the most tokens to add, the eos counted; max_len of the other.
    beam_size: K.
    alpha: of the length penalty, which counts added tokens; 0 for none.

  Raises:
    BadInput: no decoder, or a length beyond the model's.
  """
  m, t = config.model, prompts_BT.shape[1]
  need(m.family == 'decoder', f'continuations needs a decoder, got {m.family}')
  need(
    t + most <= m.max_len,
    f'prompts of up to {t} tokens and {most} more exceed model.max_len'
    f' {m.max_len}',
  )
  end_B = length_B + most
  texts = begun(config, variables, prompts_BT, length_B, end_B, places=t + most)
  every_B = jnp.ones(len(length_B), bool)
  return _search(config, variables, texts, every_B, eos, most, beam_size, alpha)


def _search(
  config: Config,
  variables: Any,
  texts: Texts,
  there_B: jax.Array,
  eos: Any,
  most: int,
  size: int,
  alpha: Any,
) -> tuple[jax.Array, jax.Array]:
  """Searches behind texts that have begun, where there is anything to find."""
  model, b = build(config), len(there_B)
  rows_B1 = size * jnp.arange(b)[:, None]

  def step(beams: Beams) -> Beams:
    logp_BKV = jax.nn.log_softmax(beams.logits_BKV)
    beams, parent_BK = _lengthened(beams, logp_BKV, eos, alpha)
    tokens_N1 = beams.texts_BKT[:, :, beams.place].reshape(-1, 1)
    length_N1 = jnp.repeat(texts.length_B, size)[:, None]
    found: Any = model.apply(
      variables,
      tokens_N1,
      length_N1 + beams.place - 1,
      jnp.ones(tokens_N1.shape, bool),
      rows_of(beams.kept, (rows_B1 + parent_BK).reshape(-1)),
      method='following',
    )
    logits_NV, _, kept = found
    return beams.replace(logits_BKV=logits_NV.reshape(b, size, -1), kept=kept)

  def going(beams: Beams) -> jax.Array:
    return (beams.place < most) & ~jnp.all(beams.over_B)

  beams = _first(texts, there_B, most, size)
  beams = jax.lax.while_loop(going, step, beams)
  none_B11 = jnp.all(beams.ended_BK == -jnp.inf, axis=1)[:, None, None]
  cut_BK = beams.scores_BK / penalty(most, alpha)
  return (
    jnp.where(none_B11, beams.texts_BKT, beams.ended_BKT)[..., 1:],
    jnp.where(none_B11[..., 0], cut_BK, beams.ended_BK),
  )


def until(tokens: np.ndarray, eos: int) -> np.ndarray:
  """Tokens up to the first eos, which is left out."""
  return tokens[: (*np.flatnonzero(tokens == eos), len(tokens))[0]]


def penalty(length: Any, alpha: Any) -> Any:
  """The length penalty of GNMT (1609.08144, equation 14)."""
  return ((5.0 + length) / 6.0) ** alpha


def _first(texts: Texts, there_B: jax.Array, most: int, k: int) -> Beams:
  """One hypothesis with no token yet, where there is anything to find."""
  last_B1 = texts.length_B[:, None] - 1
  start_B11 = jnp.take_along_axis(texts.text_BM, last_B1, axis=1)[:, :, None]
  texts_BKT = jnp.broadcast_to(start_B11, (len(there_B), k, most + 1))
  first_BK = there_B[:, None] & (jnp.arange(k) == 0)[None]
  return Beams(
    place=jnp.zeros((), jnp.int32),
    texts_BKT=texts_BKT,
    scores_BK=jnp.where(first_BK, 0.0, -jnp.inf),
    ended_BKT=texts_BKT,
    ended_BK=jnp.full(texts_BKT.shape[:2], -jnp.inf),
    logits_BKV=jnp.repeat(texts.logits_BV[:, None], k, axis=1),
    kept=repeated(texts.kept, k),
  )


def _lengthened(
  beams: Beams, logp_BKV: jax.Array, eos: Any, alpha: Any
) -> tuple[Beams, jax.Array]:
  """The beams with one more token, and which of them each open one was.

  Those that are over stay as they are.
  """
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

  lengthened = beams.replace(
    place=place,
    texts_BKT=kept(beams.texts_BKT, _picked(texts_BCT, rows_BK)),
    scores_BK=kept(beams.scores_BK, open_BK),
    ended_BKT=kept(beams.ended_BKT, ended_BKT),
    ended_BK=kept(beams.ended_BK, ended_BK),
  )
  return lengthened, jnp.take_along_axis(index_BC // v, rows_BK, axis=1)


def _picked(texts_BNT: jax.Array, rows_BM: jax.Array) -> jax.Array:
  return jnp.take_along_axis(texts_BNT, rows_BM[..., None], axis=1)
