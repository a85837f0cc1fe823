"""Quality against depth: one trained run, read after so many loops.

For every second number of loops, and for some criteria of when a token may
leave: bits per byte, top-1 accuracy and mean loops of a part of the validation
split, and loops per token while greedy texts are written. `probability:0` lets
every token leave after its first loop.

Command: python experiments/depth/curve.py WORKDIR [BATCHES]
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from shared_tfm import config as configs
from shared_tfm.config import Config
from shared_tfm.config.loops import loops
from shared_tfm.infer.batching import Batcher, Request
from shared_tfm.tasks import prepare
from shared_tfm.train import loop, programs

EXITS = (
  *('probability:0', 'probability:0.5', 'probability:0.8'),
  *('entropy:0.2', 'kl:0.1', 'kl:0.01', 'latent:0.1', 'argmax:0'),
)
PROMPTS = ('def main(', 'import ', 'class ', '  return ', '# ', 'for i in ')


def main(workdir: str, batches: str = '16') -> None:
  """Prints a Markdown table."""
  config, state = loop.load(Path(workdir), 'best')
  dataset = prepare(config, Path(workdir))
  variables = {'params': state.params, **state.variables}
  times = loops(config.model).times
  rows: list[tuple[str, Config]] = [
    (f'{number} loops', configs.with_loops(config, number))
    for number in range(2, times + 1, 2)
  ]
  rows += [(each, configs.with_exit(config, each)) for each in EXITS]
  print('| read after | bits/byte | top-1 | loops | loops, writing |')
  print('|:--|--:|--:|--:|--:|')
  for name, changed in rows:
    compiled = programs.programs(changed)
    scores = programs.evaluate(compiled, state, dataset, int(batches))
    mean = scores.get('loops', float(loops(changed.model).times))
    written = _written(changed, variables, dataset.tokenizer)
    print(
      f'| {name} | {scores["bits_per_byte"]:.3f} | {scores["accuracy"]:.3f}'
      f' | {mean:.2f} | {written:.2f} |',
      flush=True,
    )


def _written(config: Config, variables: Any, tokenizer: Any) -> float:
  """Loops of a token of texts that are written, the first of each left out."""
  batcher = Batcher(config, variables, len(PROMPTS), config.model.max_len)
  for prompt in PROMPTS:
    batcher.add(Request(np.asarray(tokenizer.encode(prompt)), 100))
  done = batcher.drain()
  return sum(each.loops for each in done) / sum(
    len(each.tokens) - 1 for each in done
  )


if __name__ == '__main__':
  main(*sys.argv[1:])
