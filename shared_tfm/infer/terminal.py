"""Texts written to a terminal while they are made."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from shared_tfm.config import Config
from shared_tfm.data.tokenizers import Tokenizer
from shared_tfm.errors import need
from shared_tfm.infer import best, sampling
from shared_tfm.infer.choice import Sampling
from shared_tfm.infer.pieces import Pieces

EVERY = 4  # tokens between two looks at what there is


def write(
  config: Config,
  variables: Any,
  tokenizer: Tokenizer,
  texts: Sequence[str],
  prompts: Sequence[np.ndarray],
  tokens: int,
  how: Sampling = sampling.GREEDY,
  stop: Sequence[str] = (),
  beam_size: int = 0,
  policy: str = 'visit',
) -> None:
  """Prints each prompt with its continuation, or its translation alone.

  One prompt's is printed while it grows.

  Args:
    config: of a decoder or an encoder-decoder.
    variables: the model's, 'params' among them.
    tokenizer: of both.
    texts: the prompts.
    prompts: the same as token ids.
    tokens: the most to add to each; an encoder-decoder's are the task's.
    how: they are chosen, unless by beam search.
    stop: strings that a continuation ends before.
    beam_size: of beam search; 0: none, or the task's of an encoder-decoder.
    policy: what visits keep apart; see model/kept.py.

  Raises:
    BadInput: see `sampling.generate` and `best.of_prompts`.
  """
  need(beam_size >= 0, f'--beam must be at least 0, got {beam_size}')
  if config.model.family == 'encoder_decoder':
    plain = how == sampling.GREEDY and policy == 'visit' and not stop
    need(plain, 'an encoder_decoder is decoded by beam search: --beam')
    for prompt in prompts:
      target = best.of_source(
        config, variables, prompt, tokenizer.eos, beam_size
      )
      print(tokenizer.decode(target))
    return
  if beam_size:
    need(
      how == sampling.GREEDY and policy == 'visit',
      '--beam goes with none of --temperature, --top_k, --top_p,'
      ' --repetition_penalty, --seed, --cache',
    )
    found = best.of_prompts(
      config, variables, prompts, tokens, tokenizer.eos, beam_size
    )
    for text, added in zip(texts, found, strict=True):
      print(text + Pieces(tokenizer.decode, stop).add(added, last=True))
    return
  pieces = sampling.stream(
    config,
    variables,
    prompts,
    tokens,
    how,
    tokenizer.eos,
    policy,
    every=EVERY if len(prompts) == 1 else tokens,
  )
  if len(prompts) > 1:
    for text, added in zip(texts, next(pieces), strict=True):
      print(text + Pieces(tokenizer.decode, stop).add(added, last=True))
    return
  one, before = Pieces(tokenizer.decode, stop), texts[0]
  for (added,) in pieces:
    _say(before + one.add(added))
    before = ''
    if one.over:
      break
  _say(one.add(added, last=True) + '\n')


def _say(text: str) -> None:
  sys.stdout.write(text)
  sys.stdout.flush()
