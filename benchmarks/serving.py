"""Tokens per second of a server that is running, by how many ask at a time.

Every asker waits for its answer and asks again. Prompts and lengths are drawn
once; each number of askers gets the same ones.

Command: .venv/bin/python -m shared_tfm serve --workdir=RUN --rows=16, and
  .venv/bin/python -m benchmarks.serving [--url=...] [--requests=N] [--tokens=N]
"""

import argparse
import concurrent.futures
import time
from collections.abc import Sequence

import numpy as np
import openai


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a Markdown table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--url', default='http://127.0.0.1:8000/v1')
  parser.add_argument('--requests', type=int, default=64)
  parser.add_argument('--tokens', type=int, default=64, help='at most, of each')
  parser.add_argument('--askers', type=int, nargs='+', default=[1, 4, 16])
  args = parser.parse_args(argv)
  client = openai.OpenAI(base_url=args.url, api_key='none', max_retries=0)
  (model,) = client.models.list()
  random = np.random.default_rng(0)
  texts = 'def ', 'import ', 'return ', 'class '
  asked = [
    (texts[number % 4], int(random.integers(args.tokens // 4, args.tokens + 1)))
    for number in range(args.requests)
  ]

  def ask(prompt_and_tokens: tuple[str, int]) -> int:
    prompt, tokens = prompt_and_tokens
    done = client.completions.create(
      model=model.id, prompt=prompt, max_tokens=tokens, temperature=0
    )
    assert done.usage is not None
    return done.usage.completion_tokens

  ask(asked[0])
  print('| at a time | tokens/s | seconds | tokens |\n|--:|--:|--:|--:|')
  for askers in args.askers:
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(askers) as pool:
      tokens = sum(pool.map(ask, asked))
    seconds = time.perf_counter() - begin
    print(f'| {askers} | {tokens / seconds:,.0f} | {seconds:.1f} | {tokens} |')


if __name__ == '__main__':
  main()
