"""The one best text that beam search finds, for whoever wants no more."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from shared_tfm.config import Config
from shared_tfm.errors import need
from shared_tfm.infer.beam import beam_search, continuations, until
from shared_tfm.infer.sampling import check, padded


def of_source(
  config: Config, variables: Any, source: np.ndarray, eos: int, size: int = 0
) -> np.ndarray:
  """The best text of one source, as the config's task would have it.

  Args:
    config: of an encoder-decoder.
    variables: the model's, 'params' among them.
    source: token ids.
    eos: the token that texts begin and end with.
    size: of the beam; 0: the task's.

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
    size or task.beam_size,
    task.length_penalty,
  )
  return until(np.asarray(tokens_1KL[0, 0]), eos)


def of_prompts(
  config: Config,
  variables: Any,
  prompts: Sequence[np.ndarray],
  tokens: int,
  eos: int,
  size: int,
) -> list[np.ndarray]:
  """The best continuation of each prompt, with the task's length penalty.

  Args:
    config: of a decoder.
    variables: the model's, 'params' among them.
    prompts: token ids, at least one each.
    tokens: the most to add.
    eos: the token at which a text ends.
    size: of the beam.

  Returns:
    Token ids without the eos.

  Raises:
    BadInput: as `sampling.generate`.
  """
  check(config, prompts, tokens)
  found_BKL, _ = continuations(
    config,
    variables,
    padded(prompts, config.model.max_len - tokens),
    np.array([len(prompt) for prompt in prompts], np.int32),
    eos,
    tokens,
    size,
    config.task.length_penalty,
  )
  return [until(tokens_L, eos) for tokens_L in np.asarray(found_BKL[:, 0])]
