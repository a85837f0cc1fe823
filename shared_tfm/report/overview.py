"""What a config is, as text for a terminal."""

from typing import Any

from shared_tfm.config import Config
from shared_tfm.sharing import levels


def render(config: Config, described: dict[str, Any]) -> str:
  """Draws the owner tables and lists the counts.

  Args:
    config: the config.
    described: what `accounting.describe` says of it.
  """
  specs = described['specs'] | {
    name: getattr(config.model.sharing, name)
    for name in described['owners']
    if name not in described['specs']
  }
  owners = levels.draw(specs, config.model.num_layers)
  params, flops = described['params'], described['flops_per_token']
  rows = {
    'stored parameters': f'{params["stored"]:,}',
    'applied parameters': f'{params["applied"]:,}',
    'embedding / non-embedding': (
      f'{params["embedding"]:,} / {params["non_embedding"]:,}'
    ),
    'sharing ratio (layers)': f'{described["sharing_ratio"]:.3g}',
    'FLOPs per token, forward': f'{flops["forward"]:,}',
    'FLOPs per token, training': f'{flops["train"]:,}',
    'KV cache bytes per token': f'{described["kv_bytes_per_token"]:,}',
    'weight bytes': f'{described["weight_bytes"]:,}',
  }
  width = max(map(len, rows))
  counts = '\n'.join(f'{name:<{width}}  {text}' for name, text in rows.items())
  return f'{owners}\n\n{counts}'
