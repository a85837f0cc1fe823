"""Batches whose tokens leave the loop at different depths."""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rows import NotHere, Plan, Row, compared
from benchmarks.sections import generate
from benchmarks.turns import Run, measured
from shared_tfm import config as configs
from shared_tfm.config import Depth
from shared_tfm.infer.batching import Batcher, Done, Request
from shared_tfm.model import build

MODEL = {
  'num_layers': 12,
  'd_model': 512,
  'num_heads': 8,
  'vocab_size': 1024,
  'max_len': 256,
  'sharing': {'layer': 'all'},
}
SMALL = {'num_layers': 4, 'd_model': 32, 'num_heads': 2, 'vocab_size': 64}
REQUESTS, ROWS = 32, 8


def rows(plan: Plan) -> Iterator[Row]:
  """Batching by tokens over batching by depth, the same requests and texts.

  Where tokens that have left the loop wait for the deepest of their batch, over
  where they do not. Weights are random; the threshold of the criterion sets the
  mix of depths, of which the mean is told. 'transformers' is `generate` of the
  exported network, which runs all loops, on batches of as many requests in the
  order they came; a batch ends with its longest. Its time is over ours, too.
  """
  for threshold in (0.08, 0.12, 0.2)[: 1 if plan.quick else None]:
    model = {**MODEL, **(SMALL if plan.quick else {})}
    depth = {'criterion': 'latent', 'threshold': threshold}
    config = configs.cross({'model': {**model, 'depth': depth}})
    made = build(config)
    blank = jnp.zeros((1, 1), jnp.int32)
    variables = nn.unbox(jax.jit(made.init)(jax.random.key(0), blank))
    found: dict[str, list[Done]] = {}
    case = functools.partial(_case, config, variables, found)
    taken = measured(case, plan.few)
    done = found['ours']
    assert sorted(_told(done)) == sorted(_told(found['by tokens']))
    tokens = sum(len(each.tokens) - 1 for each in done)
    loops = sum(each.loops for each in done) / max(tokens, 1)
    for name in list(taken)[1:]:
      case = f'threshold {threshold}, {name}'
      yield compared(case, taken, name, 'ours', mean_loops=loops)


def drawn(vocab: int) -> list[Request]:
  """Prompts of 8 tokens, each to be continued by 8 to 47."""
  random = np.random.default_rng(0)
  return [
    Request(random.integers(0, vocab, 8), int(random.integers(8, 48)))
    for _ in range(REQUESTS)
  ]


def _case(
  config: Any, variables: Any, found: dict[str, list[Done]]
) -> Iterator[tuple[str, Run]]:
  requests = drawn(config.model.vocab_size)
  for name, together in (('ours', False), ('by tokens', True)):

    def run(name: str = name, together: bool = together) -> None:
      batcher = Batcher(config, variables, ROWS, 64, together=together)
      for request in requests:
        batcher.add(request)
      found[name] = batcher.drain()

    yield name, run
  all_loops = dataclasses.replace(config.model, depth=Depth())
  try:
    theirs = generate.exported(
      dataclasses.replace(config, model=all_loops), variables['params']
    )
  except NotHere as error:
    print(error, file=sys.stderr)
    return

  def in_batches() -> None:
    for i in range(0, REQUESTS, ROWS):
      these = requests[i : i + ROWS]
      prompts = np.stack([each.prompt for each in these])
      generate.generate(theirs, prompts, max(each.tokens for each in these))

  yield 'transformers', in_batches


def _told(done: list[Done]) -> list[tuple[int, tuple[int, ...]]]:
  return [(each.number, tuple(each.tokens.tolist())) for each in done]
