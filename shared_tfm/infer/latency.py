"""How fast a config generates on this machine; no training is needed for it."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm import accounting
from shared_tfm.config import Config
from shared_tfm.errors import need
from shared_tfm.infer import sampling
from shared_tfm.infer.choice import Choice
from shared_tfm.infer.decoding import Texts, begun, continued
from shared_tfm.model import build

PERCENTILES = (50, 90, 99)


@dataclasses.dataclass(frozen=True)
class Latency:
  """What was measured; times in seconds.

  Attributes:
    batch: texts at a time.
    prompt: tokens of each prompt.
    tokens: that were added to each.
    rounds: how often.
    first: percentiles of the time to a first token: the prompt read, and one
      token chosen.
    token: percentiles of the time of each further token, seen one by one.
    tokens_per_second: of all texts together, when nobody looks in between;
      the median over the rounds.
    weight_bytes: of the stored parameters.
    cache_bytes: of what visits keep.
    compile_seconds: of the programs, before all that.
  """

  batch: int
  prompt: int
  tokens: int
  rounds: int
  first: dict[int, float]
  token: dict[int, float]
  tokens_per_second: float
  weight_bytes: int
  cache_bytes: int
  compile_seconds: float


class Generator:
  """Greedy continuations of one prompt after another of the same shape."""

  def __init__(
    self, config: Config, variables: Any, prompts_BT: np.ndarray, tokens: int
  ) -> None:
    """Takes what stays the same.

    Args:
      config: of a decoder.
      variables: the model's, 'params' among them.
      prompts_BT: token ids.
      tokens: to be added to each.

    Raises:
      BadInput: as `sampling.generate`.
    """
    sampling.check(config, list(prompts_BT), tokens)
    self.config, self.variables, self.tokens = config, variables, tokens
    self.prompts_BT = jnp.asarray(prompts_BT, jnp.int32)
    batch, self.length = prompts_BT.shape
    self.choice = Choice.of([sampling.GREEDY] * batch)

  def begin(self) -> Texts:
    """Reads the prompts."""
    places = -(-(self.length + self.tokens) // sampling.ROUND) * sampling.ROUND
    length_B = jnp.full(len(self.prompts_BT), self.length, jnp.int32)
    return begun(
      self.config,
      self.variables,
      self.prompts_BT,
      length_B,
      length_B + self.tokens,
      places,
    )

  def go_on(self, texts: Texts, tokens: int) -> Texts:
    """Adds tokens, and waits for them."""
    none, most = jnp.int32(-1), jnp.int32(tokens)
    texts = continued(
      self.config, self.variables, texts, self.choice, none, most
    )
    return jax.block_until_ready(texts)

  def run(self) -> np.ndarray:
    """All of it: the texts, prompts with them."""
    texts = self.go_on(self.begin(), self.tokens)
    return np.asarray(texts.text_BM[:, : self.length + self.tokens])


def measure(
  config: Config, batch: int, prompt: int, tokens: int, rounds: int
) -> Latency:
  """Times generation with weights and prompts that are made up.

  Args:
    config: of a decoder.
    batch: texts at a time.
    prompt: tokens of each prompt.
    tokens: to add to each, at least 2.
    rounds: how often to repeat it.

  Raises:
    BadInput: a number is too small, or a text too long for the model.
  """
  for name, value, least in [
    ('batch', batch, 1),
    ('prompt_tokens', prompt, 1),
    ('tokens', tokens, 2),
    ('steps', rounds, 1),
  ]:
    need(value >= least, f'--{name} must be at least {least}, got {value}')
  random = np.random.default_rng(0)
  prompts = random.integers(0, config.model.vocab_size, (batch, prompt))
  sampling.check(config, list(prompts), tokens)
  blank = jnp.zeros((1, 1), jnp.int32)
  variables = jax.jit(build(config).init)(jax.random.key(0), blank)
  generator = Generator(config, variables, prompts, tokens)
  start = time.perf_counter()
  kept = generator.begin().kept
  generator.run()
  compiled = time.perf_counter() - start
  first, token, whole = [], [], []
  for _ in range(rounds):
    start = time.perf_counter()
    generator.run()
    whole.append(time.perf_counter() - start)
    start = time.perf_counter()
    texts = generator.go_on(generator.begin(), 1)
    first.append(time.perf_counter() - start)
    for _ in range(tokens - 1):
      start = time.perf_counter()
      texts = generator.go_on(texts, 1)
      token.append(time.perf_counter() - start)
  return Latency(
    batch,
    prompt,
    tokens,
    rounds,
    _percentiles(first),
    _percentiles(token),
    batch * tokens / float(np.median(whole)),
    accounting.describe(config)['weight_bytes'],
    sum(leaf.nbytes for leaf in jax.tree.leaves(kept)),
    compiled,
  )


def _percentiles(seconds: list[float]) -> dict[int, float]:
  return {p: float(np.percentile(seconds, p)) for p in PERCENTILES}
