"""Texts that grow token by token: the prompts at once, then one at a time."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from shared_tfm.config import Config
from shared_tfm.infer.choice import Choice, choose
from shared_tfm.model import build


class Texts(flax.struct.PyTreeNode):
  """A batch of texts, and what is known of their next tokens.

  Attributes:
    text_BM: tokens, prompts with them; nothing counts behind the length.
    length_B: how many there are.
    end_B: the length at which each is over.
    over_B: whether it is.
    logits_BV: of the next token.
    loops_B: how many loops were run for the tokens that were added, in all.
    kept: the model's keys and values; see model/kept.py.
  """

  text_BM: jax.Array
  length_B: jax.Array
  end_B: jax.Array
  over_B: jax.Array
  logits_BV: jax.Array
  loops_B: jax.Array
  kept: Any


@functools.partial(jax.jit, static_argnames=('config', 'places', 'policy'))
def begun(
  config: Config,
  variables: Any,
  prompts_BT: jax.Array,
  length_B: jax.Array,
  end_B: jax.Array,
  places: int,
  policy: str = 'visit',
  **source: Any,
) -> Texts:
  """Reads all prompts at once.

  Args:
    config: of a model with causal attention.
    variables: the model's, 'params' among them.
    prompts_BT: tokens, with anything behind the shorter ones.
    length_B: how many each prompt has; at least one.
    end_B: the length at which each text is over.
    places: the most tokens of a text; at least T.
    policy: what visits keep apart; see model/kept.py.
    **source: 'source_BS' and 'source_mask_BS' of an encoder-decoder.
  """
  model = build(config)
  (b, t), s = prompts_BT.shape, 0
  if source:
    s = source['source_BS'].shape[1]
  kept: Any = model.apply({}, b, places, s, policy, method='empty')
  positions_BT = jnp.broadcast_to(jnp.arange(t), (b, t))
  mask_BT = positions_BT < length_B[:, None]
  found: Any = model.apply(
    variables,
    prompts_BT,
    positions_BT,
    mask_BT,
    kept,
    method='following',
    **source,
  )
  logits_BV, _, kept = found
  text_BM = jnp.zeros((b, places), jnp.int32).at[:, :t].set(prompts_BT)
  over_B, loops_B = length_B >= end_B, jnp.zeros_like(length_B)
  return Texts(text_BM, length_B, end_B, over_B, logits_BV, loops_B, kept)


@functools.partial(
  jax.jit, static_argnames=('config', 'leaves'), donate_argnames='texts'
)
def continued(
  config: Config,
  variables: Any,
  texts: Texts,
  choice: Choice,
  eos: jax.Array,
  tokens: jax.Array,
  leaves: bool = True,
) -> Texts:
  """Adds tokens to the texts that are not over, until all are.

  Args:
    config: as of `begun`.
    variables: the same.
    texts: no longer to be used afterwards.
    choice: how tokens are chosen.
    eos: the token that ends a text, and is its last; -1: there is none.
    tokens: the most to add to each.
    leaves: whether loops are left out where the model has a criterion for when
      a token may leave; see model/leaving.py.
  """
  model = build(config)

  def going(carry: tuple[Texts, jax.Array]) -> jax.Array:
    texts, added = carry
    return (added < tokens) & ~jnp.all(texts.over_B)

  def add(carry: tuple[Texts, jax.Array]) -> tuple[Texts, jax.Array]:
    texts, added = carry
    rows_B, place_B = jnp.arange(len(texts.over_B)), texts.length_B
    token_B = choose(choice, texts.logits_BV, texts.text_BM, place_B)
    token_B = token_B.astype(jnp.int32)
    at_B = jnp.where(texts.over_B, texts.text_BM.shape[1], place_B)
    length_B = place_B + ~texts.over_B
    over_B = texts.over_B | (token_B == eos) | (length_B >= texts.end_B)
    # The row of a text that is over must do something: it repeats its end.
    found: Any = model.apply(
      variables,
      token_B[:, None],
      jnp.where(texts.over_B, place_B - 1, place_B)[:, None],
      jnp.ones((len(rows_B), 1), bool),
      texts.kept,
      leaves,
      method='following',
    )
    logits_BV, loops_B, kept = found
    texts = Texts(
      texts.text_BM.at[rows_B, at_B].set(token_B, mode='drop'),
      length_B,
      texts.end_B,
      over_B,
      logits_BV,
      texts.loops_B + jnp.where(texts.over_B, 0, loops_B),
      kept,
    )
    return texts, added + 1

  return jax.lax.while_loop(going, add, (texts, jnp.zeros((), jnp.int32)))[0]
