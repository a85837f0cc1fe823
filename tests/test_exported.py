"""StableHLO that runs where this project is not."""

import dataclasses
import json
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
import test_cli
from safetensors.numpy import load_file
from test_cli import refused, said

from shared_tfm import config as configs
from shared_tfm.compress import exported
from shared_tfm.model import build
from shared_tfm.train import loop

here, run, trained = test_cli.here, test_cli.run, test_cli.trained
# No module of ours can be imported.
ALONE = """\
import sys
sys.modules['shared_tfm'] = None
import jax.export, numpy, safetensors.numpy
with open('out/program.bin', 'rb') as file:
  program = jax.export.deserialize(bytearray(file.read()))
weights = safetensors.numpy.load_file('out/weights.safetensors')
for shape in (3, 5), (1, 16):
  tokens = numpy.arange(shape[0] * shape[1], dtype='int32').reshape(shape)
  numpy.save(f'{shape[0]}.npy', program.call(weights, {'tokens_BL': tokens}))
"""


@pytest.mark.slow
def test_it_runs_without_this_project(run, capsys):
  """With any batch and length, and the weights stored as they are shared."""
  told = json.loads(
    said(capsys, 'export', '--from=run', '--to=stablehlo', '--out=out')
  )
  assert told['inputs'] == {
    'tokens_BL': {'shape': ['B', 'L'], 'dtype': 'int32'}
  }
  assert told['outputs'] == [{'shape': ['B', 'L', '258'], 'dtype': 'float32'}]
  assert told['platforms'] == ['cpu', 'cuda', 'tpu']
  assert told == json.loads((run.parent / 'out/about.json').read_text())
  result = json.loads((run / 'result.json').read_text())
  assert told['parameters'] == result['stored_params']
  stored = load_file(run.parent / 'out/weights.safetensors')
  assert sum(w.size for w in stored.values()) == result['stored_params']

  subprocess.run([sys.executable, '-c', ALONE], check=True, timeout=300)
  config, state = loop.load('run')
  for shape in (3, 5), (1, 16):
    tokens = np.arange(shape[0] * shape[1], dtype='int32').reshape(shape)
    expected = build(config).apply({'params': state.params}, tokens)
    found = np.load(f'{shape[0]}.npy', allow_pickle=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)


TOKENS = np.arange(20, dtype=np.int32).reshape(2, 10)


@pytest.mark.parametrize(
  ('model', 'inputs'),
  (
    (
      {'family': 'encoder', 'type_vocab_size': 2},
      {'mask_BL': TOKENS % 10 < 8, 'types_BL': TOKENS % 2},
    ),
    pytest.param(
      {'family': 'encoder_decoder'},
      {'source_BS': TOKENS[:, :7], 'source_mask_BS': TOKENS[:, :7] % 10 < 5},
      marks=pytest.mark.slow,
    ),
    pytest.param(
      {'family': 'vision', 'num_classes': 3},
      {'tokens_BL': np.ones((2, 32, 32, 3), np.float32)},
      marks=pytest.mark.slow,
    ),
    ({'norm': 'batchnorm'}, {}),
    pytest.param(
      {'position': 'relative', 'experts': {'num_ff': 4, 'top_k': 2}},
      {},
      marks=pytest.mark.slow,
    ),
    pytest.param({'depth': {'rule': 'act'}}, {}, marks=pytest.mark.slow),
  ),
)
def test_every_family_says_the_same(model, inputs, tmp_path):
  sizes = {'num_layers': 4, 'd_model': 16, 'num_heads': 2, 'max_len': 16}
  sharing = {'layer': 'cycle:2'}
  config = configs.cross({'model': {**sizes, 'sharing': sharing, **model}})
  inputs = {'tokens_BL': TOKENS, **inputs}
  shapes = jax.eval_shape(build(config).init, jax.random.key(0), **inputs)
  random = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: 1 + random.normal(0, 0.1, leaf.shape).astype(np.float32),
    dict(nn.unbox(shapes)),
  )
  # What is exported has the attention of every platform.
  plain = dataclasses.replace(config.model, attention_kernel='xla')
  expected = build(dataclasses.replace(config, model=plain)).apply(
    variables, **inputs
  )
  params = variables.pop('params')
  exported.write(config, params, variables, tmp_path / 'out', ['cpu'])
  data = (tmp_path / 'out/program.bin').read_bytes()
  program = jax.export.deserialize(bytearray(data))
  weights = load_file(tmp_path / 'out/weights.safetensors')
  found = program.call(weights, inputs)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_export_refuses(run, capsys):
  def line(*words):
    return refused(capsys, run.parent, 'export', '--from=run', *words)

  to = '--to=stablehlo'
  assert line(to, '--out=run') == 'run must be new or empty'
  assert line(to, '--out=new', '--config.model.d_model=2') == (
    'export changes nothing, got --config.model.d_model=2'
  )
  assert line('--to=huggingface', '--out=new', '--dtype=float64') == (
    "unknown --dtype 'float64'; did you mean 'float16'?"
  )
