"""What a training step computes and sends on 8 virtual devices, as JSON.

`python tests/on_mesh.py CASE...`; test_mesh.py runs it and asserts. It is a
process of its own because JAX fixes the number of devices when it starts.
"""

import json
import os
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import jax
import jax.numpy as jnp
import numpy as np
import optax

from shared_tfm import config as configs
from shared_tfm.train import programs, prune, traffic
from shared_tfm.train.fingerprint import fingerprint

DECODER = {
  'num_layers': 4,
  'd_model': 32,
  'num_heads': 8,
  'vocab_size': 128,
  'max_len': 16,
  'remat': 'full',
}
ENCODER = {**DECODER, 'family': 'encoder', 'type_vocab_size': 2}
EXPERTS = {'num_ff': 4, 'top_k': 2, 'ff_width': 16}
BY_JIT = [  # every axis, alone and with others
  {'data': 8},
  {'fsdp': 8},
  {'data': 2, 'tensor': 4},
  {'data': 2, 'fsdp': 2, 'tensor': 2},
  {'data': 4, 'sequence': 2},
]
SOME = [{'data': 4, 'fsdp': 2}]
MORE = [  # by the rule alone
  {'tensor': 8},
  {'fsdp': 2, 'tensor': 2, 'sequence': 2},
]
CASES = {
  'all': (
    {'model': {**DECODER, 'sharing': {'layer': 'all'}}},
    BY_JIT[:1] + SOME,
  ),
  'cycle': (
    {'model': {**DECODER, 'sharing': {'layer': 'cycle:2+none@2'}}},
    BY_JIT[1:] + SOME + MORE,
  ),
  'relative': (
    {
      'model': {
        **DECODER,
        'position': 'relative',
        'sharing': {'layer': 'cycle:2'},
      }
    },
    [*SOME, {'data': 2, 'fsdp': 2, 'tensor': 2}],
  ),
  'accumulated': (
    {'model': {**DECODER, 'sharing': {'layer': 'all'}}, 'accumulate': 2},
    SOME,
  ),
  'order': (
    {
      'model': {**ENCODER, 'sharing': {'layer': 'all'}},
      'task': {'name': 'masked_lm', 'sentence_order': True},
    },
    SOME,
  ),
  'experts': (
    {
      'model': {
        **DECODER,
        'experts': EXPERTS,
        'sharing': {'layer': 'cycle:2'},
      }
    },
    SOME,
  ),
  **{
    dtype: (
      {'model': {**DECODER, 'dtype': dtype, 'sharing': {'layer': 'all'}}},
      [*SOME, {'data': 2, 'fsdp': 2, 'tensor': 2}],
    )
    for dtype in ('bfloat16', 'float8')
  },
  'pruned': (
    {
      'model': {**DECODER, 'sharing': {'layer': 'cycle:2+none@2'}},
      'prune': {'method': 'snip', 'start': 1},
    },
    SOME,
  ),
  'batchnorm': (
    {
      'model': {**DECODER, 'norm': 'batchnorm', 'sharing': {'layer': 'all'}},
    },
    SOME,
  ),
}


def batch_of(task):
  """Random tokens; a different number of them counts in every row."""
  random, batch = np.random.default_rng(0), {}
  for name, shape in task.batches()[0].items():
    high = 2 if name in ('types', 'order', 'mask', 'weights') else 128
    values = random.integers(0, high, shape.shape)
    if name == 'mask':
      values[:, :2] = 1
    batch[name] = values.astype(shape.dtype)
  return batch


def measured(fields, mesh, start=None):
  """Gradients, parameters after three steps, scores and collectives.

  Args:
    fields: of the config.
    mesh: its fields.
    start: a state to train from, to be cut for the mesh; None: a fresh one.
  """
  fields = dict(fields)
  train = {'batch_size': 16, 'num_steps': 3}
  train['accumulate'] = fields.pop('accumulate', 1)
  config = configs.cross(
    {
      **fields,
      'train': train,
      'mesh': mesh,
      'optimizer': {'eps': 1e-2, 'learning_rate': 0.1, 'clip_norm': 1e9},
    }
  )
  made = programs.Programs(config)
  batch = made.put(batch_of(made.task))
  if start is None:
    start = jax.device_get(made.init(jnp.uint32(0)))
  state, losses = jax.device_put(start, made.where), []
  pruner = prune.Pruner(config, made)
  for step in range(3):
    if pruner.due(step):
      state = jax.device_put(pruner.apply(state, batch), made.where)
    state, metrics = made.train(state, batch)
    losses.append(float(metrics['loss']))
    if len(losses) == 1:
      moments = jax.device_get(optax.tree.get(state.opt_state, 'mu'))
  scored = not mesh or mesh.get('step') == 'jit'  # it is by jit anyhow
  sums = made.evaluate(state, batch)[0] if scored else {'loss': np.nan}
  (step,) = made.train.compiled.values()
  some = jax.tree.leaves(state.params)[:4]
  leaves = jax.tree.leaves(jax.tree.map(lambda s: s.sharding, made.shapes))
  return {
    'start': start,
    'gradients': moments,
    'params': jax.device_get(state.params),
    'hashes': [fingerprint(some), fingerprint(jax.device_get(some))],
    'masks': jax.device_get(state.variables.get('masks', {})),
    'losses': losses,
    'eval_loss': float(sums['loss']),
    'tokens': int(metrics['tokens']),
    'sent': traffic.collectives(step.as_text()),
    'expected': expected(made),
    'placed': jax.tree.leaves(jax.tree.map(lambda a: a.sharding, state))
    == leaves,
  }


def expected(made):
  """Bytes of one gather and one reduction of every stored parameter."""
  data, fsdp = made.mesh.shape['data'], made.mesh.shape['fsdp']
  total = 0.0
  for leaf in jax.tree.leaves(made.shapes.params):
    size = leaf.size * leaf.dtype.itemsize
    if 'fsdp' in leaf.sharding.spec:
      total += 2 * size * (fsdp - 1) / fsdp
      total += 2 * size / fsdp * (data - 1) / data
    else:
      total += 2 * size * (data * fsdp - 1) / (data * fsdp)
  return total


def apart(left, right):
  """The largest difference of two trees, over the largest value."""
  pairs = list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
  most = max(float(np.abs(b).max()) for _, b in pairs)
  return max(float(np.abs(a - b).max()) for a, b in pairs) / most


def same(left, right):
  """Whether two trees are equal."""
  return jax.tree.all(jax.tree.map(np.array_equal, left, right))


def against_one_device(case):
  """Every mesh of a case against one device; some of them both ways."""
  fields, shapes = CASES[case]
  alone, found = measured(fields, {}), []
  for shape in shapes:
    for step in ('auto', 'jit') if shape in BY_JIT + SOME else ('auto',):
      here = measured(fields, {**shape, 'step': step}, alone['start'])
      sent = here['sent']
      found.append(
        {
          'case': case,
          'mesh': shape,
          'step': step,
          'gradients': apart(here['gradients'], alone['gradients']),
          'layers': apart(
            here['gradients']['stack'], alone['gradients']['stack']
          ),
          'params': apart(here['params'], alone['params']),
          'losses': apart(here['losses'], alone['losses']),
          'eval_loss': abs(here['eval_loss'] / alone['eval_loss'] - 1),
          'masks': same(here['masks'], alone['masks']),
          'tokens': [here['tokens'], alone['tokens']],
          'placed': here['placed'],
          'hashes': here['hashes'],
          'sent': sum(c.sent for c in sent),
          'looped': sum(c.sent for c in sent if c.looped),
          'expected': here['expected'],
        }
      )
  return found


if __name__ == '__main__':
  found = [each for case in sys.argv[1:] for each in against_one_device(case)]
  print(json.dumps(found))
