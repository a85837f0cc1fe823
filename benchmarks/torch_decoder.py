"""The decoder of section `gpu` in plain PyTorch: the peer of our step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.turns import Run
from shared_tfm.config import Model


class Block(nn.Module):
  """Attention and feed-forward, a norm before each."""

  def __init__(self, model: Model):
    super().__init__()
    d = model.d_model
    self.heads = model.num_heads
    self.norms = nn.ModuleList([nn.LayerNorm(d) for _ in range(2)])
    self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
    self.up, self.down = nn.Linear(d, model.d_ff), nn.Linear(model.d_ff, d)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Runs the layer on the residual stream."""
    b, length, d = x.shape
    q, k, v = (
      part.view(b, length, self.heads, -1).transpose(1, 2)
      for part in self.qkv(self.norms[0](x)).chunk(3, dim=-1)
    )
    y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + self.out(y.transpose(1, 2).reshape(b, length, d))
    hidden = functional.gelu(self.up(self.norms[1](x)), approximate='tanh')
    return x + self.down(hidden)


class Decoder(nn.Module):
  """A language model; visit i runs the block that owners[i] names."""

  def __init__(self, model: Model, owners: Sequence[int]):
    super().__init__()
    self.owners = owners
    self.token = nn.Embedding(model.vocab_size, model.d_model)
    self.position = nn.Embedding(model.max_len, model.d_model)
    self.blocks = nn.ModuleList([Block(model) for _ in set(owners)])
    self.norm = nn.LayerNorm(model.d_model)
    nn.init.normal_(self.token.weight, std=0.02)

  def forward(self, tokens: torch.Tensor) -> torch.Tensor:
    """Logits."""
    x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
    for owner in self.owners:
      x = self.blocks[owner](x)
    return functional.linear(self.norm(x), self.token.weight)


def step(
  network: Decoder, rows: int, model: Model, rate: float, device: str
) -> Run:
  """Its training step: compiled, autocast to bfloat16, AdamW in float32."""
  shape = rows, model.max_len
  tokens = torch.randint(model.vocab_size, shape, device=device)
  optimizer = torch.optim.AdamW(network.parameters(), lr=rate, fused=True)

  @torch.compile
  def loss(tokens: torch.Tensor) -> torch.Tensor:
    with torch.autocast(device, torch.bfloat16):
      logits = network(tokens)
    return functional.cross_entropy(
      logits.float().flatten(0, 1), tokens.flatten()
    )

  def run() -> Any:
    optimizer.zero_grad(set_to_none=True)
    loss(tokens).backward()
    optimizer.step()
    if device == 'cuda':
      torch.cuda.synchronize()

  return run
