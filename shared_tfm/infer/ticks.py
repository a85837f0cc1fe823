"""The texts of a batch on the device, tick after tick; see batching.py."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from shared_tfm.config import Config
from shared_tfm.infer.choice import Choice, choose
from shared_tfm.model import Transformer, build, ticking
from shared_tfm.model.rows import placed


class Rows(flax.struct.PyTreeNode):
  """The texts of the batch, on the device.

  Attributes:
    text_BM: tokens, prompts with them.
    length_B: how many there are.
    end_B: the length at which each is over.
    over_B: whether it is, or there is none.
    loops_B: how many loops were run.
    choice: how tokens are chosen.
    running: where the newest tokens are; None: a tick takes them through all
      of the model.
    kept: the model's keys and values.
  """

  text_BM: jax.Array
  length_B: jax.Array
  end_B: jax.Array
  over_B: jax.Array
  loops_B: jax.Array
  choice: Choice
  running: ticking.Running | None
  kept: Any

  @property
  def newest_B(self) -> jax.Array:
    """The last token of each, which no model has seen."""
    return self.text_BM[jnp.arange(len(self.length_B)), self.length_B - 1]


@functools.partial(jax.jit, donate_argnums=0)
def joined(
  rows: Rows, row: jax.Array, texts: Any, choice: Choice, eos: jax.Array
) -> Rows:
  """With a text that has begun, its first token chosen, in one of the rows.

  Args:
    rows: no longer to be used afterwards.
    row: a free one.
    texts: a batch of one.
    choice: how its tokens are chosen.
    eos: the token at which a text ends; -1: none.
  """
  place = texts.length_B[0]
  token_1 = choose(choice, texts.logits_BV, texts.text_BM, texts.length_B)
  token = token_1[0].astype(jnp.int32)
  length = place + 1

  def put(old: jax.Array, new: Any) -> jax.Array:
    return old.at[row].set(new)

  running = rows.running
  if running is not None:
    running = running.replace(loop_B=put(running.loop_B, 0))
  return rows.replace(
    text_BM=put(rows.text_BM, texts.text_BM[0].at[place].set(token)),
    length_B=put(rows.length_B, length),
    end_B=put(rows.end_B, texts.end_B[0]),
    over_B=put(rows.over_B, (token == eos) | (length >= texts.end_B[0])),
    loops_B=put(rows.loops_B, 0),
    choice=jax.tree.map(lambda a, b: put(a, b[0]), rows.choice, choice),
    running=running,
    kept=placed(rows.kept, texts.kept, row),
  )


@functools.partial(
  jax.jit, static_argnames=('config', 'together'), donate_argnames='rows'
)
def ticked(
  config: Config,
  variables: Any,
  rows: Rows,
  eos: jax.Array,
  ticks: jax.Array,
  awaited: jax.Array,
  together: bool,
) -> Rows:
  """Runs ticks until all is over, or a row is that somebody waits for.

  Args:
    config: of the model.
    variables: the model's.
    rows: no longer to be used afterwards.
    eos: as of `joined`.
    ticks: at most.
    awaited: whether somebody waits.
    together: whether no token begins before all have left the loop.
  """
  model = build(config)
  places = rows.text_BM.shape[1]
  before_B = rows.over_B

  def going(carry: tuple[Rows, jax.Array]) -> jax.Array:
    rows, count = carry
    freed = awaited & jnp.any(rows.over_B & ~before_B)
    return (count < ticks) & ~jnp.all(rows.over_B) & ~freed

  def tick(carry: tuple[Rows, jax.Array]) -> tuple[Rows, jax.Array]:
    rows, count = carry
    if rows.running is None:
      rows, left_B, logits_BV = _whole(model, variables, rows)
    else:
      rows, left_B, logits_BV = _loop(
        model, variables, rows, rows.running, together
      )
    token_B = choose(rows.choice, logits_BV, rows.text_BM, rows.length_B)
    token_B = token_B.astype(jnp.int32)
    numbers_B = jnp.arange(len(left_B))
    at_B = jnp.where(left_B, rows.length_B, places)
    length_B = rows.length_B + left_B
    ends_B = (token_B == eos) | (length_B >= rows.end_B)
    rows = rows.replace(
      text_BM=rows.text_BM.at[numbers_B, at_B].set(token_B, mode='drop'),
      length_B=length_B,
      over_B=rows.over_B | (left_B & ends_B),
    )
    return rows, count + 1

  return jax.lax.while_loop(going, tick, (rows, jnp.zeros((), jnp.int32)))[0]


def _whole(
  model: Transformer, variables: Any, rows: Rows
) -> tuple[Rows, jax.Array, jax.Array]:
  """Runs all of the model; which tokens have come through, and logits."""
  live_B, last_B = ~rows.over_B, rows.length_B - 1
  # The row of a text that is over must do something: it repeats its end.
  found: Any = model.apply(
    variables,
    rows.newest_B[:, None],
    last_B[:, None],
    jnp.ones((len(last_B), 1), bool),
    rows.kept,
    True,
    method='following',
  )
  logits_BV, loops_B, kept = found
  loops_B = rows.loops_B + jnp.where(live_B, loops_B, 0)
  return rows.replace(loops_B=loops_B, kept=kept), live_B, logits_BV


def _loop(
  model: Transformer,
  variables: Any,
  rows: Rows,
  running: ticking.Running,
  together: bool,
) -> tuple[Rows, jax.Array, jax.Array]:
  """Runs the core once; which tokens have left the loop, and logits."""
  live_B, loop_B = ~rows.over_B, running.loop_B
  if together:
    live_B &= (loop_B > 0) | jnp.all(rows.over_B | (loop_B == 0))
  found: Any = model.apply(
    variables,
    rows.newest_B,
    rows.length_B - 1,
    live_B,
    running,
    rows.kept,
    method='tick',
  )
  made, kept = found
  rows = rows.replace(
    loops_B=rows.loops_B + live_B, running=made.running, kept=kept
  )
  return rows, made.left_B, made.logits_BV
