"""Training steps of published size on a GPU, beside what it multiplies."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import ours
from benchmarks.rows import NotHere, Plan, Row, compared
from benchmarks.turns import Run, measured
from shared_tfm import accounting
from shared_tfm.config import Model
from shared_tfm.sharing import table

# A GPT-2 medium and a GPT-3 XL, by what they apply, and what they share.
COMMON = {
  'num_layers': 24,
  'num_heads': 16,
  'vocab_size': 32_000,
  'max_len': 2048,
  'activation': 'gelu_tanh',
  'dtype': 'bfloat16',
}
CLASSES: dict[str, dict[str, Any]] = {
  '350M': {**COMMON, 'd_model': 1024, 'sharing': {'layer': 'all'}},
  '1B': {**COMMON, 'd_model': 2048, 'sharing': {'layer': 'cycle:6'}},
}
QUICK = {
  **{'num_layers': 12, 'd_model': 32, 'num_heads': 2},
  **{'vocab_size': 258, 'max_len': 16},
}
ROWS = 8  # of 2048 tokens
SQUARE = 16_384  # what large products are of
REMATS = 'none', 'dots', 'full'
VARIANTS: dict[str, dict[str, Any]] = {
  '': {},
  ', float8': {'dtype': 'float8'},
  ', XLA': {'attention_kernel': 'xla'},
}


def rows(plan: Plan) -> Iterator[Row]:
  """Model FLOPs utilisation of decoders at L = 2048 in bfloat16, and PyTorch.

  24 visits each: '350M' has one layer of D = 1024 that all visits share, '1B'
  has six of D = 2048, each read four times. They are named by what they apply,
  which is what a step computes; what they store is what an optimizer holds.
  'utilisation' is the FLOPs of `describe` (every query meets every key;
  recomputation not counted) in a second, over those of bfloat16 products of
  16,384 that take turns with the steps. 'PyTorch' is the same decoder by
  torch.compile, scaled_dot_product_attention and autocast, its time over ours:
  above 1 we are faster. 'float8' is our own step in bfloat16 over that of
  model.dtype=float8: above 1 eight bits are faster. 'attention' is it with
  attention by XLA over it with the fused one: above 1 that is faster. What does
  not fit into memory is left out.
  """
  if jax.default_backend() != 'gpu' and not plan.quick:
    raise NotHere('no GPU here')
  square = 256 if plan.quick else SQUARE
  for name, model in list(CLASSES.items())[-1 if plan.quick else 0 :]:
    given = {**model, **QUICK} if plan.quick else model
    taken = measured(_contenders(given, square, plan.quick), plan.rounds)
    made = ours.programs(given, ROWS)
    counts = accounting.parameters(made.config.model)
    facts = {f'{n}, M': counts[n] / 1e6 for n in ('stored', 'applied')}
    for remat in REMATS:
      who = f'ours, {remat}'
      if who not in taken:
        continue  # what did not fit, and was said to
      times = ours.flops(made) / (2 * square**3)
      case = f'{name}, {remat}'
      yield compared(
        f'{case}, utilisation', taken, 'products', who, times, **facts
      )
      if 'PyTorch' in taken:
        yield compared(f'{case}, PyTorch', taken, 'PyTorch', who)
      if (eight := f'{who}, float8') in taken:
        yield compared(f'{case}, float8', taken, who, eight)
      if (plain := f'{who}, XLA') in taken:
        yield compared(f'{case}, attention', taken, plain, who)


def _contenders(
  model: dict[str, Any], square: int, quick: bool
) -> Callable[[], Iterator[tuple[str, Run]]]:
  """Products, our step and PyTorch's, each made when it first runs."""

  def case() -> Iterator[tuple[str, Run]]:
    a = jax.random.normal(jax.random.key(0), (square, square), jnp.bfloat16)
    multiply = jax.jit(jnp.matmul)
    yield 'products', lambda: jax.block_until_ready(multiply(a, a))
    for remat in REMATS:
      for who, changes in VARIANTS.items():
        made = ours.programs({**model, 'remat': remat, **changes}, ROWS)
        run = _lazily(lambda made=made: ours.step(made))
        yield f'ours, {remat}{who}', run
    try:
      import torch
    except ImportError:
      return
    if torch.cuda.is_available() or quick:
      yield 'PyTorch', _lazily(lambda: _torch(made.config.model))

  return case


def _lazily(make: Callable[[], Run]) -> Run:
  """Makes it when it first runs, where what fails is left out."""
  made: list[Run] = []

  def run() -> Any:
    if not made:
      made.append(make())
    return made[0]()

  return run


def _torch(model: Model) -> Run:
  """PyTorch's training step of the same decoder."""
  import torch

  from benchmarks import torch_decoder

  owners: Sequence[int] = table.owners(model.sharing.layer, model.num_layers)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  network = torch_decoder.Decoder(model, owners).to(device)
  return torch_decoder.step(network, ROWS, model, ours.RATE, device)
