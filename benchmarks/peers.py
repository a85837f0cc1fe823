"""Our steps beside those of Hugging Face, x-transformers and PyTorch.

Of each case every contender takes its turn in every round, in one process, so
that whatever else the machine does meets all of them. What is printed is the
median over the rounds, and first of all a ratio: the peer's median over ours,
above 1 where we are faster.

The steps are whole: forward, loss, backward, AdamW. Ours is what `train` runs.
PyTorch has float32 parameters and its autocast where the case says bfloat16,
which is what our steps do; its forward pass alone has bfloat16 parameters.

Command: ./setup.sh peers, once; then
  .venv/bin/python -m benchmarks.peers [--rounds=N] [CASE ...]
"""

import argparse
import functools
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
import x_transformers

from benchmarks import ours
from benchmarks.turns import Case, Run, measured, rows
from shared_tfm.model import build
from shared_tfm.train.programs import Programs

NARROW = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
ALBERT = {
  'family': 'encoder',
  'num_layers': 12,
  'd_model': 768,
  'num_heads': 12,
  'd_ff': 3072,
  'embed_dim': 128,
  'vocab_size': 30_000,
  'max_len': 128,
  'type_vocab_size': 2,
  'position': 'learned',
  'activation': 'gelu_tanh',
  'norm_position': 'post',
  'embed_norm': True,
  'norm_eps': 1e-12,
  'remat': 'dots',
  'sharing': {'layer': 'all'},
}
DECODER = {
  'num_layers': 12,
  'd_model': 768,
  'num_heads': 12,
  'd_ff': 3072,
  'vocab_size': 32_000,
  'max_len': 256,
  'position': 'learned',
  'activation': 'gelu_tanh',
  'remat': 'dots',
}
LLAMA = {
  'activation': 'swiglu',
  'd_ff': 2048,
  'norm': 'rmsnorm',
  'position': 'rotary',
  'use_bias': False,
}


def products(dtype: str) -> Iterator[tuple[str, Run]]:
  """What the machine can do: square products of 2048."""
  a = jax.random.normal(jax.random.key(0), (2048, 2048), dtype)
  multiply = jax.jit(
    functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
  )
  yield 'ours', lambda: jax.block_until_ready(multiply(a, a))
  b = torch.randn(2048, 2048).to(NARROW[dtype])
  yield 'PyTorch', lambda: b @ b


def albert_forward(dtype: str) -> Iterator[tuple[str, Run]]:
  """ALBERT-base, 8 x 128 tokens to their last vectors."""
  programs = ours.programs({**ALBERT, 'dtype': dtype}, 8)
  batch = ours.batch(programs)
  params = programs.init(jnp.uint32(0)).params
  model = build(programs.config)
  forward = jax.jit(
    lambda params, tokens: model.apply(
      {'params': params}, tokens, method='hidden'
    )
  )
  yield 'ours', lambda: jax.block_until_ready(forward(params, batch['inputs']))
  peer = transformers.AlbertModel(_albert(), add_pooling_layer=False)
  peer = peer.to(NARROW[dtype]).eval()
  tokens = torch.tensor(np.array(batch['inputs'])).long()
  for name, network in ('eager', peer), ('compiled', torch.compile(peer)):
    yield f'Hugging Face, {name}', _without_gradient(network, tokens)


def albert_step(dtype: str) -> Iterator[tuple[str, Run]]:
  """ALBERT-base's masked language model, 8 x 128 tokens, all of them told."""
  programs = ours.programs({**ALBERT, 'dtype': dtype}, 8)
  yield 'ours', ours.step(programs)
  peer = transformers.AlbertForMaskedLM(_albert())
  tokens = _tokens(programs)
  yield from _peers(peer, lambda run: run(input_ids=tokens), tokens, dtype)


def tied_step(dtype: str) -> Iterator[tuple[str, Run]]:
  """A decoder of one layer run 12 times, GPT-2's sizes, 4 x 256 tokens."""
  model = {**DECODER, 'dtype': dtype, 'sharing': {'layer': 'all'}}
  programs = ours.programs(model, 4)
  yield 'ours', ours.step(programs)
  peer = x_transformers.TransformerWrapper(
    num_tokens=32_000,
    max_seq_len=256,
    tie_embedding=True,
    attn_layers=x_transformers.Decoder(
      dim=768, depth=12, heads=12, weight_tie_layers=True, attn_flash=True
    ),
  )
  tokens = _tokens(programs)
  yield from _peers(
    peer, lambda run: run(tokens), tokens, dtype, 'x-transformers'
  )


def gpt2_step(dtype: str) -> Iterator[tuple[str, Run]]:
  """The same decoder, nothing shared."""
  programs = ours.programs({**DECODER, 'dtype': dtype}, 4)
  yield 'ours', ours.step(programs)
  peer = transformers.GPT2LMHeadModel(
    transformers.GPT2Config(
      vocab_size=32_000,
      n_positions=256,
      n_embd=768,
      n_layer=12,
      n_head=12,
      resid_pdrop=0.0,
      embd_pdrop=0.0,
      attn_pdrop=0.0,
      bos_token_id=0,
      eos_token_id=0,
    )
  )
  tokens = _tokens(programs)
  yield from _peers(peer, lambda run: run(tokens), tokens, dtype)


def llama_step(dtype: str) -> Iterator[tuple[str, Run]]:
  """A Llama of that size, nothing shared."""
  programs = ours.programs({**DECODER, **LLAMA, 'dtype': dtype}, 4)
  yield 'ours', ours.step(programs)
  peer = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=32_000,
      hidden_size=768,
      intermediate_size=2048,
      num_hidden_layers=12,
      num_attention_heads=12,
      max_position_embeddings=256,
      tie_word_embeddings=True,
    )
  )
  tokens = _tokens(programs)
  yield from _peers(peer, lambda run: run(tokens), tokens, dtype)


CASES: dict[str, Case] = {
  f'{function.__name__}_{short}': functools.partial(function, dtype)
  for function in (
    products,
    albert_forward,
    albert_step,
    tied_step,
    gpt2_step,
    llama_step,
  )
  for short, dtype in (('f32', 'float32'), ('bf16', 'bfloat16'))
}


def _tokens(programs: Programs) -> torch.Tensor:
  return torch.tensor(np.array(ours.batch(programs)['inputs'])).long()


def _albert() -> transformers.AlbertConfig:
  return transformers.AlbertConfig(
    vocab_size=30_000,
    embedding_size=128,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=128,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
  )


def _without_gradient(network: Any, tokens: torch.Tensor) -> Run:
  def run() -> Any:
    with torch.no_grad():
      return network(tokens)

  return run


def _peers(
  network: Any,
  logits: Callable[[Any], Any],
  targets: torch.Tensor,
  dtype: str,
  name: str = 'Hugging Face',
) -> Iterator[tuple[str, Run]]:
  """A peer's training step, eager and compiled."""
  optimizer = torch.optim.AdamW(network.parameters(), lr=ours.RATE)
  for how, forward in ('eager', network), ('compiled', torch.compile(network)):

    def run(forward: Any = forward) -> None:
      optimizer.zero_grad(set_to_none=True)
      with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bfloat16'):
        said = logits(forward)
      scores = getattr(said, 'logits', said).float()
      loss = torch.nn.functional.cross_entropy(
        scores.flatten(0, 1), targets.flatten()
      )
      loss.backward()
      optimizer.step()

    yield f'{name}, {how}', run


def main() -> None:
  """Prints the table, a case at a time."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('cases', nargs='*', metavar='CASE')
  parser.add_argument('--rounds', type=int, default=9)
  args = parser.parse_args()
  unknown = set(args.cases) - set(CASES)
  if unknown:
    parser.error(f'no such case: {", ".join(sorted(unknown))}; {list(CASES)}')
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  packages = 'jax', 'flax', 'torch', 'transformers', 'x-transformers'
  versions = [f'{name} {importlib.metadata.version(name)}' for name in packages]
  print(
    f'{time.strftime("%d %B %Y")}; {len(os.sched_getaffinity(0))} cores;'
    f' {", ".join(versions)}; {args.rounds} rounds.\n\n'
    '| case | who | peer / ours | median ms | spread |\n|---|---|---|---|---|'
  )
  for name in args.cases or CASES:
    for line in rows(name, measured(CASES[name], args.rounds)):
      print(line)
    sys.stdout.flush()


if __name__ == '__main__':
  main()
