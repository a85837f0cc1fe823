"""Generation with weights and a cache in fewer bits."""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rows import Plan, Row, compared
from benchmarks.sections.generate import MODEL, PROMPT, SMALL, TOKENS
from benchmarks.turns import Run, measured
from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.infer.latency import Generator
from shared_tfm.model import build

INTEGERS = {'store': 'integers'}
FORMS: dict[str, dict[str, Any]] = {
  'float32': {},
  'int8': {'weights': 'int8', **INTEGERS},
  'int4:64': {'weights': 'int4:64', **INTEGERS},
  'int8, cache int8': {'weights': 'int8', 'cache': 'int8', **INTEGERS},
}


CASES = (('all', 1), ('all', 8), ('none', 1))


def rows(plan: Plan) -> Iterator[Row]:
  """The time that float32 takes over that of fewer bits, greedy.

  A GPT-2-small whose layers share their weights, or have their own; prompts of
  32 tokens, 64 more. Stored rows are whole numbers, and are widened at every
  visit. Below 1 fewer bits are slower.
  """
  for sharing, batch in CASES[: 1 if plan.quick else None]:
    taken = measured(functools.partial(_case, plan, sharing, batch), plan.few)
    for form in list(FORMS)[1:]:
      described = accounting.describe(_config(plan, sharing, form))
      yield compared(
        f'{sharing}, batch {batch}, {form}',
        taken,
        'float32',
        form,
        weight_bytes=described['weight_bytes'],
      )


def _config(plan: Plan, sharing: str, form: str) -> configs.Config:
  model = {**MODEL, **(SMALL if plan.quick else {})}
  model |= {'sharing': {'layer': sharing}, 'quantise': FORMS[form]}
  return configs.cross({'model': model})


def _case(plan: Plan, sharing: str, batch: int) -> Iterator[tuple[str, Run]]:
  random = np.random.default_rng(0)
  for form in FORMS:
    config = _config(plan, sharing, form)
    prompts = random.integers(0, config.model.vocab_size, (batch, PROMPT))
    made = build(config)
    init = jax.jit(
      lambda key, made=made: made.init(key, jnp.zeros((1, 1), int))
    )
    variables = nn.unbox(init(jax.random.key(0)))
    yield form, Generator(config, variables, prompts, TOKENS).run
