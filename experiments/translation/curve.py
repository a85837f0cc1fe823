"""Scores against training time, from the logs of a comparison.

Command: python experiments/translation/curve.py WORKDIR [SCORE]
"""

import sys
from pathlib import Path

from shared_tfm.train import log


def curve(run: Path, score: str) -> list[tuple[int, float, float]]:
  """Steps, minutes of training (evaluation left out), and the score."""
  seconds, tokens, found = 0.0, 0, []
  for line in log.read(run):
    if line['kind'] == 'train':
      seconds += (line['tokens'] - tokens) / line['tokens_per_second']
      tokens = line['tokens']
    if line['kind'] == 'score':
      found.append((line['step'], seconds / 60, line[score]))
  return found


def main(workdir: str, score: str = 'bleu') -> None:
  """Prints a Markdown table of all runs under a folder."""
  print(f'| run | step | minutes | {score} |\n|---|---|---|---|')
  for config in sorted(Path(workdir).rglob('config.json')):
    for step, minutes, value in curve(config.parent, score):
      name = config.parent.relative_to(workdir)
      print(f'| {name} | {step} | {minutes:.1f} | {value:.2f} |')


if __name__ == '__main__':
  main(*sys.argv[1:])
