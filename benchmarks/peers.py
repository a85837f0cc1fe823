"""Our steps beside those of Hugging Face, x-transformers and PyTorch.

Of each case every contender takes its turn in every round, so that whatever
else the machine does meets all of them, and has a process of its own. What is
printed is the median over the rounds, and first of all a ratio: the peer's
median over ours, above 1 where we are faster.

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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
import x_transformers

from benchmarks import ours
from benchmarks.turns import Contenders, Run, apart, rows
from shared_tfm.model import build
from shared_tfm.train.programs import Programs

torch.set_num_threads(len(os.sched_getaffinity(0)))  # in every process

How = Callable[[Any], Any]  # what is made of a network
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
LLAMA: dict[str, Any] = {
  'activation': 'swiglu',
  'd_ff': 2048,
  'norm': 'rmsnorm',
  'position': 'rotary',
  'use_bias': False,
}


def products(dtype: str) -> Contenders:
  """What the machine can do: square products of 2048."""

  def ours_alone() -> Run:
    a = jax.random.normal(jax.random.key(0), (2048, 2048), dtype)
    multiply = jax.jit(
      functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    )
    return lambda: jax.block_until_ready(multiply(a, a))

  def peer() -> Run:
    b = torch.randn(2048, 2048).to(NARROW[dtype])
    return lambda: b @ b

  return {'ours': ours_alone, 'PyTorch': peer}


def albert_forward(dtype: str) -> Contenders:
  """ALBERT-base, 8 x 128 tokens to their last vectors."""
  programs = ours.programs({**ALBERT, 'dtype': dtype}, 8)

  def ours_alone() -> Run:
    batch, params = ours.batch(programs), programs.init(jnp.uint32(0)).params
    model = build(programs.config)
    forward = jax.jit(
      lambda params, tokens: model.apply(
        {'params': params}, tokens, method='hidden'
      )
    )
    return lambda: jax.block_until_ready(forward(params, batch['inputs']))

  def peer(how: How) -> Run:
    network = transformers.AlbertModel(_albert(), add_pooling_layer=False)
    network = how(network.to(NARROW[dtype]).eval())
    tokens = _tokens(programs)

    def run() -> Any:
      with torch.no_grad():
        return network(tokens)

    return run

  return {'ours': ours_alone, **_both('Hugging Face', peer)}


def albert_step(dtype: str) -> Contenders:
  """ALBERT-base's masked language model, 8 x 128 tokens, all of them told."""
  return _steps(
    ours.programs({**ALBERT, 'dtype': dtype}, 8),
    'Hugging Face',
    lambda: transformers.AlbertForMaskedLM(_albert()),
  )


def tied_step(dtype: str) -> Contenders:
  """A decoder of one layer run 12 times, GPT-2's sizes, 4 x 256 tokens."""
  model = {**DECODER, 'dtype': dtype, 'sharing': {'layer': 'all'}}

  def peer() -> Any:
    return x_transformers.TransformerWrapper(
      num_tokens=32_000,
      max_seq_len=256,
      tie_embedding=True,
      attn_layers=x_transformers.Decoder(
        dim=768, depth=12, heads=12, weight_tie_layers=True, attn_flash=True
      ),
    )

  return _steps(ours.programs(model, 4), 'x-transformers', peer)


def gpt2_step(dtype: str) -> Contenders:
  """The same decoder, nothing shared."""

  def peer() -> Any:
    return transformers.GPT2LMHeadModel(
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

  return _steps(
    ours.programs({**DECODER, 'dtype': dtype}, 4), 'Hugging Face', peer
  )


def llama_step(dtype: str) -> Contenders:
  """A Llama of that size, nothing shared."""

  def peer() -> Any:
    return transformers.LlamaForCausalLM(
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

  model = {**DECODER, **LLAMA, 'dtype': dtype}
  return _steps(ours.programs(model, 4), 'Hugging Face', peer)


CASES: dict[str, Callable[[], Contenders]] = {
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


def _both(name: str, make: Callable[[How], Run]) -> Contenders:
  """A peer as it is written, and compiled."""
  return {
    f'{name}, eager': lambda: make(lambda network: network),
    f'{name}, compiled': lambda: make(torch.compile),
  }


def _steps(
  programs: Programs, name: str, network: Callable[[], Any]
) -> Contenders:
  """Our training step and a peer's, of a network that makes logits."""

  def peer(how: How) -> Run:
    made, tokens = network(), _tokens(programs)
    forward = how(made)
    optimizer = torch.optim.AdamW(made.parameters(), lr=ours.RATE)
    narrow = programs.config.model.dtype == 'bfloat16'

    def run() -> None:
      optimizer.zero_grad(set_to_none=True)
      with torch.autocast('cpu', torch.bfloat16, enabled=narrow):
        said = forward(tokens)
      scores = getattr(said, 'logits', said).float()
      loss = torch.nn.functional.cross_entropy(
        scores.flatten(0, 1), tokens.flatten()
      )
      loss.backward()
      optimizer.step()

    return run

  return {'ours': lambda: ours.step(programs), **_both(name, peer)}


def main() -> None:
  """Prints the table, a case at a time."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('cases', nargs='*', metavar='CASE')
  parser.add_argument('--rounds', type=int, default=9)
  args = parser.parse_args()
  unknown = set(args.cases) - set(CASES)
  if unknown:
    parser.error(f'no such case: {", ".join(sorted(unknown))}; {list(CASES)}')
  packages = 'jax', 'flax', 'torch', 'transformers', 'x-transformers'
  versions = [f'{name} {importlib.metadata.version(name)}' for name in packages]
  print(
    f'{time.strftime("%d %B %Y")}; {len(os.sched_getaffinity(0))} cores;'
    f' {", ".join(versions)}; {args.rounds} rounds.\n\n'
    '| case | who | peer / ours | median ms | spread |\n|---|---|---|---|---|'
  )
  for name in args.cases or CASES:
    for line in rows(name, apart(CASES[name], args.rounds)):
      print(line)
    sys.stdout.flush()


if __name__ == '__main__':
  main()
