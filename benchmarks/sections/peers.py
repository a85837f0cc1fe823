"""Our steps beside those of Hugging Face, x-transformers and PyTorch."""

from collections.abc import Iterator

from benchmarks.rows import NotHere, Plan, Row, compared
from benchmarks.turns import apart


def rows(plan: Plan) -> Iterator[Row]:
  """A peer's time over ours, of the cases of `benchmarks/peers.py`.

  Above 1 we are faster; steps are whole, AdamW and metrics among them. Of
  'products' both multiply the same matrices, which is what the machine can do.
  Each has a process of its own; glibc keeps our freed memory, as in the command
  (shared_tfm/heap.py), and gives PyTorch's back, as is its default.
  """
  try:
    from benchmarks import peers
  except ImportError as error:
    why = str(error).split('\n')[0]
    raise NotHere(f'{why}; `./setup.sh peers` installs it') from error
  for name, case in list(peers.CASES.items())[: 1 if plan.quick else None]:
    taken = apart(case, plan.rounds)
    for peer in taken:
      if peer != 'ours':
        yield compared(f'{name}, {peer}', taken, peer, 'ours')
