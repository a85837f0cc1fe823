"""Requests that are continued in one batch, and one after the other."""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.rows import Plan, Row, compared
from benchmarks.sections.depthwise import MODEL, ROWS, SMALL, drawn
from benchmarks.turns import Run, measured
from shared_tfm import config as configs
from shared_tfm.infer import sampling
from shared_tfm.infer.batching import Batcher
from shared_tfm.model import build


def rows(plan: Plan) -> Iterator[Row]:
  """One request after the other over continuous batching, the same texts.

  All tokens run all of the model. 32 requests of 8 to 47 tokens each, in a
  batch of 8 rows.
  """
  for scheme in ('none', 'cycle:3')[: 1 if plan.quick else None]:
    model = {**MODEL, **(SMALL if plan.quick else {})}
    config = configs.cross({'model': {**model, 'sharing': {'layer': scheme}}})
    blank = jnp.zeros((1, 1), jnp.int32)
    init = jax.jit(build(config).init)
    variables = nn.unbox(init(jax.random.key(0), blank))
    found: dict[str, list[list[int]]] = {}
    case = functools.partial(_case, config, variables, found)
    taken = measured(case, plan.few)
    assert found['ours'] == found['one by one']
    tokens = sum(map(len, found['ours']))
    yield compared(scheme, taken, 'one by one', 'ours', tokens=tokens)


def _case(
  config: Any, variables: Any, found: dict[str, list[list[int]]]
) -> Iterator[tuple[str, Run]]:
  requests = drawn(config.model.vocab_size)

  def batched() -> None:
    batcher = Batcher(config, variables, ROWS, 64)
    for request in requests:
      batcher.add(request)
    done = sorted(batcher.drain(), key=lambda each: each.number)
    found['ours'] = [each.tokens.tolist() for each in done]

  def alone() -> None:
    found['one by one'] = []
    for each in requests:
      prompts = [each.prompt]
      (added,) = sampling.generate(config, variables, prompts, each.tokens)
      found['one by one'].append(added.tolist())

  yield 'ours', batched
  yield 'one by one', alone
