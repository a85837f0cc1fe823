"""The speed of a config's training step: what is measured, and of what."""

import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import ml_collections
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from test_configs import CONFIGS, FURTHER

from shared_tfm import accounting, compile_cache, config_file, tasks
from shared_tfm import config as configs
from shared_tfm.__main__ import main
from shared_tfm.report import speed
from shared_tfm.train import bench, costly, programs, rate, remat, synthetic
from shared_tfm.train import mesh as meshes

CONFIG = """\
import ml_collections

def get_config():
  return ml_collections.ConfigDict({
    'model': {
      'num_layers': 2,
      'd_model': 16,
      'num_heads': 2,
      'max_len': 16,
      'remat': 'full',
      'sharing': {'layer': 'all'},
    },
    'train': {'batch_size': 4, 'num_steps': 4},
    'data': {'source': 'text', 'path': 'missing.txt'},
  })
"""
BENCH = ('bench', '--config=config.py', '--steps=3')

SMALL = {'num_layers': 2, 'd_model': 16, 'num_heads': 2, 'vocab_size': 300}
FAMILIES = {
  'translation': {
    'model': {**SMALL, 'family': 'encoder_decoder', 'max_len': 16},
    'train': {'batch_size': 8},
    'data': {'source': 'parallel', 'buckets': '4,8', 'source_len': 12},
    'task': {'name': 'translation'},
  },
  'image_classification': {
    'model': {
      'family': 'vision',
      'image_size': 8,
      'patch_size': 4,
      'channels': 3,
      'num_classes': 10,
      'num_layers': 2,
      'd_model': 16,
      'num_heads': 2,
    },
    'train': {'batch_size': 6, 'accumulate': 2},
    'data': {'source': 'mnist'},
  },
  'question_answering': {
    'model': {
      **SMALL,
      'family': 'encoder',
      'max_len': 16,
      'type_vocab_size': 2,
    },
    'train': {'batch_size': 4},
    'data': {'source': 'squad', 'question_len': 4},
    'task': {'name': 'question_answering'},
  },
}


def crossed(given):
  whole = configs.complete(ml_collections.ConfigDict(given))
  return configs.cross(whole, set(configs.given(given)))


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder with config.py, whose data there is not."""
  (tmp_path / 'config.py').write_text(CONFIG)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def said(capsys, *words):
  assert main(words) == 0
  return capsys.readouterr().out


# Batches.


@pytest.mark.parametrize(
  'path', [*map(str, CONFIGS), *FURTHER], ids=lambda path: path.split('/')[-1]
)
def test_every_config_can_have_made_up_batches(path):
  """Of few rows: a picture, or a text, of each is as large as it is."""
  few = ['--config.train.batch_size=8', '--config.train.accumulate=1']
  config = config_file.load(path, few)
  for shapes in tasks.make(config).batches():
    made = synthetic.batch(config, shapes)
    assert made.keys() == shapes.keys()
    for name, values in made.items():
      assert values.shape == shapes[name].shape, name
      assert values.dtype == shapes[name].dtype, name
      in_range(config, name, values)
    again = synthetic.batch(config, shapes)
    other = synthetic.batch(config, shapes, seed=1)
    assert all(np.array_equal(made[name], again[name]) for name in made)
    assert not np.array_equal(made['inputs'], other['inputs'])


def in_range(config, name, values):
  model = config.model
  if name == 'weights' or values.dtype == bool:
    assert values.all()
    return
  if values.dtype == np.float32:
    assert np.isfinite(values).all() and np.unique(values).size > 1
    return
  if name == 'row':
    assert values.tolist() == list(range(len(values)))
    return
  limit = {'types': model.type_vocab_size, 'order': 2}.get(name)
  if name == 'targets' and model.head in ('classes', 'spans'):
    spans = model.head == 'spans'
    limit = config.data.seq_len if spans else model.num_classes
  limit = limit or model.vocab_size
  assert values.min() >= 0 and values.max() < limit
  if values.size > 100:
    assert values.max() >= 0.7 * (limit - 1)  # all of the range is used


def test_a_batch_with_something_unknown_is_none():
  config = crossed(FAMILIES['question_answering'])
  with pytest.raises(KeyError, match='depths'):
    shape = jax.ShapeDtypeStruct((4, 8), np.int32)
    synthetic.batch(config, {'depths': shape})


# What is measured.


@pytest.mark.slow
def test_the_figures_follow_from_each_other(here, capsys):
  measured = json.loads(said(capsys, *BENCH, '--json'))
  described = json.loads(
    said(capsys, 'describe', '--config=config.py', '--json')
  )
  (step,) = measured['kinds']
  assert (step['rows'], step['tokens'], measured['steps']) == (4, 64, 3)
  assert step['batch']['inputs'] == [4, 16]
  assert step['flops'] == 64 * described['flops_per_token']['train']
  assert 0 < step['fastest'] <= step['median'] <= step['slowest']
  for name in ('rows', 'tokens', 'flops'):
    assert step[f'{name}_per_second'] * step['median'] == pytest.approx(
      step[name]
    )
  best = measured['product']['flops_per_second']
  assert step['utilisation'] == pytest.approx(step['flops_per_second'] / best)
  assert 0 < step['loss'] < 8
  assert measured['stored_bytes'] == described['weight_bytes']
  # Weights and two moments, and what the step computes.
  assert measured['peak_bytes'] > 3 * measured['stored_bytes']
  assert measured['dtype'] == 'float32'
  assert measured['device']['platform'] == jax.default_backend()
  assert measured['device']['count'] == 1
  assert measured['versions']['jax'] == jax.__version__
  assert measured['compile_seconds'] > 0
  assert measured['traced'] is None
  assert [path.name for path in here.iterdir()] == ['config.py']


@pytest.mark.slow
@pytest.mark.usefixtures('every_program_is_kept')
def test_programs_of_the_cache_are_told(here):
  config, kept = config_file.load('config.py', []), jax.config.values
  kept = kept['jax_compilation_cache_dir']
  try:
    for cached in (False, True):
      jax.config.update('jax_compilation_cache_dir', str(here / 'cache'))
      compilation_cache.reset_cache()
      measured = bench.bench(config, 1)
      assert measured.cached == cached
      assert ("JAX's persistent cache" in speed.render(measured)) == cached
  finally:
    jax.config.update('jax_compilation_cache_dir', kept)
    compilation_cache.reset_cache()


@pytest.mark.slow
@pytest.mark.usefixtures('every_program_is_kept')
def test_of_policies_the_chosen_one_is_told(here, monkeypatch):
  """What is rejected takes long to compile here, and is in no cache."""
  config = remat.under(config_file.load('config.py', []), 'auto')
  train = dataclasses.replace(config.train, memory_gb=1e-6)
  config = dataclasses.replace(config, train=train)
  compiled, shaped = [], programs.Programs._shaped

  def slowly(self, function, **options):
    made = shaped(self, function, **options)
    if not compiled:
      jax.monitoring.record_event(bench.MISSED)
      made.seconds += 1000
    compiled.append(made.seconds)
    return made

  monkeypatch.setattr(programs.Programs, '_shaped', slowly)
  for _ in range(2):
    compiled.clear()
    measured = bench.bench(config, 1)
  assert (measured.remat, measured.tried) == ('full', 2)
  assert measured.compile_seconds == compiled[1] < 1000
  assert measured.cached
  printed = speed.render(measured)
  assert re.search('^remat +full, of 2 policies tried$', printed, re.M)


@pytest.mark.slow
def test_a_second_start_finds_its_programs(here):
  """Unless JAX's own variable says that none be kept."""
  top = str(pathlib.Path(__file__).parents[1])
  kept = {n: v for n, v in os.environ.items() if 'CACHE' not in n}
  kept |= {'PYTHONPATH': top, 'XDG_CACHE_HOME': str(here / 'home')}

  def cached(**variables):
    done = subprocess.run(
      [sys.executable, '-m', 'shared_tfm', *BENCH, '--json'],
      env=kept | variables,
      capture_output=True,
      text=True,
      check=True,
    )
    return json.loads(done.stdout)['cached']

  assert [cached(), cached()] == [False, True]
  assert list((here / 'home/shared_tfm/compiled').glob('jit_step-*-cache'))
  assert not cached(JAX_ENABLE_COMPILATION_CACHE='false')


def test_a_cache_of_the_users_own_is_left_alone():
  mine = {'JAX_COMPILATION_CACHE_DIR': 'mine'}
  compile_cache.turn_on(mine)
  assert mine == {'JAX_COMPILATION_CACHE_DIR': 'mine'}


@pytest.mark.slow
def test_all_devices_of_the_mesh_are_timed(here):
  """In a process that has four of them."""
  flags = os.environ['XLA_FLAGS']
  top = str(pathlib.Path(__file__).parents[1])
  words = ['--config.mesh.data=2', '--config.mesh.fsdp=2', '--json']
  done = subprocess.run(
    [sys.executable, '-m', 'shared_tfm', *BENCH, *words],
    env=os.environ
    | {
      'PYTHONPATH': top,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count=4',
    },
    capture_output=True,
    text=True,
    check=True,
  )
  measured = json.loads(done.stdout)
  (step,) = measured['kinds']
  assert measured['device']['count'] == 4
  assert (step['rows'], step['tokens']) == (4, 64)
  assert 0 < step['utilisation'] < 1


@pytest.mark.slow
@pytest.mark.parametrize('task', FAMILIES)
def test_every_kind_of_batch_is_timed(task):
  config = crossed(FAMILIES[task])
  measured = bench.bench(config, 1)
  timed = [step.batch for step in measured.kinds]
  wanted = [
    {name: each.shape for name, each in sorted(shapes.items())}
    for shapes in tasks.make(config).batches()
  ]
  assert sorted(map(str, timed)) == sorted(map(str, wanted))
  assert all(math.isfinite(step.loss) for step in measured.kinds)
  lengths = [shapes['inputs'][1] for shapes in timed]
  assert lengths == sorted(lengths, reverse=True)
  assert len(timed) == (3 if task == 'translation' else 1)
  for step in measured.kinds:
    length = step.batch['inputs'][1]
    if task == 'image_classification':
      length = (8 // 4) ** 2 + 1  # patches, and what stands for the whole
    per_token = accounting.flops_per_token(config.model, length)['train']
    assert step.tokens == step.rows * length
    assert step.flops == step.tokens * per_token
  told = speed.render(measured)
  uneven = 'as if it were as long as its target' in told
  assert uneven == (task == 'translation')


def clock(seconds):
  """Every look at it is so many seconds later."""
  ticks = itertools.count()
  return types.SimpleNamespace(perf_counter=lambda: next(ticks) * seconds)


@pytest.mark.parametrize(
  ('seconds', 'size'), [(0.25 * rate.ENOUGH, 16), (2 * rate.ENOUGH, 8)]
)
def test_the_rate_of_products(monkeypatch, seconds, size):
  """The best is kept; none is larger than one that took long enough."""
  monkeypatch.setattr(rate, 'SIZES', (8, 16))
  monkeypatch.setattr(rate, 'time', clock(seconds))
  mesh = meshes.make(crossed(FAMILIES['translation']))
  products = rate.Products(mesh, 'bfloat16')
  products.run()
  assert products.best.size == size
  assert products.best.flops_per_second == pytest.approx(2 * size**3 / seconds)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float8'])
def test_what_products_are_of(monkeypatch, dtype):
  """Where layers have eight bits, those and the wider ones, by turns."""
  monkeypatch.setattr(rate, 'SIZES', (8, 16))
  monkeypatch.setattr(rate, 'time', clock(0.25 * rate.ENOUGH))
  mesh = meshes.make(crossed(FAMILIES['translation']))
  tried = [
    (a.dtype.name, a.shape[-1]) for a in rate.Products(mesh, dtype)._operands
  ]
  expected = [('bfloat16', 8), ('bfloat16', 16)]
  if dtype == 'float8':
    expected = [(k, n) for n in (8, 16) for k in ('float8_e4m3fn', 'bfloat16')]
  assert tried == expected


# Where time goes.


@pytest.mark.slow
def test_a_profile_and_its_most_costly_operations(here, capsys):
  trace = '--trace=profile/of/it'
  traced = json.loads(said(capsys, *BENCH, trace, '--json'))['traced']
  assert list((here / 'profile/of/it').rglob('*.xplane.pb'))
  rows = traced['operations']
  assert 0.05 < sum(row['share'] for row in rows) <= 1
  assert sum(row['seconds'] for row in rows) <= traced['seconds']
  times = [row['seconds'] for row in rows]
  assert times == sorted(times, reverse=True)
  assert {row['phase'] for row in rows} >= {
    'forward',
    'recomputed',
    'backward',
    'update',
  }
  products = {
    (row['place'], row['phase']): row['count']
    for row in rows
    if row['kind'] == 'dot'
  }
  # A product of each of 2 layers in each of 3 steps, and two backward.
  assert products['feed_forward/up', 'forward'] == 6
  assert products['feed_forward/up', 'backward'] == 12
  assert not {'while', 'call', 'cond'} & {row['kind'] for row in rows}


@pytest.mark.slow
def test_the_table(here, capsys):
  printed = said(capsys, *BENCH, '--trace=profile')
  lines = printed.splitlines()
  head = lines.index(
    next(line for line in lines if line.startswith('Operations of 3 steps'))
  )
  *rows, others, idle = lines[head + 2 : head + 2 + speed.MOST + 2]
  shares = [float(row.split('%')[0]) for row in (*rows, others, idle)]
  assert sum(shares) == pytest.approx(100, abs=1)
  assert re.search(r'\d+ others$', others) and 'no operation' in idle
  assert re.search(r'^model FLOPs utilisation +\d+\.\d%$', printed, re.M)
  assert re.search(r'^matrix products +[\d,.]+ GFLOP/s \(\d+ x', printed, re.M)

  page = pathlib.Path(__file__).parents[1] / 'docs' / 'speed.md'
  example = page.read_text().partition('```text\n')[2].partition('\n```')[0]
  shown = example.splitlines()
  assert labels(shown) == labels(lines[: head + 2 + speed.MOST + 2])


def labels(lines):
  """What figures are called, and titles without theirs."""
  kept = [line for line in lines if not re.match(r' *\d', line)]
  return [re.sub(r'(?:  |,| \d).*', '', line) for line in kept]


def event(name, start, end, **stats):
  return types.SimpleNamespace(
    name=name, start_ns=start, duration_ns=end - start, stats=stats.items()
  )


def profiled(planes):
  """A profile, of planes and their lines by name."""
  return types.SimpleNamespace(
    planes=[
      types.SimpleNamespace(
        name=plane,
        lines=[
          types.SimpleNamespace(name=name, events=events)
          for name, events in lines.items()
        ],
      )
      for plane, lines in planes.items()
    ]
  )


HOST = {'python': [event('work', 0, 90), event('add.1', 0, 5, hlo_op='add.1')]}


def test_operations_of_a_tpu_are_its_line_of_operations():
  tpu = {
    'XLA Modules': [event('jit_step', 0, 90)],
    'XLA Ops': [event('%fusion.1 = f32[8]{0} fusion(%p)', 10, 30)],
    'Async XLA Ops': [event('%copy-start.2 = f32[8] copy-start(%p)', 0, 90)],
  }
  found = costly.operations(profiled({'/device:TPU:0': tpu, '/host:CPU': HOST}))
  assert found == [costly.Run('fusion.1', 10, 30, 30)]


def test_operations_of_a_gpu_are_in_its_streams():
  gpu = {
    'Stream #13(Compute)': [
      event('gemm_kernel', 0, 20, hlo_op='dot.7'),
      event('MemcpyD2D', 20, 30),
    ],
    'Launch Stats': [event('launch', 0, 90)],
  }
  found = costly.operations(profiled({'/device:GPU:0': gpu, '/host:CPU': HOST}))
  assert found == [
    costly.Run('dot.7', 0, 20, 20),
    costly.Run('MemcpyD2D', 20, 30, 30),
  ]


def test_an_operation_of_a_cpu_ends_on_any_thread():
  one = [
    event('dot.1', 0, 2, hlo_op='dot.1', _p=7),
    event('add.1', 2, 8, hlo_op='add.1', _p=8),
    event('end: add.1', 8, 9, _c=8),
    event('Await', 9, 20),
  ]
  other = [event('end: dot.1', 10, 11, _c=7)]
  found = costly.operations(
    profiled({'/host:CPU': {'one': one, 'other': other}})
  )
  assert found == [costly.Run('dot.1', 0, 2, 10), costly.Run('add.1', 2, 8, 8)]


def test_time_is_shared_by_what_runs_at_once():
  """Two in half of it, a gap, one in no time, and one right after another."""
  runs = [
    ('a', costly.Run('', 0e9, 4e9, 4e9)),
    ('b', costly.Run('', 2e9, 4e9, 4e9)),
    ('c', costly.Run('', 3e9, 3e9, 3e9)),
    ('a', costly.Run('', 10e9, 11e9, 11e9)),
    ('b', costly.Run('', 11e9, 14e9, 14e9)),
  ]
  assert spent(runs) == {'a': 2 + 1 + 1, 'b': 1 + 3}


def test_who_waits_is_charged_where_nobody_runs():
  runs = [
    ('copy', costly.Run('', 0e9, 1e9, 9e9)),
    ('dot', costly.Run('', 2e9, 7e9, 7e9)),
  ]
  assert spent(runs) == {'copy': 1 + 1 + 2, 'dot': 5}


def spent(runs):
  found = {}
  for group, seconds in costly.shared(runs):
    found[group] = found.get(group, 0) + seconds
  return found


HLO = """\
HloModule jit_step

%fused.1 (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  ROOT %dot.9 = f32[4,4]{1,0} dot(%p, %p), lhs_contracting_dims={1}
}

ENTRY %main (x: f32[4,4]) -> f32[4,4] {
  %x = f32[4,4]{1,0} parameter(0)
  %wrapped.3 = f32[4,4]{1,0} fusion(%x), kind=kCustom, calls=%fused.1, \
metadata={op_name="jit(step)/while/body/closed_call/jvp(Transformer.outputs)/\
Transformer._run/stack/while/body/closed_call/Layer/attention/\
attention._keys_values/attention._key/key/dot_general" stack_frame_id=1}
  %gemm.4 = (f32[4,4]{1,0}, s8[9]{0}) custom-call(%x), \
custom_call_target="__cublas$gemm", metadata={op_name="jit(step)/while/body/\
transpose(jvp(Transformer.outputs))/stack/while/body/checkpoint/\
rematted_computation/Layer/feed_forward/up/dot_general"}
  %add_fusion.5.1 = f32[4,4]{1,0} fusion(%x), kind=kLoop, calls=%fused.2, \
metadata={op_name="jit(step)/cond/branch_1_fun/add"}
  ROOT %switch.2 = f32[4,4]{1,0} conditional(%x, %x), \
metadata={op_name="jit(step)/transpose(jvp(Transformer.scores))/head/cond"}
}
"""


def test_operations_are_named_by_what_the_program_says():
  names = costly.known(HLO)
  assert names['wrapped.3'] == ('dot', 'attention/key', 'forward')
  assert names['gemm.4'] == ('dot', 'feed_forward/up', 'recomputed')
  assert names['add_fusion.5.1'] == ('add_fusion', '', 'update')
  assert names['switch.2'] == ('conditional', 'head', 'backward')


# Bad input.


@pytest.mark.slow
def test_generation_is_timed(here, capsys):
  sizes = '--batch=3', '--prompt_tokens=5', '--tokens=6'
  words = *BENCH, '--generate', *sizes
  found = json.loads(said(capsys, *words, '--json'))
  assert (found['batch'], found['prompt'], found['tokens']) == (3, 5, 6)
  assert found['rounds'] == 3
  for seconds in (found['first'], found['token']):
    assert 0 < seconds['50'] <= seconds['90'] <= seconds['99']
  described = json.loads(said(capsys, 'describe', BENCH[1], '--json'))
  assert found['weight_bytes'] == described['weight_bytes']
  # Two visits of 3 texts of 64 places: keys, values, and which are seen.
  assert found['cache_bytes'] >= 2 * 3 * 64 * (2 * 4 * 16 + 1)
  table = said(capsys, *words)
  assert re.search(r'each further token +p50 .*, p90 .*, p99 ', table)


@pytest.mark.parametrize(
  ('words', 'rule'),
  [
    (['--steps=0'], r'steps must be at least 1, got 0'),
    (['--steps=two'], r".*--steps.*'two'.*--help\)"),
    (['--trace=config.py'], r'trace config.py is no folder'),
    (['--trace=config.py/below'], r'config.py/below.*'),
    (['--trcae=x'], r".*'trcae'.*"),
    (['--config.model.num_layer=3'], r".*mean 'model.num_layers'\?"),
    (['--config.mesh.data=3', '--trace=new'], r'the mesh must take all .*'),
    (['--generate', '--batch=0'], r'--batch must be at least 1, got 0'),
    (['--generate', '--tokens=20'], r'a prompt of 32 tokens and 20 more .*'),
    (['--generate', '--trace=new'], r'--trace is of training steps, .*'),
  ],
)
def test_bad_input_is_one_line(here, capsys, words, rule):
  assert main([*BENCH, *words]) == 2
  printed = capsys.readouterr()
  assert not printed.out
  (line,) = printed.err.splitlines()
  assert re.fullmatch(f'error: {rule}', line), line
  assert [path.name for path in here.iterdir()] == ['config.py']


def test_a_config_is_needed(here, capsys):
  assert main(['bench']) == 2
  assert 'required: --config' in capsys.readouterr().err
