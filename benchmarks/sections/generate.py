"""Generation beside Hugging Face's, of the same weights."""

import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rows import NotHere, Plan, Row, compared
from benchmarks.turns import Run, measured
from shared_tfm import config as configs
from shared_tfm.compress.hugging_face import writing
from shared_tfm.infer.latency import Generator
from shared_tfm.model import build

PROMPT, TOKENS = 32, 64
MODEL = {  # GPT-2-small's sizes, one layer's weights for all twelve
  'num_layers': 12,
  'd_model': 768,
  'num_heads': 12,
  'vocab_size': 50257,
  'max_len': 1024,
  'activation': 'gelu_tanh',
  'sharing': {'layer': 'all'},
}
SMALL = {'num_layers': 2, 'd_model': 32, 'num_heads': 2, 'vocab_size': 64}


def rows(plan: Plan) -> Iterator[Row]:
  """The time that `generate` of transformers takes over ours, greedy.

  A GPT-2-small whose layers share their weights; what transformers runs is its
  export, each layer with weights of its own. Prompts of 32 tokens, 64 more.
  """
  model = {**MODEL, **(SMALL if plan.quick else {})}
  config = configs.cross({'model': model})
  made = build(config)
  init = jax.jit(lambda key: made.init(key, jnp.zeros((1, 1), jnp.int32)))
  params = jax.device_get(nn.unbox(init(jax.random.key(0))))
  theirs = exported(config, params['params'])
  for batch in (1, 16)[: 1 if plan.quick else None]:
    case = functools.partial(_case, config, params, theirs, batch)
    taken = measured(case, plan.few)
    yield compared(f'batch {batch}', taken, 'transformers', 'ours')


def exported(config: Any, params: Any) -> Any:
  """The same network as transformers has it, each layer with its own weights.

  Raises:
    NotHere: without PyTorch and transformers.
  """
  try:
    import torch
    import transformers
  except ImportError as error:
    raise NotHere(f'{error}; `./setup.sh peers` installs it') from error
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / 'gpt2'
    writing.write(config, params, {}, out)
    return transformers.GPT2LMHeadModel.from_pretrained(out).eval()


def generate(theirs: Any, prompts: np.ndarray, tokens: int) -> Any:
  """What `generate` of transformers makes of them: greedy, (B, L + tokens)."""
  import torch

  given = torch.tensor(prompts)
  with torch.no_grad():
    return theirs.generate(
      given,
      attention_mask=torch.ones_like(given),
      do_sample=False,
      min_new_tokens=tokens,
      max_new_tokens=tokens,
      pad_token_id=0,
    )


def _case(
  config: Any, params: Any, theirs: Any, batch: int
) -> Iterator[tuple[str, Run]]:
  random = np.random.default_rng(0)
  prompts = random.integers(0, config.model.vocab_size, (batch, PROMPT))
  ours = Generator(config, jax.device_put(params), prompts, TOKENS)
  run = functools.partial(generate, theirs, prompts, TOKENS)
  same = (run().numpy() == ours.run())[:, PROMPT:].mean()
  assert same > 0.9, f'only {same:.0%} of the tokens are the same'
  yield 'ours', ours.run
  yield 'transformers', run
