"""Which token comes next: the likeliest, or one that is drawn."""

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp

from shared_tfm.errors import need


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the tokens of a text are chosen.

  Scores are first changed by the penalty, then divided by the temperature, then
  cut by `top_k`, then by `top_p`, as `transformers` orders them.

  Attributes:
    temperature: that logits are divided by; 0 takes the likeliest token.
    top_k: draw among that many likeliest tokens; 0: among all.
    top_p: draw among the fewest likeliest tokens that have this probability
      together (nucleus sampling, 1904.09751, section 3.1); 1: among all.
    repetition_penalty: what positive logits of tokens that the text has already
      are divided by, and negative ones multiplied (1909.05858, section 4.1).
    seed: of what is drawn, together with the place in the text: neither other
      texts of a batch nor how often it was interrupted have a part in it.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  repetition_penalty: float = 1.0
  seed: int = 0

  def check(self, vocab_size: int) -> None:
    """Raises BadInput where a value is out of range."""
    need(
      0 <= self.temperature < math.inf,
      f'temperature must be at least 0, got {self.temperature}',
    )
    need(
      0 <= self.top_k <= vocab_size,
      f'top_k must be 0 to {vocab_size}, got {self.top_k}',
    )
    need(
      0 < self.top_p <= 1,
      f'top_p must be above 0 and at most 1, got {self.top_p}',
    )
    need(
      0 < self.repetition_penalty < math.inf,
      f'repetition_penalty must be above 0, got {self.repetition_penalty}',
    )
    need(0 <= self.seed < 2**32, f'seed must be 0 to 2^32 - 1, got {self.seed}')


class Choice(flax.struct.PyTreeNode):
  """`Sampling` of every text of a batch, as arrays (B,)."""

  temperature_B: jax.Array
  top_k_B: jax.Array
  top_p_B: jax.Array
  penalty_B: jax.Array
  seed_B: jax.Array

  @classmethod
  def of(cls, samplings: list[Sampling]) -> 'Choice':
    """One row for each."""
    return cls(
      jnp.array([s.temperature for s in samplings], jnp.float32),
      jnp.array([s.top_k for s in samplings], jnp.int32),
      jnp.array([s.top_p for s in samplings], jnp.float32),
      jnp.array([s.repetition_penalty for s in samplings], jnp.float32),
      jnp.array([s.seed for s in samplings], jnp.uint32),
    )


def choose(
  choice: Choice,
  logits_BV: jax.Array,
  text_BM: jax.Array,
  length_B: jax.Array,
) -> jax.Array:
  """The next token of every text, integers (B,).

  Args:
    choice: of each.
    logits_BV: float32.
    text_BM: the texts so far, prompts with them.
    length_B: how many tokens of each there are.
  """

  def penalised(logits_BV: jax.Array) -> jax.Array:
    rows_B1 = jnp.arange(len(text_BM))[:, None]
    there_BM = jnp.arange(text_BM.shape[1])[None] < length_B[:, None]
    seen_BV = jnp.zeros(logits_BV.shape, bool)
    seen_BV = seen_BV.at[rows_B1, text_BM].max(there_BM)
    by_B1 = choice.penalty_B[:, None]
    changed_BV = jnp.where(logits_BV > 0, logits_BV / by_B1, logits_BV * by_B1)
    return jnp.where(seen_BV, changed_BV, logits_BV)

  def drawn(logits_BV: jax.Array) -> jax.Array:
    logits_BV /= jnp.maximum(choice.temperature_B, 1e-6)[:, None]
    some = jnp.any((choice.top_k_B > 0) | (choice.top_p_B < 1))
    logits_BV = jax.lax.cond(some, cut, lambda x: x, logits_BV)
    return jax.vmap(draw)(choice.seed_B, length_B, logits_BV)

  def cut(logits_BV: jax.Array) -> jax.Array:
    order_BV = jnp.argsort(-logits_BV, axis=1, stable=True)
    sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=1)
    ranks_1V = jnp.arange(logits_BV.shape[1])[None]
    most_B1 = jnp.where(choice.top_k_B > 0, choice.top_k_B, ranks_1V.size)
    sorted_BV = jnp.where(ranks_1V < most_B1[:, None], sorted_BV, -jnp.inf)
    p_BV = jax.nn.softmax(sorted_BV, axis=1)
    before_BV = jnp.cumsum(p_BV, axis=1) - p_BV
    inside_BV = (before_BV < choice.top_p_B[:, None]) | (ranks_1V == 0)
    sorted_BV = jnp.where(inside_BV, sorted_BV, -jnp.inf)
    rows_B1 = jnp.arange(len(order_BV))[:, None]
    return jnp.zeros_like(sorted_BV).at[rows_B1, order_BV].set(sorted_BV)

  def draw(seed: jax.Array, place: jax.Array, logits_V: jax.Array) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), place)
    return jax.random.categorical(key, logits_V)

  greedy_B = choice.temperature_B == 0
  logits_BV = jax.lax.cond(
    jnp.any(choice.penalty_B != 1), penalised, lambda x: x, logits_BV
  )
  best_B = jnp.argmax(logits_BV, axis=1)
  return jax.lax.cond(
    jnp.all(greedy_B),
    lambda _: best_B,
    lambda x: jnp.where(greedy_B, best_B, drawn(x)),
    logits_BV,
  )
