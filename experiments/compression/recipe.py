"""Share, prune, quantise, fine-tune: one recipe, and what each stage is worth.

Command: python -m experiments.compression.recipe FOLDER

Each stage is a run in FOLDER, made by the command that the table names from the
stage before; a stage that is there already is not made again. At the end all
stages generate by turns, and the table is printed.
"""

import dataclasses
import functools
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import Run, measured
from shared_tfm import accounting, tasks
from shared_tfm.__main__ import main as command
from shared_tfm.compress import begin, sources
from shared_tfm.infer.latency import Generator
from shared_tfm.train.programs import evaluate, programs

BASE = (
  *('train', '--config=configs/quickstart.py'),
  *('--config.model.d_model=128', '--config.model.num_heads=4'),
  *('--config.model.activation=gelu_tanh', '--config.train.num_steps=600'),
  *('--config.model.embed_scale=none', '--config.model.residual_scale=none'),
  *('--config.optimizer.learning_rate=2e-3', '--config.train.eval_every=100'),
)


def _tuned(steps: int) -> tuple[str, ...]:
  return (
    *('--tune', f'--config.train.num_steps={steps}'),
    '--config.optimizer.learning_rate=1e-3',
  )


@dataclasses.dataclass(frozen=True)
class Stage:
  """One step of the recipe.

  Attributes:
    name: of the run.
    source: of the run it is made from; '': none, it is trained.
    words: of the command, but for folders.
  """

  name: str
  source: str
  words: tuple[str, ...]


def _made(name: str, source: str, *words: str) -> Stage:
  return Stage(name, source, ('convert', *words))


BITS = '--quantise=int4:64'
STAGES = (
  Stage('dense', '', BASE),
  _made('longer', 'dense', *_tuned(600)),  # as much training as all stages
  _made('shared', 'dense', '--sharing=cycle:3', *_tuned(200)),
  _made('pruned', 'shared', '--prune=neurons:0.5', *_tuned(200)),
  _made('rounded', 'pruned', BITS),
  _made('tuned', 'pruned', BITS, *_tuned(200)),
  _made('stored', 'tuned', BITS),
)
SHOWN = [stage for stage in STAGES if stage.name != 'tuned']
PROMPT, TOKENS, ROUNDS = 32, 64, 9


def make(stage: Stage, folder: Path) -> None:
  """Runs a stage's command, where its run is not there."""
  there = folder / stage.name
  if (there / 'done').exists():
    return
  words = [*stage.words, f'--workdir={there}']
  if stage.source:
    words.append(f'--from={folder / stage.source}')
  print('python -m shared_tfm', *words, flush=True)
  if status := command(words):
    sys.exit(status)
  (there / 'done').touch()


def measure(folder: Path) -> Iterator[dict[str, Any]]:
  """What each stage weighs, computes, scores and takes."""
  found = [sources.load(folder / stage.name, 'latest') for stage in SHOWN]
  taken = measured(functools.partial(_turns, found), ROUNDS)
  for stage, source in zip(SHOWN, found, strict=True):
    config = source.config
    dataset = tasks.prepare(config, source.folder)
    state = begin.state_of(config, source.params, source.variables)
    scores = evaluate(programs(config), state, dataset, 0)
    described = accounting.describe(config)
    yield {
      'stage': stage.name,
      'stored': described['params']['stored'],
      'weight_bytes': described['weight_bytes'],
      'flops_per_token': described['flops_per_token']['forward'],
      'bits_per_byte': scores['bits_per_byte'],
      'seconds': taken[stage.name],
    }


def _turns(found: list[sources.Source]) -> Iterator[tuple[str, Run]]:
  random = np.random.default_rng(0)
  for source in found:
    vocab = source.config.model.vocab_size
    prompts = random.integers(0, vocab, (1, PROMPT))
    variables = {'params': source.params, **source.variables}
    run = Generator(source.config, variables, prompts, TOKENS).run
    yield source.folder.name, run


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
  """Lines of Markdown; times are a stage's over the first one's."""
  yield (
    '| stage | stored | bytes of weights | FLOPs/token | bits/byte | time |'
  )
  yield '|:--|--:|--:|--:|--:|--:|'
  for row in rows:
    pairs = zip(row['seconds'], rows[0]['seconds'], strict=True)
    each = sorted(a / b for a, b in pairs)
    time = f'{statistics.median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})'
    yield (
      f'| {row["stage"]} | {row["stored"]:,} | {row["weight_bytes"]:,}'
      f' | {row["flops_per_token"]:,} | {row["bits_per_byte"]:.3f} | {time} |'
    )


def main(folder: Path) -> None:
  """Makes what is missing, measures all, and prints the table."""
  for stage in STAGES:
    make(stage, folder)
  rows = list(measure(folder))
  (folder / 'recipe.json').write_text(json.dumps(rows, indent=1) + '\n')
  print(*table(rows), sep='\n')


if __name__ == '__main__':
  main(Path(sys.argv[1]))
