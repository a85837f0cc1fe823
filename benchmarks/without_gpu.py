"""What XLA makes of a gradient on an H100 that is not here.

Its compiler for GPUs runs where there is none, only without trying what is
fastest: so this counts a program's products by what they multiply, its calls of
fused attention, and its temporary memory, and says nothing of time. It asks for
jax[cuda12] (or cuda13), but no driver, which JAX has to be told.

Command: [XLA_FLAGS=--xla_gpu_enable_triton_gemm=false]
  JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1
  .venv/bin/python -m benchmarks.without_gpu [DTYPE ...]
"""

import collections
import itertools
import re
import sys
from collections.abc import Sequence
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import topologies

from shared_tfm import build
from shared_tfm.layers import kernels

# As XLA writes it for an H100 SXM, but for what only says how fast it is.
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  device_memory_size: 84929347584
}
"""
MODEL = {
  'num_layers': 12,
  'd_model': 1024,
  'num_heads': 16,
  'vocab_size': 32_000,
  'max_len': 1024,
  'activation': 'gelu_tanh',
  'sharing': {'layer': 'cycle:3'},
}
ROWS = 8
_CALLED = re.compile(r'custom_call_target="(__cu(?:blas|dnn)[^"]*)"')
_FUSED = re.compile(r'^%gemm_fusion\S* \((.*)\) ->', re.MULTILINE)


def products(
  dtype: str, remat: str, kernel: str = 'auto'
) -> collections.Counter[str]:
  """What the compiled gradient of a decoder has: products by kind, and MB.

  Args:
    dtype: a value of `model.dtype`.
    remat: of `model.remat`.
    kernel: of `model.attention_kernel`.
  """
  topology = topologies.get_topology_desc(
    platform='cuda', topology='1x1x1', target_config=H100
  )
  mesh = topologies.make_mesh(topology, (1,), ('all',))
  where = jax.NamedSharding(mesh, jax.P())
  given = {'dtype': dtype, 'remat': remat, 'attention_kernel': kernel}
  model = build({'model': {**MODEL, **given}}, True)
  tokens = jax.ShapeDtypeStruct((ROWS, MODEL['max_len']), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)

  def loss(params: object, tokens: jax.Array) -> jax.Array:
    return jnp.mean(model.apply({'params': params}, tokens) ** 2)

  arrays = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
    (nn.unbox(shapes)['params'], tokens),
  )
  with (
    mock.patch.object(jax, 'default_backend', lambda: 'gpu'),
    mock.patch.object(kernels, 'platform', lambda: 'cuda'),
  ):
    traced = jax.jit(jax.grad(loss)).trace(*arrays)
  compiled = traced.lower(lowering_platforms=('cuda',)).compile()
  text = compiled.as_text()
  found = collections.Counter(_CALLED.findall(text))
  for operands in _FUSED.findall(text):
    found['Triton, of float8' if 'f8e' in operands else 'Triton'] += 1
  found['MB of temporaries'] = (
    compiled.memory_analysis().temp_size_in_bytes // 10**6
  )
  return found


def main(dtypes: Sequence[str]) -> None:
  """Prints a line for each dtype, policy and kernel."""
  every = itertools.product(
    dtypes or ('bfloat16', 'float8'), ('none', 'dots', 'full'), ('auto', 'xla')
  )
  for given in every:
    found = sorted(products(*given).items())
    print(*given, *(f'{kind}: {n}' for kind, n in found), sep=', ', flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
