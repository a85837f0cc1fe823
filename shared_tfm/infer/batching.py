"""Continuous batching: requests join and leave a batch at any token, or loop.

A tick adds a token to every text of the batch. A text that is over makes room
at once, and none waits for others to end.

In a batch whose tokens leave the loop at different depths, those that have left
would wait for the deepest. Here they do not: a tick runs the looped core once,
for tokens at whatever loop each has come to, and a text whose token has left
begins with its next one, or makes room for another request. (What
Mixture-of-Recursions, 2507.10524, section 4.2, and Relaxed Recursive
Transformers, 2410.20672, section 3.6, call continuous depth-wise batching.)
"""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.config import Config
from shared_tfm.errors import need
from shared_tfm.infer import sampling
from shared_tfm.infer.choice import Choice, Sampling
from shared_tfm.infer.decoding import begun
from shared_tfm.infer.ticks import Rows, joined, ticked
from shared_tfm.model import build, ticking


@dataclasses.dataclass(frozen=True)
class Request:
  """A prompt to be continued.

  Attributes:
    prompt: token ids, at least one.
    tokens: the most to add.
    how: they are chosen.
  """

  prompt: np.ndarray
  tokens: int
  how: Sampling = sampling.GREEDY


@dataclasses.dataclass
class Done:
  """A request that is over.

  Attributes:
    number: of the request, as `Batcher.add` gave it.
    tokens: that were added, an eos with them.
    loops: how many were run for them, the prompt's not counted.
  """

  number: int
  tokens: np.ndarray
  loops: int


class Batcher:
  """Requests come in, tick after tick is run, and what is over comes out.

  What a request gets is what it would get alone (`decoding.continued`): the
  others of its batch change none of its numbers but by rounding.
  """

  def __init__(
    self,
    config: Config,
    variables: Any,
    rows: int,
    places: int,
    eos: int = -1,
    policy: str = 'visit',
    together: bool = False,
  ) -> None:
    """An empty batch.

    Args:
      config: of a decoder. Batches are along depth where `ticking.fits`.
      variables: the model's, 'params' among them.
      rows: how many texts at a time.
      places: the most tokens of a text, its prompt with them.
      eos: the token at which a text ends; -1: none.
      policy: what visits keep apart; visit or owner, see model/kept.py.
      together: whether tokens that have left the loop wait for all others, as
        in batching by tokens; where a tick runs all of the model, they do.

    Raises:
      BadInput: a model, a policy or a size that does not fit.
    """
    sampling.check_model(config)
    along_depth = ticking.fits(config.model)
    need(
      policy != 'first' or not along_depth,
      'a cache per first is not for several depths',
    )
    need(rows > 0, f'the batch needs at least 1 row, got {rows}')
    need(
      1 < places <= config.model.max_len,
      f'places must be 2 to model.max_len {config.model.max_len}, got {places}',
    )
    self.config, self.variables = config, variables
    self.places, self.policy, self.together = places, policy, together
    self.eos = jnp.int32(eos)
    self.waiting: collections.deque[tuple[int, Request]] = collections.deque()
    self._numbers: list[int | None] = [None] * rows
    self._starts = [0] * rows
    self._count = 0
    none_B = jnp.zeros(rows, jnp.int32)
    rows_of_none = Rows(
      text_BM=jnp.zeros((rows, places), jnp.int32),
      length_B=none_B + 1,
      end_B=none_B,
      over_B=jnp.ones(rows, bool),
      loops_B=none_B,
      choice=Choice.of([sampling.GREEDY] * rows),
      running=ticking.begin(config.model, rows) if along_depth else None,
      kept=build(config).apply({}, rows, places, 0, policy, method='empty'),
    )
    # Of buffers of their own, as each is given away.
    self._rows = jax.tree.map(jnp.copy, rows_of_none)

  def add(self, request: Request) -> int:
    """Puts a request behind those that wait.

    Returns:
      Its number.

    Raises:
      BadInput: it is out of range; nothing has changed.
    """
    self.check(request)
    self.waiting.append((self._count, request))
    self._count += 1
    return self._count - 1

  def check(self, request: Request) -> None:
    """Raises BadInput where a request is out of range."""
    sampling.check(self.config, [request.prompt], request.tokens)
    request.how.check(self.config.model.vocab_size)
    size = len(request.prompt) + request.tokens
    need(
      size <= self.places,
      f'a prompt of {len(request.prompt)} tokens and {request.tokens} more'
      f' exceed the {self.places} places of a text',
    )

  @property
  def busy(self) -> bool:
    """Whether any request waits or runs."""
    return bool(self.waiting) or any(n is not None for n in self._numbers)

  def cancel(self, number: int) -> None:
    """Takes back a request, waiting or running; of others nothing changes."""
    self.waiting = collections.deque(
      each for each in self.waiting if each[0] != number
    )
    if number in self._numbers:
      row = self._numbers.index(number)
      over_B = self._rows.over_B.at[row].set(True)
      self._rows = self._rows.replace(over_B=over_B)
      self._numbers[row] = None

  def run(self, ticks: int = 8) -> Iterator[Done]:
    """Lets requests in where there is room, and runs some ticks.

    Args:
      ticks: at most; fewer where a row gets free and a request waits for one.

    Yields:
      What is over.
    """
    for row, number in enumerate(self._numbers):
      if number is None and self.waiting:
        self._let_in(row, *self.waiting.popleft())
    self._rows = ticked(
      self.config,
      self.variables,
      self._rows,
      self.eos,
      jnp.int32(ticks),
      jnp.bool_(bool(self.waiting)),
      self.together,
    )
    over_B, length_B, loops_B = jax.device_get(
      (self._rows.over_B, self._rows.length_B, self._rows.loops_B)
    )
    for row in map(int, np.flatnonzero(over_B)):
      number, start = self._numbers[row], self._starts[row]
      if number is not None:
        text_M = np.asarray(self._rows.text_BM[row])
        self._numbers[row] = None
        yield Done(number, text_M[start : length_B[row]], int(loops_B[row]))

  def drain(self) -> list[Done]:
    """Runs until nothing is left to do; what is over, in that order."""
    found: list[Done] = []
    while self.busy:
      found.extend(self.run())
    return found

  def progress(self) -> dict[int, np.ndarray]:
    """What has been added to each running request so far, by its number."""
    text_BM, length_B = jax.device_get(
      (self._rows.text_BM, self._rows.length_B)
    )
    return {
      number: text_BM[row, self._starts[row] : length_B[row]]
      for row, number in enumerate(self._numbers)
      if number is not None
    }

  def _let_in(self, row: int, number: int, request: Request) -> None:
    """Reads a prompt, and puts it into a free row."""
    length = len(request.prompt)
    texts = begun(
      self.config,
      self.variables,
      sampling.padded([request.prompt], self.places),
      jnp.full(1, length, jnp.int32),
      jnp.full(1, length + request.tokens, jnp.int32),
      self.places,
      self.policy,
    )
    choice = Choice.of([request.how])
    self._rows = joined(self._rows, jnp.int32(row), texts, choice, self.eos)
    self._numbers[row], self._starts[row] = number, length
