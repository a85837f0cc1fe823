"""Devices as a mesh, and where every array lives on it.

The axes: 'data' and 'fsdp' cut a batch, 'fsdp' and 'tensor' cut weights, and
'sequence' cuts positions. Nothing but `RULES` says which axis of a weight is
cut by which axis of the mesh.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from shared_tfm.config import Config
from shared_tfm.config import Mesh as Cuts
from shared_tfm.config.parallel import AXES, whole_batch
from shared_tfm.errors import BadInput, need

SHARDS = ('data', 'fsdp')  # the axes that cut a batch

# Of each logical axis of a weight, the mesh axis that cuts it. Where two axes
# of a weight would be cut by one, the first is; where a size cannot be divided,
# it stays whole. What is not here stays whole, such as the rows of a bank.
RULES = {
  'embed': 'fsdp',
  'expert': 'tensor',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'vocab': 'tensor',
}

# So too of what a network computes: see model/visit.py, and of its logits
# layers/cross_entropy.py.
STREAM = {'batch': SHARDS, 'length': 'sequence', 'vocab': 'tensor'}


def make(
  config: Config, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """The mesh of a config.

  Args:
    config: as `config.cross` returns it.
    devices: to take, all of them; None for those there are, of which one will
      do where the config asks for no more.

  Raises:
    BadInput: there are more devices or fewer, or a batch cannot be cut.
  """
  cuts, train = config.mesh, config.train
  if devices is None:
    devices = jax.devices()
    one = cuts.data and _sizes(cuts, 1) == (1, 1, 1, 1)
    if one and jax.process_count() == 1:
      devices = devices[:1]
  sizes = _sizes(cuts, len(devices))
  product = ' x '.join(
    f'{n} {axis}' for n, axis in zip(sizes, AXES, strict=True)
  )
  need(
    math.prod(sizes) == len(devices),
    f'the mesh must take all devices: {product} = {math.prod(sizes)}, and there'
    f' are {len(devices)}',
  )
  shards, rows = math.prod(sizes[:2]), train.batch_size // train.accumulate
  need(
    rows % shards == 0,
    f'mesh.data {sizes[0]} x mesh.fsdp {sizes[1]} = {shards} shards must each'
    f' get as many sequences of a batch of {train.batch_size}'
    + f' in {train.accumulate} parts'
    * (train.accumulate > 1),
  )
  kinds = (AxisType.Auto,) * len(AXES)
  return jax.make_mesh(sizes, AXES, kinds, devices=devices)


def _sizes(cuts: Cuts, devices: int) -> tuple[int, ...]:
  others = cuts.fsdp * cuts.tensor * cuts.sequence
  data = cuts.data or max(devices // others, 1)
  return data, cuts.fsdp, cuts.tensor, cuts.sequence


def that_fits(config: Config) -> Config:
  """The config, to run on one device where its mesh cannot be had here."""
  try:
    make(config)
  except BadInput:
    return dataclasses.replace(config, mesh=Cuts())
  return config


def share(mesh: jax.sharding.Mesh) -> tuple[int, int]:
  """Which part of every batch this process reads, and how many there are.

  Processes among which a batch is not cut read the same part.
  """
  shards = count(mesh)
  cut = NamedSharding(mesh, PartitionSpec(SHARDS))
  parts = cut.addressable_devices_indices_map((shards,)).values()
  mine = {part[0].indices(shards)[0] for part in parts if part}
  need(
    shards % len(mine) == 0 and min(mine) % len(mine) == 0,
    f'each process must read one part of every batch, and this one has'
    f' {len(mine)} of {shards} shards',
  )
  return min(mine) // len(mine), shards // len(mine)


def shard_maps(config: Config, mesh: jax.sharding.Mesh) -> bool:
  """Whether the training step is by shard_map."""
  if config.mesh.step == 'auto':
    several = count(mesh) > 1 and not whole_batch(config)
    return several and min(mesh.shape['tensor'], mesh.shape['sequence']) == 1
  return config.mesh.step == 'shard_map'


def count(mesh: jax.sharding.Mesh) -> int:
  """How many shards a batch is cut into."""
  return math.prod(mesh.shape[axis] for axis in SHARDS)


def described(mesh: jax.sharding.Mesh) -> str:
  """How many devices of what kind, such as '4 x NVIDIA H200'."""
  return f'{mesh.size} x {mesh.local_devices[0].device_kind}'


def spec(
  names: Sequence[str | None],
  shape: Sequence[int],
  mesh: jax.sharding.Mesh,
) -> PartitionSpec:
  """How a weight with these logical axes is cut; see `RULES`."""
  cut: list[str | None] = []
  for name, size in zip(names, shape, strict=True):
    axis = RULES.get(name or '')
    ways = mesh.shape[axis] if axis and axis not in cut else 1
    cut.append(axis if ways > 1 and size % ways == 0 else None)
  return PartitionSpec(*cut)


def stream(config: Config, mesh: jax.sharding.Mesh, trains: bool) -> Any:
  """The context in which a step is traced, so that its activations are cut."""
  rules: dict[str, Any] = dict(STREAM)
  if trains and shard_maps(config, mesh):
    rules['batch'] = ()  # every shard has its own already
  stack = contextlib.ExitStack()
  stack.enter_context(jax.set_mesh(mesh))
  stack.enter_context(nn.logical_axis_rules(list(rules.items())))
  return stack


def of_params(boxed: Any, mesh: jax.sharding.Mesh) -> Any:
  """The shardings of parameters in boxes with the names of their axes."""

  def sharding(leaf: Any) -> NamedSharding:
    if not isinstance(leaf, nn.LogicallyPartitioned):
      return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, spec(leaf.names, leaf.value.shape, mesh))

  return jax.tree.map(
    sharding, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )


def of_moments(state: Any, params: Any, shardings: Any) -> Any:
  """The shardings of what is kept beside parameters: moments, masks.

  What is in a parameter's place and shape lives where that does; all else is
  whole everywhere.

  Args:
    state: an optimizer's say, abstract.
    params: the parameters, abstract.
    shardings: theirs.
  """
  known = {}
  for (path, leaf), where in zip(
    jax.tree_util.tree_leaves_with_path(params),
    jax.tree.leaves(shardings),
    strict=True,
  ):
    known[jax.tree_util.keystr(path), leaf.shape] = where
  whole = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())

  def sharding(path: Any, leaf: Any) -> NamedSharding:
    ends = (jax.tree_util.keystr(path[i:]) for i in range(len(path)))
    found = (known.get((end, leaf.shape)) for end in ends)
    return next(filter(None, found), whole)

  return jax.tree_util.tree_map_with_path(sharding, state)


def of_batch(shapes: Any, mesh: jax.sharding.Mesh, lead: int = 0) -> Any:
  """The shardings of a batch: its rows over SHARDS, its positions too.

  Args:
    shapes: arrays (B, ...); those of two axes are (B, L).
    mesh: to cut for.
    lead: how many axes stand before these, and stay whole.
  """

  def sharding(leaf: Any) -> NamedSharding:
    cut: list[Any] = [*(None,) * lead, SHARDS]
    if (
      leaf.ndim - lead == 2
      and leaf.shape[lead + 1] % mesh.shape['sequence'] == 0
    ):
      cut.append('sequence')
    return NamedSharding(mesh, PartitionSpec(*cut))

  return jax.tree.map(sharding, shapes)
