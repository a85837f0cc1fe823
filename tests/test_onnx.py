"""ONNX graphs that say what the network says."""

import json
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
import test_cli
from test_cli import refused, said

from shared_tfm import config as configs
from shared_tfm.compress import exported, onnx_graph
from shared_tfm.errors import BadInput
from shared_tfm.model import build
from shared_tfm.train import loop

here, run, trained = test_cli.here, test_cli.run, test_cli.trained
SIZES = {'num_layers': 4, 'd_model': 16, 'num_heads': 2, 'max_len': 16}
MODELS = {
  'cycle': {'sharing': {'layer': 'cycle:2'}},
  'sum': {'sharing': {'layer': 'all+none@2'}, 'dtype': 'bfloat16'},
  'templates': {'sharing': {'layer': 'soft:2'}},
  'llama': {
    'position': 'rotary',
    'norm': 'rmsnorm',
    'activation': 'swiglu',
    'use_bias': False,
    'num_kv_heads': 1,
  },
  'albert': {'family': 'encoder', 'norm_position': 'post', 'embed_norm': True}
  | {'type_vocab_size': 2, 'embed_dim': 8, 'sharing': {'layer': 'all'}},
  't5': {'family': 'encoder_decoder', 'position': 'relative'}
  | {'norm': 'rmsnorm', 'activation': 'geglu', 'use_bias': False},
  'vision': {'family': 'vision', 'num_classes': 3},
  'batchnorm': {'norm': 'batchnorm'},
  'halting': {'depth': {'rule': 'act'}, 'sharing': {'layer': 'all'}},
}


def made(**model):
  """A config, and drawn parameters and other variables."""
  model = {'vocab_size': 48} | SIZES | model
  config = configs.cross({'model': model})
  inputs = exported.inputs_of(config.model)
  given = onnx_graph.example(config.model, inputs)
  shapes = jax.eval_shape(build(config).init, jax.random.key(0), **given)
  random = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: 0.3 * random.normal(size=leaf.shape).astype(np.float32) ** 2,
    dict(nn.unbox(shapes)),
  )
  return config, variables.pop('params'), variables


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_the_graph_says_what_the_network_says(name, tmp_path):
  """With another batch and other lengths than it was checked with."""
  import onnxruntime

  config, params, variables = made(**MODELS[name])
  told = onnx_graph.write(config, params, variables, tmp_path / 'out')
  sizes = sum(leaf.size for leaf in jax.tree.leaves((params, variables)))
  assert 3 * sizes < told['bytes']['weights.bin'] <= 4 * sizes  # none twice
  session = onnxruntime.InferenceSession(str(tmp_path / 'out/model.onnx'))
  random = np.random.default_rng(1)
  given = {}
  for number, (key, leaf) in enumerate(told['inputs'].items()):
    sizes = {'B': 2, 'L': 16, 'S': 9}
    shape = [sizes.get(n) or int(n) for n in leaf['shape']]
    if leaf['dtype'] == 'bool':
      given[key] = np.arange(shape[1])[None] < np.array([[shape[1]], [5]])
    elif leaf['dtype'] == 'int32':
      rows = 2 if 'types' in key else 48
      given[key] = random.integers(rows, size=shape, dtype=np.int32)
    else:
      given[key] = random.normal(size=shape).astype(np.float32) + number
  (found,) = session.run(None, given)
  model = {**SIZES, 'vocab_size': 48, **MODELS[name], 'dtype': 'float32'}
  network = build(configs.cross({'model': model}))
  expected = network.apply({'params': params, **variables}, **given)
  assert np.ptp(expected) > 0.01
  most = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, most))


ALONE = """\
import sys
sys.modules['shared_tfm'] = sys.modules['jax'] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession('out/model.onnx')
tokens = numpy.arange(15, dtype='int32').reshape(3, 5)
numpy.save('said.npy', session.run(None, {'tokens_BL': tokens})[0])
"""


@pytest.mark.slow
def test_it_runs_where_there_is_no_jax(run, capsys):
  told = json.loads(
    said(capsys, 'export', '--from=run', '--to=onnx', '--out=out')
  )
  assert told == json.loads((run.parent / 'out/about.json').read_text())
  assert told['inputs'] == {
    'tokens_BL': {'shape': ['B', 'L'], 'dtype': 'int32'}
  }
  subprocess.run([sys.executable, '-c', ALONE], check=True, timeout=300)
  config, state = loop.load('run')
  tokens = np.arange(15, dtype='int32').reshape(3, 5)
  expected = build(config).apply({'params': state.params}, tokens)
  found = np.load('said.npy', allow_pickle=False)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
  ('model', 'message'),
  (
    (
      {'experts': {'num_ff': 4, 'ff_width': 8, 'top_k': 2}},
      'jax2onnx has no ONNX for this network: TypeError: ',
    ),
    (
      {'sharing': {'kv_source': 'sequence:2'}},
      'onnxruntime does not run what jax2onnx made: ',
    ),
  ),
)
def test_what_has_no_graph(model, message, tmp_path):
  with pytest.raises(BadInput) as raised:
    onnx_graph.write(*made(**model), tmp_path / 'out')
  assert str(raised.value).startswith(message)
  assert '\n' not in str(raised.value)
  assert not list(tmp_path.iterdir())


def test_a_graph_that_says_something_else_is_not_handed_out(
  tmp_path, monkeypatch
):
  config, params, variables = made()
  right = exported.run_of

  def wrong(*given):
    return lambda *args: 1.01 * right(*given)(*args)

  def converted(*args):
    found = form(*args)
    monkeypatch.setattr(exported, 'run_of', wrong)  # from here on
    return found

  form = onnx_graph._converted
  monkeypatch.setattr(onnx_graph, '_converted', converted)
  with pytest.raises(BadInput, match='says something else: it is off by'):
    onnx_graph.write(config, params, variables, tmp_path / 'out')
  assert not list(tmp_path.iterdir())


def test_without_the_libraries_a_line_says_how_to_get_them(
  run, capsys, monkeypatch
):
  monkeypatch.setattr(onnx_graph, 'NEEDS', ('onnx', 'no_such_library'))
  flags = 'export', '--from=run', '--to=onnx', '--out=new'
  line = refused(capsys, run.parent, *flags)
  assert line == (
    'export --to=onnx needs no_such_library: ./setup.sh onnx installs it'
  )
  assert not (run.parent / 'new').exists()
