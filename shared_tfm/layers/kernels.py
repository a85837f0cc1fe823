"""Which program computes scaled dot-product attention; one function chooses.

    xla     the plain form: everywhere, for everything; it holds all scores
    cudnn   cuDNN's fused attention, on NVIDIA's GPUs
    splash  JAX's Pallas kernel for TPUs
    blocks  ours for CPUs, which keeps no scores for the backward pass

cudnn and splash never hold the scores of all queries and keys at once
(FlashAttention, 2205.14135). All three take less than the first does: `reason`
says what. `model.attention_kernel=auto` takes one of them wherever it can.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from shared_tfm.errors import need

LANES = 128  # of a TPU; blocks of queries and keys are multiples of it
WIDEST = 128  # the head width up to which every cuDNN has a backward pass


def choose(
  asked: str,
  q_BLHK: jax.Array,
  k_BMGK: jax.Array,
  mask: jax.Array | None,
  is_causal: bool,
  bias: jax.Array | None = None,
) -> str:
  """The kernel that a call is computed by: xla, cudnn, splash or blocks.

  Args:
    asked: `model.attention_kernel`.
    q_BLHK: queries.
    k_BMGK: keys.
    mask: booleans that broadcast to (B, H, L, M); None: none.
    is_causal: whether queries see only keys up to their own place.
    bias: added to the scores; None: none.

  Raises:
    BadInput: the kernel asked for cannot compute this; why.
  """
  call = q_BLHK, k_BMGK, mask, is_causal, platform(), bias
  if asked == 'auto':
    return next((name for name in OTHERS if not reason(name, *call)), 'xla')
  why = '' if asked == 'xla' else reason(asked, *call)
  need(not why, f'model.attention_kernel={asked} {why}')
  return asked


def reason(
  name: str,
  q_BLHK: jax.Array,
  k_BMGK: jax.Array,
  mask: jax.Array | None,
  is_causal: bool,
  on: str,
  bias: jax.Array | None = None,
) -> str:
  """Why one of the other kernels cannot compute a call; empty where it can.

  Args:
    name: a key of OTHERS.
    q_BLHK: see `choose`, as of the next three.
    k_BMGK: so too.
    mask: so too.
    is_causal: so too.
    on: the platform, as `platform` tells it.
    bias: see `choose`.
  """
  if bias is not None:  # its gradient wants all scores anyway
    return 'adds nothing to scores, and this model has a bias of distances'
  (length, width), keys = (q_BLHK.shape[1], q_BLHK.shape[3]), k_BMGK.shape[1]
  if is_causal and length != keys:
    return f'is causal for as many keys as queries, got {length} and {keys}'
  return OTHERS[name](q_BLHK.dtype.name, length, keys, width, mask, on)


def _not_cudnn(
  dtype: str, length: int, keys: int, width: int, mask: Any, on: str
) -> str:
  if on != 'cuda':
    return f"needs one of NVIDIA's GPUs, and this runs on {on}"
  if dtype not in ('bfloat16', 'float16'):
    return f'multiplies bfloat16 or float16, got {dtype}'
  if width % 8 or width > WIDEST:
    return f'needs a head_dim of 8, 16, ... {WIDEST}, got {width}'
  if mask is not None:
    return 'has no masks, and some positions are padding'
  if length % 2 or keys % 2:
    return f'needs even lengths, got {length} queries and {keys} keys'
  if _ways('length') > 1:
    return f'needs whole sequences, and they are cut in {_ways("length")}'
  mesh, left = jax.sharding.get_abstract_mesh(), left_to_cut()
  if left and AxisType.Manual in mesh.axis_types:
    return f'is cut by shard_map or the compiler, not both; it has {left} left'
  return ''


def _not_splash(
  dtype: str, length: int, keys: int, width: int, mask: Any, on: str
) -> str:
  del width  # any
  if on != 'tpu':
    return f'needs a TPU, and this runs on {on}'
  if dtype not in ('bfloat16', 'float32'):
    return f'multiplies bfloat16 or float32, got {dtype}'
  if length % LANES or keys % LANES:
    return (
      f'needs lengths that are multiples of {LANES}, got {length} queries and'
      f' {keys} keys'
    )
  if mask is not None and mask.shape[1:3] != (1, 1):
    return 'has masks of keys alone, got one of pairs'
  if left := left_to_cut():  # the compiler cannot cut what it does not see into
    return f'needs all cuts by shard_map, and the compiler has {left} left'
  return ''


def _not_blocks(
  dtype: str, length: int, keys: int, width: int, mask: Any, on: str
) -> str:
  del keys, width, mask  # any
  if on != 'cpu':
    return f'is for CPUs, and this runs on {on}'
  if not isinstance(length, int):
    return f'needs a length that is known, got {length}'
  if dtype not in ('bfloat16', 'float32'):
    return f'multiplies bfloat16 or float32, got {dtype}'
  if _ways('length') > 1:
    return f'needs whole sequences, and they are cut in {_ways("length")}'
  return ''


OTHERS: dict[str, Callable[..., str]] = {
  'cudnn': _not_cudnn,
  'splash': _not_splash,
  'blocks': _not_blocks,
}


def platform() -> str:
  """Where programs run: cpu, tpu, cuda or rocm."""
  found = jax.default_backend()
  if found == 'gpu':
    version = jax.devices()[0].client.platform_version
    return 'cuda' if 'cuda' in version.lower() else 'rocm'
  return found


def _ways(name: str) -> int:
  """In how many parts the compiler cuts a logical axis of what is computed."""
  mesh = jax.sharding.get_abstract_mesh()
  found: Any = nn.logical_to_mesh_axes((name,))
  (axis,) = found
  return mesh.shape.get(axis, 1) if isinstance(axis, str) else 1


def left_to_cut() -> str:
  """The first axis of the mesh that is left to the compiler to cut by."""
  mesh = jax.sharding.get_abstract_mesh()
  kinds = zip(mesh.shape.items(), mesh.axis_types, strict=True)
  return next(
    (
      f'{axis} {size}'
      for (axis, size), kind in kinds
      if size > 1 and kind != AxisType.Manual
    ),
    '',
  )


def splash(
  q_BLHK: jax.Array,
  k_BMGK: jax.Array,
  v_BMGK: jax.Array,
  mask: jax.Array | None = None,
  is_causal: bool = False,
  interpret: bool = False,
) -> jax.Array:
  """Mixes values by the TPU's kernel: (B, L, H, K).

  Args:
    q_BLHK: queries; L is a multiple of LANES, and so is M.
    k_BMGK: keys, G of which divides H.
    v_BMGK: values.
    mask: booleans (B, 1, 1, M), of keys; None: all.
    is_causal: see `choose`.
    interpret: whether to run it where there is no TPU, slowly.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention as library

  shape = q_BLHK.shape[1], k_BMGK.shape[1]
  kind = library.CausalMask if is_causal else library.FullMask
  heads = library.MultiHeadMask([kind(shape)] * q_BLHK.shape[2])
  size_q, size_k = (_block(n) for n in shape)
  kernel = library.make_splash_mha_single_device(
    heads,
    block_sizes=library.BlockSizes(
      block_q=size_q,
      block_kv=size_k,
      block_kv_compute=size_k,
      block_q_dkv=size_q,
      block_kv_dkv=size_k,
      block_kv_dkv_compute=size_k,
      block_q_dq=size_q,
      block_kv_dq=size_k,
    ),
    interpret=interpret,
  )
  scaled_BLHK = q_BLHK * q_BLHK.shape[-1] ** -0.5
  q_BHLK, k_BGMK, v_BGMK = (
    a.swapaxes(1, 2) for a in (scaled_BLHK, k_BMGK, v_BMGK)
  )
  segments = None
  if mask is not None:
    # A query sees keys of its own segment: all queries are of segment 1.
    kv_BM = jnp.broadcast_to(mask[:, 0, 0].astype(jnp.int32), k_BMGK.shape[:2])
    segments = library.SegmentIds(jnp.ones_like(q_BLHK[..., 0, 0], int), kv_BM)
  mixed_BHLK = jax.vmap(kernel)(q_BHLK, k_BGMK, v_BGMK, segments)
  return mixed_BHLK.swapaxes(1, 2)


def _block(length: int) -> int:
  """The largest block of at most four times LANES that divides a length."""
  return next(n for n in (4, 3, 2, 1) if length % (n * LANES) == 0) * LANES
