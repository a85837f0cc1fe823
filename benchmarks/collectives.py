"""What a training step sends between 8 devices, under jit and shard_map.

Bytes that each device sends in one step, read from the compiled program of a
decoder on 8 virtual CPU devices: in all, and how much of it inside the loops
over depth and over micro-batches. Beside them is what one gather and one
reduction of every stored parameter would take. Nothing is run, so a busy
machine changes nothing.

Command: python -m benchmarks.collectives [--accumulate=N]
"""

import argparse
import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import importlib.metadata
import time
from typing import Any

import jax

from shared_tfm import config as configs
from shared_tfm.train import programs, traffic

MODEL = {
  'num_layers': 12,
  'd_model': 256,
  'num_heads': 8,
  'vocab_size': 8192,
  'max_len': 128,
  'remat': 'full',
}
SCHEMES = 'none', 'cycle:3', 'all'
MESHES = (
  {'data': 8},
  {'fsdp': 8},
  {'data': 2, 'tensor': 4},
  {'data': 2, 'fsdp': 2, 'tensor': 2},
)


def counted(
  scheme: str, mesh: dict[str, Any], accumulate: int
) -> tuple[float, float, float]:
  """MB sent in a step, MB of that inside loops, and MB of parameters."""
  config = configs.cross(
    {
      'model': {**MODEL, 'sharing': {'layer': scheme}},
      'train': {'batch_size': 32, 'accumulate': accumulate},
      'mesh': mesh,
    }
  )
  made = programs.Programs(config)
  (step,) = made.train.compiled.values()
  sent = traffic.collectives(step.as_text())
  stored = sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(made.shapes.params)
  )
  looped = sum(c.sent for c in sent if c.looped)
  return sum(c.sent for c in sent) / 1e6, looped / 1e6, stored / 1e6


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description='What a training step sends.')
  parser.add_argument(
    '--accumulate', type=int, default=1, help='micro-batches in a step'
  )
  parts = parser.parse_args().accumulate
  versions = [
    f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'jaxlib')
  ]
  print(f'{time.strftime("%Y-%m-%d")}, {", ".join(versions)}\n')
  print(
    '| scheme | parameters, MB | mesh | jit | of it in the loop | shard_map'
    ' | of it in the loop | jit / shard_map |'
  )
  print('|:--|--:|:--|--:|--:|--:|--:|--:|')
  for scheme in SCHEMES:
    for mesh in MESHES:
      sent, looped, stored = counted(scheme, {**mesh, 'step': 'jit'}, parts)
      less, inside, _ = counted(scheme, {**mesh, 'step': 'shard_map'}, parts)
      shape = ' x '.join(f'{axis} {size}' for axis, size in mesh.items())
      print(
        f'| {scheme} | {stored:.1f} | {shape} | {sent:.1f} | {looped:.1f}'
        f' | {less:.1f} | {inside:.1f} | {sent / less:.2f} |',
        flush=True,
      )


if __name__ == '__main__':
  main()
