"""Two libraries' EM and F1 of many answers, for test_squad.py to compare with.

torchmetrics has version 1.1 of SQuAD's script, and version 4 of transformers
has 2.0. The project does not run on them: one needs PyTorch, and version 5 of
the other has no scores any more. So what they say lies in
tests/golden/squad_scores.json, which this script writes anew:

    pip install torch torchmetrics 'transformers<5'
    python tests/squad_peers.py
"""

import json
import pathlib
import random

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'squad_scores.json'
WORDS = (
  *('a', 'an', 'the', 'The', 'A', 'theory', 'Paris', 'paris', 'U.S.', '1,000'),
  *('rock-and-roll', "King's", 'Zürich', 'ÉTÉ', '«oui»', '—', '.', '!', '$5'),
  *('twenty', 'one', 'of', 'naïve', 'co-op', 'İ', 'straße', '10%', '\u00a0'),
)
SPACES = (' ', ' ', ' ', '  ', '\t', '\n')


def text(draw: random.Random, most: int) -> str:
  """Up to `most` words, and what may stand between them."""
  count = draw.randint(0, most)
  return ''.join(
    draw.choice(WORDS) + draw.choice(SPACES) for _ in range(count)
  ).strip(' ')


def cases() -> list[tuple[str, list[str]]]:
  """Answers given, and one to three right ones; many have words in common."""
  draw, found = random.Random(0), []
  for _ in range(400):
    answers = [text(draw, 6) for _ in range(draw.randint(1, 3))]
    given = text(draw, 6)
    if draw.random() < 0.5:  # a part of a right one, shuffled now and then
      words = draw.choice(answers).split()
      if draw.random() < 0.3:
        draw.shuffle(words)
      given = ' '.join(words[: draw.randint(0, len(words))])
    found.append((given, answers))
  return found


def main() -> None:
  """Writes the file."""
  from torchmetrics.functional.text import squad
  from transformers.data.metrics import squad_metrics

  found = []
  for given, answers in cases():
    first = squad(
      {'prediction_text': given, 'id': '0'},
      {'answers': {'answer_start': [0], 'text': answers}, 'id': '0'},
    )
    second = [
      max(score(answer, given) for answer in answers)
      for score in (squad_metrics.compute_exact, squad_metrics.compute_f1)
    ]
    found.append(
      {
        'given': given,
        'answers': answers,
        'version_1': [float(first['exact_match']), float(first['f1'])],
        'version_2': [100 * float(score) for score in second],
      }
    )
  lines = ',\n'.join(map(json.dumps, found))
  GOLDEN.write_text(f'[\n{lines}\n]\n')


if __name__ == '__main__':
  main()
