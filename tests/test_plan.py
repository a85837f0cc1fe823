"""Plans of a training step on devices that are not here."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import pytest

from shared_tfm import config
from shared_tfm.__main__ import main
from shared_tfm.report import planned
from shared_tfm.train import plan as plans
from shared_tfm.train import products, traffic
from shared_tfm.train import profile as profiles
from shared_tfm.train.profile import PROFILES, Profile

TOP = pathlib.Path(__file__).parents[1]
B, L, N, D, F, V = 32, 8, 4, 16, 64, 32
MODEL = {
  'num_layers': N,
  'remat': 'none',
  'd_model': D,
  'num_heads': 2,
  'max_len': L,
  'vocab_size': V,
  'use_bias': False,
  'norm': 'rmsnorm',
  'position': 'rotary',
  'sharing': {'layer': 'all'},
}
GIVEN = {'model': MODEL, 'train': {'batch_size': B}}
CONFIG = f"""\
import ml_collections

def get_config():
  return ml_collections.ConfigDict({GIVEN!r})
"""
# Of the one stored layer: four products of D x D, two of D x F, two norms;
# outside, a table and a norm. All of it is cut by 'fsdp', in float32.
MATRICES = 4 * D * D + 2 * D * F
STORED = MATRICES + 2 * D + V * D + D
# Step, skipped batches in all and in a row, two counts of the optimizer, a key
# of two words.
SCALARS = 4 * 7


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder with config.py, in which the test runs."""
  (tmp_path / 'config.py').write_text(CONFIG)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def process(*words):
  """A Python of its own, which may have as many devices as it likes."""
  return subprocess.run(
    [sys.executable, *words],
    env=os.environ | {'PYTHONPATH': str(TOP)},
    capture_output=True,
    text=True,
  )


def planned_by(*words):
  """The plan that the command line prints as JSON."""
  described = ['-m', 'shared_tfm', 'describe', '--config=config.py', '--json']
  done = process(*described, *words)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)['plan']


def refused(capsys, *words):
  assert main(['describe', '--config=config.py', *words]) == 2
  printed = capsys.readouterr()
  assert not printed.out
  (line,) = printed.err.splitlines()
  return line.removeprefix('error: ')


# Numbers, against what a hand computes.


@pytest.mark.slow
def test_eight_devices_by_hand(here):
  """Each stored weight is gathered once and its gradient reduced once."""
  plan = planned_by('--mesh=data:2,fsdp:4')
  held, work = plan['held'], plan['work']
  assert plan['mesh'] == {'data': 2, 'fsdp': 4, 'tensor': 1, 'sequence': 1}
  assert (plan['step'], plan['tokens']) == ('shard_map', B * L)
  # AdamW keeps two moments of each weight.
  assert held['state'] == 3 * 4 * STORED // 4 + SCALARS
  # Inputs, targets and weights of four bytes each.
  assert held['batch'] == 3 * 4 * B * L // 8
  assert held['peak'] > sum(held[k] for k in ('state', 'batch', 'temporaries'))
  # Three of four parts come from the others; the sums over 'data' go both ways;
  # whether gradients are finite, the loss, the weight and that of what was kept
  # are summed over all, the norm (ten leaves) over 'fsdp'.
  scalars = 2 * (4 * 7 // 8 + 12 * 7 // 8 + 40 * 3 // 4)
  assert work['sent'] == {
    'all-gather': 4 * STORED * 3 // 4,
    'all-reduce': 2 * (4 * STORED // 4) // 2 + scalars,
    'reduce-scatter': 4 * STORED * 3 // 4,
  }
  assert work['looped'] == 0
  # Forward per token: matrices at each visit, scores and mixing, the logits.
  forward = N * (2 * MATRICES + 4 * L * D) + 2 * D * V
  assert work['model_flops'] == work['flops'] == 3 * forward * B * L // 8
  h100 = PROFILES['h100']
  seconds = plan['seconds']
  assert seconds == pytest.approx(
    {
      'products': work['flops'] / h100.float32_flops,
      'memory': work['moved'] / h100.memory_bandwidth,
      'links': sum(work['sent'].values()) / h100.link_bandwidth,
    }
  )
  step = {'best': max(seconds.values()), 'worst': sum(seconds.values())}
  assert plan['step_seconds'] == pytest.approx(step)
  for end, taken in step.items():
    assert plan['tokens_per_second'][end] == pytest.approx(B * L / taken)
    ideal = work['model_flops'] / h100.float32_flops
    assert plan['utilisation'][end] == pytest.approx(ideal / taken)
  assert plan['fits']


@pytest.mark.slow
def test_by_jit_a_shared_gradient_is_sent_inside_the_loop(here):
  plan = planned_by('--mesh=data:2,fsdp:4', '--config.mesh.step=jit')
  assert plan['step'] == 'jit'
  # At least one matrix's gradient is reduced at every visit, over eight.
  assert plan['work']['looped'] > N * 4 * D * F


@pytest.mark.slow
def test_recomputation_is_a_forward_pass_but_for_its_last_product():
  jax.devices()  # what this process has, it keeps
  made = config.cross(GIVEN | {'model': MODEL | {'remat': 'full'}})
  plan = plans.plan(made, PROFILES['tpu_v4'])
  again = N * (2 * MATRICES + 4 * L * D - 2 * F * D)
  assert plan.work.flops - plan.work.model_flops == again * B * L
  assert plan.work.sent == {}
  assert plan.held.state == 3 * 4 * STORED + SCALARS


@pytest.mark.slow
def test_what_does_not_fit_is_told():
  jax.devices()
  small = dataclasses.replace(PROFILES['h100'], memory_bytes=1e5)
  plan = plans.plan(config.cross(GIVEN), small)
  assert not plan.fits
  assert 'WARNING: it does not fit' in planned.render(plan)


@pytest.mark.slow
@pytest.mark.parametrize(
  'name,memory,policy',
  [('h100', 1e9, 'none'), ('h100', 1, 'full'), ('cpu', 1e9, 'dots')],
)
def test_the_policy_is_that_of_the_device(name, memory, policy):
  """A CPU takes 'dots' at best, a GPU 'none'; each the last where none fits."""
  jax.devices()
  device = dataclasses.replace(PROFILES[name], memory_bytes=memory)
  made = config.cross(GIVEN | {'model': MODEL | {'remat': 'auto'}})
  plan = plans.plan(made, device)
  assert plan.remat == policy
  assert f'remat                      {policy}\n' in planned.render(plan)


HLO = """\
HloModule step, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%fused (p: f32[4,6], q: f32[5,6]) -> f32[4,5] {
  %p = f32[4,6]{1,0} parameter(0)
  %q = f32[5,6]{1,0} parameter(1)
  ROOT %d = f32[4,5]{1,0} dot(%p, %q), lhs_contracting_dims={1}, \
rhs_contracting_dims={1}
}

%body (s: (f32[4,6])) -> (f32[4,6]) {
  %s = (f32[4,6]) parameter(0)
  %x = f32[4,6]{1,0} get-tuple-element(%s), index=0
  %f = f32[4,5]{1,0} fusion(%x, %x), kind=kOutput, calls=%fused
  %r = f32[4,6]{1,0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, \
to_apply=%sum
}

%condition (s: (f32[4,6])) -> pred[] {
  %s = (f32[4,6]) parameter(0)
}

ENTRY %main (x: f32[2,3,4]) -> f32[2,3,3] {
  %x.1 = f32[2,3,4]{2,1,0} parameter(0)
  %w = (f32[4,6]) while(%t), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %g = bf16[16]{0} all-gather(%h), replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %e = f32[2,3,3]{2,1,0} dot(%x.1, %x.1), lhs_batch_dims={0}, \
lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={2}
}
"""


def test_products_are_read_as_often_as_they_are_run():
  assert products.products(HLO) == [
    products.Product(2 * 4 * 5 * 6, 24 + 30 + 20, 3),
    products.Product(2 * 2 * 3 * 3 * 4, 24 + 24 + 18, 1),
  ]


def test_products_of_eight_bits_are_told_from_others():
  """By the name that layers give them; two of three numbers are operands'."""
  name = 'metadata={op_name="jit(step)/Layer/float8/ab,bc->ac/dot_general"}'
  line = 'rhs_contracting_dims={2}\n}'
  assert line in HLO
  told = HLO.replace(line, f'{line[:-2]}, {name}\n}}')
  plain, eight = products.products(told)
  assert (plain.eighths, eight.eighths) == (0, 24 + 24)
  assert eight.values == 24 + 24 + 18


@pytest.mark.slow
def test_a_plan_of_eight_bits_by_hand():
  """What is of linear maps is as fast as a profile says, and moves more."""
  found = {}
  for dtype in ('bfloat16', 'float8'):
    made = config.cross({**GIVEN, 'model': {**MODEL, 'dtype': dtype}})
    found[dtype] = plans.plan(made, PROFILES['h100'])
  half, eight = (found[dtype].work for dtype in found)
  assert half.eighths == 0 and eight.flops == half.flops
  assert eight.eighths == 3 * N * 2 * MATRICES * B * L
  h100 = PROFILES['h100']
  assert found['float8'].seconds['products'] == pytest.approx(
    eight.eighths / h100.float8_flops
    + (eight.flops - eight.eighths) / h100.bfloat16_flops
  )
  # Four more bytes for each number of an operand: what five maps of D and one
  # of F read, and the gradients of what as many make, each twice; and weights.
  operands = 4 * B * L * (5 * D + F) + 2 * MATRICES
  assert eight.moved - half.moved == 4 * N * operands
  assert 'of it in float8' in planned.render(found['float8'])
  assert 'of it in float8' not in planned.render(found['bfloat16'])


def test_a_device_without_eight_bits_multiplies_wider_ones():
  a100, h100 = PROFILES['a100'], PROFILES['h100']
  assert a100.flops('float8_e4m3fn') == a100.flops('bfloat16') == 312e12
  assert h100.flops('float8_e4m3fn') == 2 * h100.flops('float16') + 0.1e12


def test_so_are_collectives():
  reduced, gathered = traffic.collectives(HLO)
  assert reduced == traffic.Collective('all-reduce', 96, 4, 3, True)
  assert gathered == traffic.Collective('all-gather', 32, 2, 1, False)
  assert (reduced.sent, gathered.sent) == (3 * 2 * 96 * 3 // 4, 16)


def test_a_plan_as_text():
  plan = plans.Plan(
    mesh={'data': 16, 'fsdp': 16, 'tensor': 1, 'sequence': 1},
    step='shard_map',
    remat='full',
    tokens=1_000_000,
    held=plans.Held(10**9, 5000, 2 * 10**9, 3 * 10**9 + 5000),
    work=plans.Work(2 * 10**13, 3 * 10**13, 10**11, {'all-gather': 10**9}, 0),
    seconds={'products': 0.03, 'memory': 0.04, 'links': 0.02},
    step_seconds=plans.Span(0.04, 0.09),
    tokens_per_second=plans.Span(25e6, 11_111_111.1),
    utilisation=plans.Span(0.5, 0.222),
    fits=False,
    profile=Profile(1e15, 1e14, 2e9, 1e12, 5e10, 'a sheet'),
    compile_seconds=11.4,
  )
  expected = """\
    Plan, per device
    devices                    256 (data 16 x fsdp 16), step by shard_map
    remat                      full
    tokens per step            1,000,000
    state                      1 GB
    batch                      5 kB
    temporaries                2 GB
    peak memory                3 GB of 2 GB
    FLOPs, model               20 TFLOP
    FLOPs, with recomputation  30 TFLOP, 30 ms
    memory traffic             100 GB, 40 ms
    sent to others             1 GB, 20 ms
      of it in loops           0 B
      by kind                  all-gather 1 GB
    step                       40 ms (all overlaps) to 90 ms
    tokens per second          11,111,111 to 25,000,000
    model FLOPs utilisation    22.2% to 50.0%
    compiled in                11 s
    device                     a sheet
    WARNING: it does not fit: 3 GB are needed, and a device has 2 GB

    """
  text = planned.render(plan)
  assert text == textwrap.dedent(expected) + planned.NOTE


# Against a run.

RUN = """\
import ctypes, json, pathlib, re, sys
import jax
import numpy as np
from shared_tfm import config
from shared_tfm.train import plan, profile, programs

made = config.cross(json.loads(sys.argv[1]))
planned = plan.plan(made, profile.PROFILES['cpu'])
compiled = programs.Programs(made)
state = compiled.init(np.uint32(0))
batch = compiled.put({
  name: np.ones(shape.shape, shape.dtype)
  for name, shape in compiled.batches[0].items()
})

def held(tree):
  found = dict.fromkeys(range(8), 0)
  for leaf in jax.tree.leaves(tree):
    for shard in leaf.addressable_shards:
      found[shard.device.id] += shard.data.nbytes
  return sorted(set(found.values()))

def status(name):
  text = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(name + r':\\s+(\\d+)', text)[1]) * 1024

before, grown = [held(state), held(batch)], []
for _ in range(5):
  ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # forgets the peak
  start = status('VmRSS')
  state, metrics = compiled.train(state, batch)
  jax.block_until_ready((state, metrics))
  grown.append(status('VmHWM') - start)
print(json.dumps({
  'state': planned.held.state, 'batch': planned.held.batch, 'held': before,
  'temporaries': planned.held.temporaries, 'grown': grown,
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(
  not os.access('/proc/self/clear_refs', os.W_OK), reason='Linux counts pages'
)
@pytest.mark.parametrize('remat', ['full', 'none'])
def test_memory_is_what_a_run_on_eight_devices_takes(remat):
  """Arguments to the byte; temporaries as the process grows, within 20 %.

  The devices of a CPU count no memory of their own, and share one process: its
  peak during a step, less what it had before, is eight times the temporaries,
  but for what threads and the runtime need. The first step grows by more, and
  is not taken; a later one by less where one device ends early. Blocks above 32
  MiB go back to the system as soon as they are free, so that none is missed. A
  CPU's own form of attention is left out: it holds scores inside of operations,
  where the compiler does not count them, and takes a fifth more here.
  """
  model = MODEL | {
    'num_layers': 2,
    'd_model': 128,
    'num_heads': 4,
    'vocab_size': 4096,
    'max_len': 256,
    'remat': remat,
    'attention_kernel': 'xla',
  }
  mesh = {'data': 4, 'fsdp': 2}
  given = {'model': model, 'train': {'batch_size': 32}, 'mesh': mesh}
  done = process('-c', RUN, json.dumps(given))
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['held'] == [[found['state']], [found['batch']]]
  assert found['temporaries'] > 2**25
  grown = max(found['grown'][1:]) / 8
  assert grown == pytest.approx(found['temporaries'], rel=0.2)


# Bad input.


@pytest.mark.parametrize(
  ('mesh', 'rule'),
  [
    ('data:3,foo:2', "unknown mesh axis 'foo'; known: data, fsdp, tensor, s"),
    ('data:3,fdsp:2', "unknown mesh axis 'fdsp'; did you mean 'fsdp'?"),
    ('data', "a mesh is written 'data:16,fsdp:16', got 'data' in 'data'"),
    ('data:0x', "a mesh is written 'data:16,fsdp:16', got 'data:0x'"),
    ('data:0', "a mesh is written 'data:16,fsdp:16', got 'data:0'"),
    ('data:-2', "a mesh is written 'data:16,fsdp:16', got 'data:-2'"),
    ('', "a mesh is written 'data:16,fsdp:16', got ''"),
    ('data:2,data:2', "data is given twice in mesh 'data:2,data:2'"),
    ('data:999999999', 'a mesh to plan must have at most 4096 devices, got'),
    ('tensor:3', 'mesh.tensor must divide model.num_heads 2, got 3'),
    ('data:2', 'a plan for 2 devices must be made in a process of its own'),
  ],
)
def test_wrong_meshes(here, capsys, mesh, rule):
  jax.devices()
  assert refused(capsys, f'--mesh={mesh}').startswith(rule)


@pytest.mark.slow
def test_a_batch_that_the_mesh_does_not_divide(here):
  words = 'describe', '--config=config.py', '--mesh=data:3,fsdp:2'
  done = process('-m', 'shared_tfm', *words)
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == (
    'error: mesh.data 3 x mesh.fsdp 2 = 6 shards must each get as many'
    ' sequences of a batch of 32\n'
  )


@pytest.mark.slow
def test_no_kind_of_batch_may_be_one_that_cannot_be_cut():
  config = f'--config={TOP}/configs/translation_wmt14.py'
  done = process('-m', 'shared_tfm', 'describe', config, '--mesh=data:2')
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == (
    'error: mesh.data x mesh.fsdp = 2 shards must each get as many examples,'
    ' and one kind of batch has 4736 in 128 parts\n'
  )


WHOLE = dict.fromkeys(
  [f.name for f in dataclasses.fields(Profile) if f.type is float], 1e9
)


@pytest.mark.parametrize(
  ('content', 'rule'),
  [
    ('{', 'the profile my.json is no JSON: '),
    ('[' * 100_000, 'the profile my.json is no JSON: '),
    ('[]', 'the profile my.json must be an object, got []'),
    ({'base': 'h10'}, "unknown base of the profile my.json: 'h10'; did you"),
    ({'base': ['h100']}, 'unknown base of the profile my.json: '),
    ({'links': 1}, "unknown field of the profile my.json: 'links'; known"),
    (
      {'link_bandwidth': 1e9},
      'the profile my.json must have bfloat16_flops, float32_flops,',
    ),
    *(
      (WHOLE | {'memory_bytes': wrong}, 'memory_bytes of the profile my.json')
      for wrong in (-1, 0, 'many', True, None, float('nan'), 10**400)
    ),
    (WHOLE | {'float8_flops': 0}, 'float8_flops of the profile my.json'),
    (WHOLE | {'source': 3}, 'source of the profile my.json must be text'),
    *(
      (WHOLE | {'platform': wrong}, 'platform of the profile my.json must be')
      for wrong in ('GPU', 3, ['gpu'])
    ),
  ],
)
def test_wrong_profiles(here, capsys, content, rule):
  text = content if isinstance(content, str) else json.dumps(content)
  (here / 'my.json').write_text(text)
  words = '--mesh=data:2', '--profile=my.json'
  assert refused(capsys, *words).startswith(rule)


def test_profiles_that_are_not_there(here, capsys):
  words = '--mesh=data:2', '--profile='
  line = refused(capsys, words[0], f'{words[1]}h101')
  assert line.startswith("unknown profile (or FILE.json) 'h101'; did you mean")
  line = refused(capsys, words[0], f'{words[1]}none.json')
  assert line == 'none.json: No such file or directory'
  line = refused(capsys, '--profile=h100')
  assert line == '--profile is of the devices of a --mesh'


def test_a_profile_changes_what_it_says_of_its_base(tmp_path):
  path = tmp_path / 'my.json'
  path.write_text('{"base": "h100", "link_bandwidth": 2e11}')
  expected = dataclasses.replace(PROFILES['h100'], link_bandwidth=2e11)
  assert profiles.profile(str(path)) == expected
  path.write_text(json.dumps(WHOLE))
  assert profiles.profile(str(path)) == Profile(**WHOLE, source=str(path))
  older = {k: v for k, v in WHOLE.items() if k != 'float8_flops'}
  path.write_text(json.dumps(older))
  assert profiles.profile(str(path)) == Profile(**older, source=str(path))
  path.write_text('{"base": "h100", "float8_flops": null}')
  expected = dataclasses.replace(PROFILES['h100'], float8_flops=None)
  assert profiles.profile(str(path)) == expected


def test_without_a_mesh_no_device_library_is_imported(here):
  code = (
    'import sys; from shared_tfm.__main__ import main;'
    "main(['describe', '--config=config.py']);"
    "sys.exit('jax' in sys.modules)"
  )
  done = process('-c', code)
  assert done.returncode == 0, done.stderr
  assert 'Plan' not in done.stdout
