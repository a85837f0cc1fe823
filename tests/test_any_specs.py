"""Specs at random: what is stored is what is counted, and what visits read is
what plain loops make, in values and in gradients.
"""

import collections
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stack import assert_close
from test_sums import (
  N,
  Plain,
  assert_equal_forms,
  config_of,
  flat,
  stored,
  stored_shapes,
)

from shared_tfm import accounting
from shared_tfm.config import shapes
from shared_tfm.layers.context import Context, Left
from shared_tfm.model import stack, storage
from shared_tfm.model.stack import Stack

TABLES = (
  'none',
  'all',
  'sequence:3',
  'cycle:2',
  'cycle_rev:3',
  'sandwich',
  'prefix:4',
  '0,1,0,2,1,2',
)
PARTS = ('query', 'key', 'value', 'out')
UNITS = ('', '', '', '|all', '|none', '|sequence:2')  # of 4 heads, 64 neurons


@st.composite
def specs(draw, units):
  """A sum of one to four levels; with `units`, maybe of a matrix's units."""
  level = st.builds(
    str.__add__,
    st.sampled_from(TABLES),
    st.sampled_from(('', '', '@1', '@3', '@99', '@diagonal')),
  )
  levels = draw(st.lists(level, min_size=1, max_size=3))
  if draw(st.integers(0, 3)) == 0:
    soft = f'soft:{draw(st.integers(1, 7))}'
    levels.insert(draw(st.integers(0, len(levels))), soft)
  return '+'.join(levels) + (draw(st.sampled_from(UNITS)) if units else '')


@st.composite
def sharings(draw):
  """Specs for some of the components and parts."""
  found = {'layer': draw(specs(False))}
  names = ['norm', 'attention', 'feed_forward', 'feed_forward_down']
  names += ['norm_attention', *(f'attention_{part}' for part in PARTS)]
  for name in draw(st.lists(st.sampled_from(names), unique=True, max_size=4)):
    found[name] = draw(specs(not name.startswith('norm')))
  tied = draw(st.sampled_from(('', 'query', 'value', 'out')))
  if tied:
    found['attention_key'] = f'=attention.{tied}'
  return found


@pytest.mark.parametrize(
  'examples', (30, pytest.param(170, marks=pytest.mark.slow))
)
def test_counts_of_any_specs_equal_the_tree(examples):
  @settings(deadline=None, max_examples=examples)
  @given(sharings(), st.booleans(), st.sampled_from((0, 1, 2)))
  def law(sharing, bias, kv_heads):
    if kv_heads and any('|seq' in s for s in sharing.values()):
      kv_heads = 2
    if sharing.get('attention_key') in ('=attention.query', '=attention.out'):
      kv_heads = 0
    model = {'use_bias': bias, 'num_kv_heads': kv_heads}
    config = config_of(sharing, activation='swiglu', **model)
    found = stored_shapes(config.model)
    counts = accounting.parameters(config.model)
    assert counts['layers_stored'] == sum(map(math.prod, found.values()))
    one = sum(t.size for t in shapes.layer(config.model).values())
    assert counts['layers_applied'] == N * one
    assert all(0 not in shape for shape in found.values())

  law()


@pytest.mark.slow
@settings(deadline=None, max_examples=5)
@given(sharings())
def test_any_specs_equal_plain_loops(sharing):
  # Some drawn specs have sums that cancel: 3e-5 of what is left was seen.
  assert_equal_forms(sharing, times=5)


class Reader:
  """Stands in for a layer: has a few of its tensors, and tells what they are.

  What a spec decides is the weights that visits get; what a layer computes from
  them costs most of the compiling. This one leaves the tanh of each, in the
  model's precision, where what layers observe is found.
  """

  def __init__(self, leaves, model, train=False, parent=None):
    del train, parent
    self.leaves, self.model = leaves, model

  def init(self, key, *_):
    boxes = {
      path: nn.LogicallyPartitioned(
        jax.random.normal(key, leaf.shape), leaf.names
      )
      for path, leaf in self.leaves.items()
    }
    return {'params': unflatten_dict(boxes)}

  def apply(self, variables, x_BLD, context, rngs, mutable):
    del context, rngs, mutable
    weights = flatten_dict(variables['params'], sep='.')
    told = {
      path: jnp.tanh(weight.astype(self.model.dtype))
      for path, weight in weights.items()
    }
    return (x_BLD, Left(observed=told)), {}


TIES = {
  'attention.query': ('attention.key', 'attention.value', 'attention.out'),
  'attention.key': ('attention.query', 'attention.value'),
  'attention.value': ('attention.key',),
  'feed_forward.gate': ('feed_forward.up',),
}
SEVERAL = (*TIES, 'attention.out', 'feed_forward.up', 'feed_forward.down')
SEVERAL += ('norm.attention', 'norm.feed_forward')


@st.composite
def layers(draw):
  """A few parts of a layer, most with their own specs, and the rest."""
  tied = draw(st.sampled_from(('', '', *TIES)))
  other = draw(st.sampled_from(TIES[tied])) if tied else ''
  parts = draw(st.sets(st.sampled_from(SEVERAL), min_size=2, max_size=3))
  parts = sorted(parts | {tied, other} - {''})
  sharing = {'layer': draw(specs(False))}
  for part in parts:
    component = part.partition('.')[0]
    for name in (component, part.replace('.', '_')):
      if name not in sharing and draw(st.integers(0, 2)):
        sharing[name] = draw(specs(component != 'norm'))
  model = {
    'activation': 'swiglu',
    'use_bias': draw(st.booleans()),
    'remat': draw(st.sampled_from(('none', 'dots', 'full'))),
    'shared_gradient': draw(st.sampled_from(('sum', 'mean', 'owner'))),
  }
  if tied:
    sharing[tied.replace('.', '_')] = f'={other}'
  if not {tied, other} & {'attention.query', 'attention.out'}:
    model['num_kv_heads'] = draw(st.sampled_from((0, 2)))
  return parts, sharing, model


@functools.cache
def real_layout(use_bias, num_kv_heads=0):
  config = config_of(
    {}, activation='swiglu', use_bias=use_bias, num_kv_heads=num_kv_heads
  )
  return storage.layout(config.model)


def told(model, leaves, bank, probe):
  """What visits read, and the gradients of what `probe` makes of it."""
  context = Context(jnp.zeros((1, 1), int))

  def loss(bank):
    ran = Stack(model, train=True).apply(
      {'params': bank}, jnp.zeros((1, 1, model.d_model)), context
    )
    read = {path: ran.state.observed['.'.join(path)] for path in leaves}
    return sum(jnp.sum(read[path] * probe[path]) for path in leaves), read

  # In one piece, which is the quickest way for a program that runs once.
  options = {'xla_cpu_parallel_codegen_split_count': 1}
  return jax.jit(jax.grad(loss, has_aux=True), compiler_options=options)(bank)


def assert_read(parts, sharing, options, dtype):
  """Returns the specs that matrices follow."""
  model = config_of(sharing, dtype=dtype, **options).model
  whole = real_layout(options['use_bias'], options.get('num_kv_heads', 0))
  leaves = {p: leaf for p, leaf in whole.items() if '.'.join(p[:2]) in parts}
  random = np.random.default_rng(3)
  with pytest.MonkeyPatch.context() as patch:
    # Caches of their own: others may ask for what is known of the same model.
    for name in ('layout', '_level_shapes', 'layer_shapes'):
      patch.setattr(
        storage, name, functools.cache(getattr(storage, name).__wrapped__)
      )
    patch.setattr(storage, 'layer', storage.layer.__wrapped__)
    for room in (stack, storage):
      patch.setattr(room, 'Layer', functools.partial(Reader, leaves))
    bank = jax.tree.map(
      lambda leaf: 0.3 * random.normal(size=leaf.shape).astype(np.float32),
      stored(model),
    )
    probe = {
      path: random.normal(size=(N, *leaf.shape)).astype(np.float32)
      for path, leaf in leaves.items()
    }
    grads, read = told(model, leaves, bank, probe)
  plain = Plain(model)
  plain.paths = {'.'.join(path): leaf.shape for path, leaf in leaves.items()}
  made = {
    p: np.tanh(weights) for p, weights in flat(plain.weights(bank)).items()
  }
  wanted = {path: probe[path] * (1 - made[path] ** 2) for path in leaves}
  true_grads = plain.gradients(
    bank, unflatten_dict(wanted), options['shared_gradient']
  )
  # A wrong row would be off by 1. Rounded factors' gradients are by 0.04, and a
  # diagonal's, a sum of which most cancels, has been by 7e-5 and by 0.22.
  tolerance = 3e-4 if dtype == 'float32' else 0.4
  assert_close(read, made, tolerance)
  assert_close(flat(grads), flat(true_grads), tolerance)
  return [plain.spec(p)[0] for p, shape in plain.paths.items() if shape[1:]]


KINDS = 'soft', '|', '='


@pytest.mark.slow
@pytest.mark.usefixtures('no_program_is_kept')
@pytest.mark.parametrize('dtype,wanted', (('float32', 200), ('bfloat16', 50)))
def test_any_specs_are_read_as_by_plain_loops(dtype, wanted):
  """What the visits of a scan read, and the gradients of all that is stored."""
  passed, count = set(), collections.Counter()

  @settings(deadline=None, max_examples=16 * wanted // 10)
  @given(layers())
  def law(drawn):
    enough = all(count[kind] >= wanted // 4 for kind in KINDS)
    if str(drawn) in passed or (enough and len(passed) >= wanted):
      return  # some are drawn twice
    text = ' '.join(assert_read(*drawn, dtype))
    passed.add(str(drawn))
    text = text.replace('|none', '')  # every unit its own
    count.update(kind for kind in KINDS if kind in text)

  law()
  assert len(passed) >= wanted
  for kind in KINDS:
    assert count[kind] >= wanted // 4, count
