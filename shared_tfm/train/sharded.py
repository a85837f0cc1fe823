"""The gradient on a mesh, by shard_map.

A step by jit leaves all communication to the compiler, which adds up a shared
weight's gradient once per visit, inside the loop over depth. A step by
shard_map gives every device along 'data' and 'fsdp' its own sequences, gathers
each stored weight once before the loop, and reduces its gradient once after it,
however many layers and micro-batches use it; 'tensor' and 'sequence' are the
compiler's.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from shared_tfm.train.mesh import SHARDS

Gradient = Callable[..., Any]


def gradient_of_shards(
  gradient: Gradient, mesh: jax.sharding.Mesh, shardings: Any
) -> Gradient:
  """A gradient by shard_map: every shard's of its own sequences, added up.

  Args:
    gradient: (params, state, batches, key) -> (gradients, sums, means, state),
      of a loss that is a sum over sequences, which are the second axis of
      `batches`; the first is of micro-batches. It is run on each shard, and
      comes to the same state on all.
    mesh: to run on.
    shardings: of the parameters.

  Returns:
    The same function of whole arrays; sums are added up, means averaged, and
    every shard has another key.
  """
  cuts = jax.tree.map(lambda s: s.spec, shardings)
  whole = jax.tree.map(lambda s: _without(s.spec), shardings)
  stacked = jax.tree.map(lambda s: PartitionSpec(SHARDS, *s), whole)
  everyone, rows = PartitionSpec(), PartitionSpec(None, SHARDS)

  def on_shard(params: Any, state: Any, batches: Any, key: Any) -> Any:
    key = jax.random.fold_in(key, jax.lax.axis_index(SHARDS))
    grads, sums, means, state = gradient(params, state, batches, key)
    return (
      jax.tree.map(lambda g: g[None], grads),
      jax.lax.psum(sums, SHARDS),
      jax.lax.pmean(means, SHARDS),
      state,
    )

  # Three maps and not one: inside a map over some axes the compiler would make
  # whole along the others whatever is gathered or scattered.
  def whole_gradient(params: Any, state: Any, batches: Any, key: Any) -> Any:
    gathered = jax.shard_map(
      lambda p: jax.tree.map(_gather, p, cuts),
      mesh=mesh,
      in_specs=(cuts,),
      out_specs=whole,
      check_vma=False,
    )(params)
    grads, *others = jax.shard_map(
      on_shard,
      mesh=mesh,
      in_specs=(everyone, everyone, rows, everyone),
      out_specs=(PartitionSpec(SHARDS), everyone, everyone, everyone),
      axis_names=set(SHARDS),
      check_vma=False,
    )(gathered, state, batches, key)
    grads = jax.shard_map(
      lambda g: jax.tree.map(_scatter, g, cuts),
      mesh=mesh,
      in_specs=(stacked,),
      out_specs=cuts,
      check_vma=False,
    )(grads)
    return grads, *others

  return whole_gradient


def _without(spec: PartitionSpec) -> PartitionSpec:
  """The same, whole along 'fsdp'."""
  return PartitionSpec(*(None if axis == 'fsdp' else axis for axis in spec))


def _gather(weight: jax.Array, cut: PartitionSpec) -> jax.Array:
  if 'fsdp' not in cut:
    return weight
  return jax.lax.all_gather(weight, 'fsdp', axis=cut.index('fsdp'), tiled=True)


def _scatter(grad: jax.Array, cut: PartitionSpec) -> jax.Array:
  """One shard's gradient of a whole weight, to its part of everyone's sum."""
  grad = grad[0]
  if 'fsdp' not in cut:
    return jax.lax.psum(grad, SHARDS)
  axis = cut.index('fsdp')
  part = jax.lax.psum_scatter(grad, 'fsdp', scatter_dimension=axis, tiled=True)
  return jax.lax.psum(part, 'data')
