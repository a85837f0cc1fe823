"""Meshes: refused, cut, equal to one device, and what they send."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from shared_tfm import config as configs
from shared_tfm.config.parallel import whole_batch
from shared_tfm.errors import BadInput
from shared_tfm.train import mesh as meshes
from shared_tfm.train import state as states
from shared_tfm.train import traffic

ROOT = pathlib.Path(__file__).parent.parent
MODEL = {'num_layers': 4, 'd_model': 32, 'num_heads': 4, 'vocab_size': 128}
FEW = {'num_ff': 4, 'top_k': 2}
PARTS = 2  # see on_mesh.py


def crossed(model=None, train=None, **mesh):
  return configs.cross(
    {
      'model': {**MODEL, 'max_len': 16, **(model or {})},
      'train': {'batch_size': 16, **(train or {})},
      'mesh': mesh,
    }
  )


# What is refused.


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'data': 3}, '3 data x 1 fsdp .* = 3, and there are 1$'),
    ({'data': 2, 'fsdp': 2}, '2 data x 2 fsdp x 1 tensor .* = 4, .* are 1$'),
    ({'data': 0, 'fsdp': 2}, '1 data x 2 fsdp .* = 2, and there are 1$'),
    ({'tensor': 3}, r'mesh.tensor must divide model.num_heads 4, got 3'),
    (
      {'tensor': 4, 'model': {'num_kv_heads': 2}},
      'mesh.tensor must divide model.num_kv_heads 2, got 4',
    ),
    ({'sequence': 3}, 'mesh.sequence must divide every length .* 3 and 16'),
    (
      {'tensor': 2, 'sequence': 2, 'step': 'shard_map'},
      'one axis to the compiler, tensor or sequence, got 2 and 2',
    ),
    (
      {'step': 'shard_map', 'model': {'norm': 'batchnorm'}},
      "model.norm batchnorm looks at the whole batch: take 'auto' or 'jit'",
    ),
    ({'step': 'pmap'}, "unknown mesh.step 'pmap'"),
    ({'fsdp': 0}, 'mesh.fsdp must be at least 1, got 0'),
  ],
)
def test_bad_meshes(fields, message):
  with pytest.raises(BadInput, match=message) as told:
    meshes.make(crossed(**fields))
  assert '\n' not in str(told.value)


def test_a_batch_that_cannot_be_cut():
  config = crossed(train={'batch_size': 12, 'accumulate': 4}, data=2)
  devices = jax.devices() * 2
  with pytest.raises(BadInput, match=r'= 2 shards .* 12 in 4 parts'):
    meshes.make(config, devices)


@pytest.mark.parametrize(
  ('model', 'reason'),
  [
    ({}, ''),
    ({'norm': 'batchnorm'}, 'model.norm batchnorm'),
    ({'depth': {'rule': 'random'}}, 'model.depth.rule random'),
    ({'experts': {**FEW, 'style': 'sut'}}, 'model.experts.style sut'),
    ({'experts': FEW}, ''),
  ],
)
def test_what_looks_at_the_whole_batch(model, reason):
  model = {'sharing': {'layer': 'all'}, **model}
  assert whole_batch(crossed(model)) == reason


# What is cut.


def test_one_device_by_default():
  mesh = meshes.make(crossed())
  assert mesh.devices.size == 1
  assert not meshes.shard_maps(crossed(), mesh)
  assert meshes.share(mesh) == (0, 1)


def test_rules():
  sizes = {'data': 2, 'fsdp': 4, 'tensor': 2, 'sequence': 1}
  mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))

  def cut(names, shape):
    return meshes.spec(names, shape, mesh)

  assert cut(('owner', 'embed', 'mlp'), (3, 32, 64)) == PartitionSpec(
    None, 'fsdp', 'tensor'
  )
  assert cut(('heads', 'embed'), (32, 32)) == PartitionSpec('tensor', 'fsdp')
  assert cut(('embed',), (30,)) == PartitionSpec(None)  # 4 does not divide 30
  # One axis of the mesh cuts one axis of a weight.
  assert cut(('expert', 'embed', 'mlp'), (8, 32, 64)) == PartitionSpec(
    'tensor', 'fsdp', None
  )
  assert cut((None, 'vocab'), (4, 128)) == PartitionSpec(None, 'tensor')


@pytest.mark.slow
def test_every_logical_name_is_known():
  """A name without a rule is one that a layer has misspelt."""
  found = set()
  for experts in ({}, {**FEW, 'num_attention': 4}):
    config = crossed({'experts': experts, 'type_vocab_size': 2})
    init = functools.partial(states.boxed, config)
    boxed = jax.eval_shape(init, jax.random.key(0))
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: hasattr(x, 'names')):
      found.update(leaf.names)
  assert found == {*meshes.RULES, 'owner', None}


def test_a_run_of_many_devices_is_loaded_on_one():
  config = crossed(data=4, fsdp=2)
  assert meshes.that_fits(config).mesh == crossed().mesh
  assert meshes.that_fits(crossed()) == crossed()


def test_all_devices_are_taken_only_where_they_are_asked_for(monkeypatch):
  devices = jax.devices() * 4
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  taken = []
  monkeypatch.setattr(
    jax, 'make_mesh', lambda sizes, *_, devices: taken.append(sizes) or devices
  )
  assert len(meshes.make(crossed())) == 1
  assert len(meshes.make(crossed(data=0))) == 4
  assert taken == [(1, 1, 1, 1), (4, 1, 1, 1)]


# Equal to one device, and what is sent.


def on_mesh(*cases):
  """What on_mesh.py found of each case, with its name."""
  done = subprocess.run(
    [sys.executable, ROOT / 'tests' / 'on_mesh.py', *cases],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
  'cases',
  [
    ('cycle',),
    ('all', 'relative'),
    ('accumulated', 'order', 'experts', 'batchnorm'),
  ],
  ids=' '.join,
)
def test_equal_to_one_device(cases):
  """Values and gradients, by jit and by shard_map; and nothing sent twice.

  A step by shard_map sends one gather and one reduction of every stored weight,
  beside a few scalars, and nothing inside the loop over depth or that over
  micro-batches.
  """
  for found in on_mesh(*cases):
    case = found['case']
    here = f'{case} {found["mesh"]} {found["step"]}'
    assert found['gradients'] < 2e-6, here
    assert found['params'] < 2e-5, here
    assert found['losses'] < 2e-6, here
    if found['step'] == 'jit':
      assert found['eval_loss'] < 1e-5, here  # of those parameters
    assert found['tokens'][0] == found['tokens'][1], here
    assert found['placed'], here
    assert found['hashes'][0] == found['hashes'][1], here
    of_batch = set(found['mesh']) <= {'data', 'fsdp'}
    by_shard_map = found['step'] == 'auto' and case != 'batchnorm'
    if of_batch and by_shard_map:
      assert found['sent'] == pytest.approx(found['expected'], abs=2_000), here
      # Of each micro-batch, whether its gradient is finite.
      most = 2 * 4 * PARTS if case == 'accumulated' else 0
      assert found['looped'] <= most, here
    elif of_batch and case in ('all', 'cycle'):
      assert found['looped'] > 0, here  # the compiler's own way


@pytest.mark.slow
def test_narrow_products_are_near_one_device():
  """Embeddings' gradients apart, which are added up in bfloat16 by shards.

  A shard of a batch has scales of its own, but as they are powers of two what
  they round is rounded the same; and they are not sent.
  """
  for found in on_mesh('bfloat16', 'float8'):
    here = f'{found["case"]} {found["mesh"]} {found["step"]}'
    assert found['gradients'] < 0.02, here
    assert found['layers'] < 2e-3, here
    assert found['losses'] < 1e-3, here
    if set(found['mesh']) <= {'data', 'fsdp'} and found['step'] == 'auto':
      assert found['sent'] == pytest.approx(found['expected'], abs=2_000), here
      assert found['looped'] == 0, here


# What HLO says.

HLO = """HloModule jit_step, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %s = f32[] add(%x, %y)
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %a = f32[4,8]{1,0} all-reduce(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %b = (f32[2,8]{1,0}, bf16[16]{0}) all-gather(%y), replica_groups=[2,4]<=[8]
}

%cond (p: (s32[], f32[4,8])) -> pred[] {
  %lt = pred[] compare(%a, %b), direction=LT
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %w = s32[] while(%t), body=%body, config={"known_trip_count":{"n":"6"}}
  %c = f32[4]{0} reduce-scatter(%g), replica_groups=mesh['a'=2,'b'=4] {'b'}
  %d = f32[] all-reduce(%s), replica_groups={}, to_apply=%add
  %e = f32[64]{0} all-reduce(%s), replica_groups=mesh['a'=8,'b'=1] {'b'}
  %f = f32[10]{0} collective-permute(%s), source_target_pairs={{0,1},{1,0}}
  %g = f32[8]{0} all-to-all(%s), replica_groups=mesh['a'=8] {'a':(2)4}
}
"""


def test_collectives():
  found = traffic.collectives(HLO)
  assert [(c.kind, c.size, c.group, c.runs, c.looped) for c in found] == [
    ('all-reduce', 128, 2, 6, True),
    ('all-gather', 64 + 32, 4, 6, True),
    ('reduce-scatter', 64, 4, 1, False),
    ('all-reduce', 4, 8, 1, False),
    ('collective-permute', 40, 8, 1, False),
    ('all-to-all', 32, 4, 1, False),
  ]
  assert [c.sent for c in found] == [6 * 128, 6 * 72, 48, 6, 40, 24]


def test_groups_that_are_not_understood_are_not_passed_over():
  with pytest.raises(ValueError, match='unknown replica groups'):
    traffic.collectives(HLO.replace('replica_groups={},', 'replica_groups=?,'))


def test_moments_live_where_parameters_do():
  mesh = meshes.make(crossed())
  where = jax.NamedSharding(mesh, PartitionSpec('fsdp'))
  other = jax.NamedSharding(mesh, PartitionSpec('tensor'))
  params = {'a': np.zeros((4, 2)), 'b': {'a': np.zeros(3)}}
  state = {'mu': params, 'rows': {'a': np.zeros(4)}, 'count': np.zeros(())}
  found = meshes.of_moments(state, params, {'a': where, 'b': {'a': other}})
  whole = jax.NamedSharding(mesh, PartitionSpec())
  assert found['mu'] == {'a': where, 'b': {'a': other}}
  assert found['rows'] == {'a': whole} and found['count'] == whole
