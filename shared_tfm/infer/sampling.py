"""Continuing prompts, several at a time, each as if it were alone."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.config import Config
from shared_tfm.errors import need
from shared_tfm.infer.choice import Choice, Sampling
from shared_tfm.infer.decoding import begun, continued

GREEDY = Sampling()
ROUND = 64  # a cache has a multiple of so many places: fewer to compile for


def generate(
  config: Config,
  variables: Any,
  prompts: Sequence[np.ndarray],
  tokens: int,
  sampling: Sampling = GREEDY,
  eos: int = -1,
  policy: str = 'visit',
) -> list[np.ndarray]:
  """Continues prompts of any lengths.

  Args:
    config: of a decoder.
    variables: the model's, 'params' among them.
    prompts: token ids, at least one each.
    tokens: the most to add to each.
    sampling: how they are chosen; seeds are counted up from one prompt to the
      next.
    eos: the token at which a text ends; -1: none.
    policy: what visits keep apart; see model/kept.py.

  Returns:
    What was added to each, int32, an eos with it.

  Raises:
    BadInput: the model is no decoder, a prompt is empty or too long with its
      continuation, or a value is out of range.
  """
  pieces = stream(
    config, variables, prompts, tokens, sampling, eos, policy, every=tokens
  )
  return next(pieces)


def stream(
  config: Config,
  variables: Any,
  prompts: Sequence[np.ndarray],
  tokens: int,
  sampling: Sampling = GREEDY,
  eos: int = -1,
  policy: str = 'visit',
  every: int = 1,
) -> Iterator[list[np.ndarray]]:
  """As `generate`, but hands out what is there already.

  Args:
    config: see there, as for the other arguments.
    variables: .
    prompts: .
    tokens: .
    sampling: .
    eos: .
    policy: .
    every: how many tokens to wait for.

  Yields:
    What has been added to each so far.
  """
  check(config, prompts, tokens)
  sampling.check(config.model.vocab_size)
  lengths = np.array([len(prompt) for prompt in prompts])
  end_B = lengths + tokens
  prompts_BT = padded(prompts, config.model.max_len)
  most = max(int(end_B.max()), prompts_BT.shape[1])
  places = -(-most // ROUND) * ROUND
  texts = begun(
    config,
    variables,
    prompts_BT,
    jnp.asarray(lengths, jnp.int32),
    jnp.asarray(end_B, jnp.int32),
    places,
    policy,
  )
  choice = Choice.of(
    [
      dataclasses.replace(sampling, seed=(sampling.seed + row) % 2**32)
      for row in range(len(prompts))
    ]
  )
  over = False
  while not over:
    texts = continued(
      config,
      variables,
      texts,
      choice,
      jnp.int32(eos),
      jnp.int32(every),
    )
    text_BM, length_B, over_B = jax.device_get(
      (texts.text_BM, texts.length_B, texts.over_B)
    )
    over = bool(over_B.all())
    yield [
      text_M[start:end]
      for text_M, start, end in zip(text_BM, lengths, length_B, strict=True)
    ]


def check(config: Config, prompts: Sequence[np.ndarray], tokens: int) -> None:
  """Raises BadInput where prompts cannot be continued by so many tokens."""
  check_model(config)
  m = config.model
  need(len(prompts) > 0, 'there is no prompt')
  need(tokens > 0, f'the number of tokens must be at least 1, got {tokens}')
  for prompt in prompts:
    need(len(prompt) > 0, 'the prompt is empty')
    need(
      len(prompt) + tokens <= m.max_len,
      f'a prompt of {len(prompt)} tokens and {tokens} more exceed'
      f' model.max_len {m.max_len}',
    )


def check_model(config: Config) -> None:
  """Raises BadInput where a model continues no text."""
  m = config.model
  need(
    m.family == 'decoder' and m.head == 'tokens',
    f'generate needs a decoder, got an {m.family}'
    if m.family != 'decoder'
    else f'generate needs a model that scores tokens, got head {m.head}',
  )


def padded(prompts: Sequence[np.ndarray], most: int) -> np.ndarray:
  """Prompts side by side, (B, T); T is a power of two, or `most`."""
  longest = max(map(len, prompts))
  width = min(most, max(8, 2 ** (longest - 1).bit_length()))
  found = np.zeros((len(prompts), width), np.int32)
  for row, prompt in zip(found, prompts, strict=True):
    row[: len(prompt)] = prompt
  return found
