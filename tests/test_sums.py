"""Sums of levels, soft mixing, shared units and ties: the scan's weights equal
those that plain loops over the levels' tables make, and so do the gradients.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
import test_stack
from flax.traverse_util import flatten_dict, unflatten_dict
from test_stack import TOKENS, TOLERANCE, assert_close

from shared_tfm import config as configs
from shared_tfm.config import shapes
from shared_tfm.model import storage
from shared_tfm.model.stack import Stack
from shared_tfm.sharing import owners
from shared_tfm.sharing.opaque import NAME, opaque

N = test_stack.LAYERS


def config_of(sharing, **model):
  sizes = {'num_layers': N, 'd_model': 16, 'num_heads': 4, 'max_len': 8}
  return configs.cross(
    {'model': {**sizes, 'vocab_size': 64, 'sharing': sharing, **model}}
  )


class Plain:
  """Every layer's weights out of a bank, by loops, and the way back.

  It knows the grammar by itself: a spec's text is split at '|', '+' and '@'.
  """

  def __init__(self, model):
    self.model = model
    self.given = model.sharing.specs()
    self.paths = {p: t.shape for p, t in shapes.layer(model).items()}

  def spec(self, path):
    """The spec of the nearest ancestor, and that ancestor's name."""
    while path and path not in self.given:
      path = path.rpartition('.')[0]
    name = path or 'layer'
    return self.given[name], name

  def columns(self, path, units):
    """Which stored column each column reads; None: it is not about them."""
    m, part = self.model, path.split('.')[1]
    count = {
      'query': m.num_heads,
      'out': m.num_heads,
      'key': m.num_kv_heads,
      'value': m.num_kv_heads,
    }.get(part, m.d_ff)
    inputs = part in ('out', 'down')
    if not units or (inputs and path.endswith('bias')):
      return None, 0
    axis = 0 if inputs or path.endswith('bias') else 1
    width = self.paths[path][axis] // count
    wanted = [o * width + i for o in owners(units, count) for i in range(width)]
    return np.array(wanted), axis

  def terms(self, path):
    """(tree, kind, table) for every term of a tensor."""
    text, _, units = self.spec(path)[0].partition('|')
    found = []
    for i, level in enumerate(text.split('+')):
      table, _, rank = level.partition('@')
      kind = 'diagonal' if rank == 'diagonal' else 'product' if rank else 'row'
      if table.startswith('soft'):
        kind, table = 'soft', 'none'
      found.append((f'level_{i}' if i else 'rows', kind, owners(table, N)))
    if len(self.paths[path]) == 1:
      full = [term for term in found if term[1] == 'row']
      found = full or [(found[0][0], 'row', found[0][2])]
    return found, units

  def visit(self, path, layer, bank, grad=None, into=None, rule='sum'):
    """One layer's tensor; with `grad` of it, adds to the gradients `into`."""
    found, units = self.terms(path)
    columns, axis = self.columns(path, units)
    at = tuple(path.split('.'))
    total = 0.0
    if grad is not None and columns is not None:
      stored = bank[(found[0][0], *at)] if found[0][1] == 'row' else None
      count = columns.max() + 1
      assert stored is None or stored.shape[1 + axis] == count
      folded = np.zeros((*grad.shape[:axis], count, *grad.shape[axis + 1 :]))
      where = (slice(None),) * axis
      np.add.at(folded, (*where, columns), grad)
      grad = folded
    for tree, kind, table in found:
      row = table[layer]
      given = grad
      if grad is not None and rule == 'owner' and kind != 'soft':
        given = grad * (table.index(row) == layer)
      if kind == 'row':
        total = total + bank[(tree, *at)][row]
        if grad is not None:
          into[(tree, *at)][row] += given
      elif kind == 'product':
        a, b = bank[(tree, *at, 'a')][row], bank[(tree, *at, 'b')][row]
        total = total + a @ b
        if grad is not None:
          into[(tree, *at, 'a')][row] += given @ b.T
          into[(tree, *at, 'b')][row] += a.T @ given
      elif kind == 'diagonal':
        values = bank[(tree, *at, 'diagonal')][row]
        d_in, d_out = self.paths[path]
        if columns is not None:
          size = columns.max() + 1
          d_in, d_out = (size, d_out) if axis == 0 else (d_in, size)
        matrix = np.zeros((d_in, d_out))
        for i, value in enumerate(values):
          matrix[i, i] = value
        total = total + matrix
        if grad is not None:
          for i in range(len(values)):
            into[(tree, *at, 'diagonal')][row][i] += given[i, i]
      else:
        mix = ('mix', self.spec(path)[1])
        templates = bank[(tree, *at)]
        for k, template in enumerate(templates):
          total = total + bank[mix][layer][k] * template
          if grad is not None:
            into[(tree, *at)][k] += bank[mix][layer][k] * given
            into[mix][layer][k] += (given * template).sum()
    if columns is not None:
      total = np.take(total, columns, axis)
    return total

  def weights(self, bank):
    """Every tensor with a leading axis of layers."""
    bank = flat(bank)
    made = {}
    for path in self.paths:
      spec = self.spec(path)[0]
      other = path
      if spec.startswith('='):
        other = f'{spec[1:]}.{path.rpartition(".")[2]}'
      rows = [self.visit(other, layer, bank) for layer in range(N)]
      made[tuple(path.split('.'))] = np.stack(rows).astype(np.float32)
    return unflatten_dict(made)

  def gradients(self, bank, per_layer, rule='sum'):
    """Of the bank, from those of every layer's tensors."""
    bank, per_layer = flat(bank), flat(per_layer)
    into = {path: np.zeros_like(leaf) for path, leaf in bank.items()}
    for path in self.paths:
      spec = self.spec(path)[0]
      other = path
      if spec.startswith('='):
        other = f'{spec[1:]}.{path.rpartition(".")[2]}'
      for layer, grad in enumerate(per_layer[tuple(path.split('.'))]):
        self.visit(other, layer, bank, grad, into, rule)
    if rule == 'mean':
      for path in self.paths:
        if not self.spec(path)[0].startswith('='):
          self._averaged(path, into)
    return unflatten_dict(into)

  def _averaged(self, path, into):
    for tree, kind, table in self.terms(path)[0]:
      for place in into:
        if place[: 1 + path.count('.') + 1] == (tree, *path.split('.')):
          for row in range(len(into[place])):
            visits = N if kind == 'soft' else table.count(row)
            into[place][row] /= visits


def flat(tree):
  return {
    path: np.asarray(leaf, np.float64)
    for path, leaf in flatten_dict(tree).items()
  }


def expected(config, variables, rule='sum'):
  plain = Plain(config.model)
  params = dict(variables['params'])
  bank = params['stack']
  params['stack'] = plain.weights(bank)
  neutral = dataclasses.replace(
    config.model, sharing=configs.Sharing(), shared_gradient='sum'
  )
  grads, (logits, _) = test_stack.plain_form(neutral)(params, {}, TOKENS)
  grads['stack'] = plain.gradients(bank, grads['stack'], rule)
  return logits, grads


def corrections(variables):
  """Levels above the first are made smaller than what they correct.

  Three terms of full size triple a weight's variance in every layer, and with
  depth what two orders of rounding differ by grows past every tolerance.
  """
  params = dict(variables['params'])
  params['stack'] = {
    name: tree
    if not name.startswith('level_')
    else jax.tree.map(lambda leaf: 0.3 * leaf, tree)
    for name, tree in params['stack'].items()
  }
  return {**variables, 'params': params}


def assert_equal_forms(sharing, dtype='float32', rule='sum', times=1):
  """The scan is the plain form, to `times` what is tolerated, gradients too."""
  config = config_of(sharing, dtype=dtype, shared_gradient=rule)
  variables = corrections(test_stack.variables_of(config_of(sharing)))
  logits, grads, _ = test_stack.actual(config, variables)
  true_logits, true_grads = expected(config, variables, rule)
  assert_close(logits, true_logits, times * TOLERANCE[dtype])
  assert_close(grads, true_grads, times * TOLERANCE[dtype])
  return grads


# Several schemes in each, since compiling is what a test costs.
MIXED = {
  'products': {
    'layer': 'cycle:3+none@4',
    'feed_forward': 'sequence:3+none@2+none@diagonal',
    'attention_value': 'all+sequence:3@4+none@2',
    'feed_forward_down': 'all@99',
  },
  'soft': {
    'layer': 'soft:3',
    'attention_query': 'soft:2',
    'feed_forward': 'all+soft:2',
    'feed_forward_down': '0,0,1,2,2,1@3+none@diagonal|sequence:32',
    'norm': 'all+none',
  },
  'units and ties': {
    'layer': 'none@4+all',
    'attention': 'cycle:2|sequence:2',
    'attention_key': '=attention.query',
    'feed_forward_up': 'soft:2+all@diagonal|cycle:16',
  },
}
PUBLISHED = {
  'Relaxed Recursive Transformers': {'layer': 'cycle:3+none@4'},
  'ResidualTransformer': {'layer': 'sequence:3+none@2+none@diagonal'},
  'hierarchical': {'layer': 'all+sequence:3@4+none@2'},
  'MASA': {
    f'attention_{part}': 'soft:2' for part in ('query', 'key', 'value', 'out')
  },
  'soft': {'layer': 'soft:4', 'norm': 'none'},
  'heads': {'attention': 'none|sequence:2'},
  'neurons': {'feed_forward': 'cycle:3+none@3|sequence:32'},
  'Q=K': {'attention_key': '=attention.query'},
  'K=V': {'layer': 'cycle:2', 'attention_key': '=attention.value'},
  'Q=K=V': {
    'layer': 'all',
    'attention_key': '=attention.query',
    'attention_value': '=attention.query',
  },
}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow) if name == 'products' else name
    for name in MIXED
  ],
)
def test_equals_plain_loops(name):
  """And every stored parameter is read: its gradient is not 0."""
  grads = assert_equal_forms(MIXED[name])
  for path, leaf in flatten_dict(grads['stack']).items():
    if path[-2:] != ('key', 'bias'):
      assert (np.abs(leaf).reshape(len(leaf), -1).max(-1) > 0).all(), path


@pytest.mark.parametrize(
  'rule', ('mean', pytest.param('owner', marks=pytest.mark.slow))
)
def test_gradients_of_a_row_by_every_rule(rule):
  sharing = {**MIXED['products'], 'attention_out': 'all+soft:2'}
  assert_equal_forms(sharing, rule=rule)


@pytest.mark.slow
@pytest.mark.parametrize('name', PUBLISHED)
def test_published_schemes_equal_plain_loops(name):
  assert_equal_forms(PUBLISHED[name])


@pytest.mark.slow
@pytest.mark.parametrize('name', MIXED)
def test_bfloat16_is_close(name):
  assert_equal_forms(MIXED[name], 'bfloat16')


class Bank(Stack):
  """A stack that declares its parameters and runs nothing."""

  @nn.compact
  def __call__(self):
    return self._bank(shapes.components(self.model), storage.layout(self.model))


def stored(model):
  boxes = jax.eval_shape(Bank(model).init, jax.random.key(0))
  return nn.unbox(boxes)['params']


def stored_shapes(model):
  return {p: leaf.shape for p, leaf in flatten_dict(stored(model)).items()}


def test_ranks_are_capped():
  """At min(d_in, d_out): Relaxed Recursive Transformers' Gemma (2410.20672)."""
  config = config_of({'layer': 'all+none@64', 'feed_forward_down': 'none@8'})
  found = stored_shapes(config.model)
  assert found['level_1', 'feed_forward', 'up', 'kernel', 'a'] == (N, 16, 16)
  assert found['level_1', 'attention', 'out', 'kernel', 'b'] == (N, 16, 16)
  assert found['rows', 'feed_forward', 'down', 'kernel', 'b'] == (N, 8, 16)


def test_what_is_stored_has_the_names_of_its_axes():
  """A factor keeps the name of the side it stands on; a rank has none."""
  config = config_of({'layer': 'all+none@4+none@diagonal', 'norm': 'soft:2'})
  boxes = jax.eval_shape(Bank(config.model).init, jax.random.key(0))['params']
  names = {
    path: box.names
    for path, box in flatten_dict(
      boxes, is_leaf=lambda _, x: not isinstance(x, dict)
    ).items()
    if path[1:4] == ('feed_forward', 'up', 'kernel')
  }
  at = ('feed_forward', 'up', 'kernel')
  assert names == {
    ('rows', *at): ('owner', 'embed', 'mlp'),
    ('level_1', *at, 'a'): ('owner', 'embed', None),
    ('level_1', *at, 'b'): ('owner', None, 'mlp'),
    ('level_2', *at, 'diagonal'): ('owner', None),
  }
  assert set(boxes) == {'rows', 'level_1', 'level_2'}


def initial(**sharing):
  """Every layer's weights at the start, and the bank they are made of."""
  config = config_of(sharing, d_model=64, d_ff=256, use_bias=False)
  bank = jax.jit(Bank(config.model).init)(jax.random.key(0))
  bank = nn.unbox(bank)['params']
  return flat(Plain(config.model).weights(bank)), bank


def test_what_is_multiplied_keeps_its_variance_at_the_start():
  """Whatever a matrix is made of; and norms begin at 1 under every spec."""
  made, _ = initial(
    layer='all+none',
    attention_query='none@8',
    attention_key='soft:3',
    attention_value='none@diagonal',
    attention_out='none@8+all',
    feed_forward_up='all+none@8',
    feed_forward_down='all+soft:2|sequence:128',
    norm_attention='none@8+all',
    norm_feed_forward='soft:2',
  )
  for path, layers in made.items():
    if path[-1] == 'scale':
      np.testing.assert_array_equal(layers, 1)
    else:
      variance = (layers**2).sum(axis=1).mean()
      assert 0.7 < variance < 1.4, (path, variance)


def test_corrections_begin_at_zero():
  """A sum starts as its first term, with something to learn in the others."""
  made, bank = initial(
    layer='cycle:3+none@4+none@diagonal', attention='all+none+soft:2'
  )
  for path, layers in made.items():
    table = owners('all' if path[0] == 'attention' else 'cycle:3', N)
    rows = flat(bank['rows'])[path]
    np.testing.assert_array_equal(layers, rows[np.array(table)])
  first = flat(bank['level_1'])
  assert (first['feed_forward', 'up', 'kernel', 'a'].std(axis=(1, 2)) > 0).all()


def test_an_opaque_function_is_differentiated_like_any_other():
  """Both modes, twice, and over a batch; nothing of it shows in a program."""

  def plain(w, a, b):
    return w + a @ b

  random = np.random.default_rng(0)
  w, a, b = (random.normal(size=(2, 3, 3)).astype(np.float32) for _ in range(3))

  def results(function):
    def loss(a):
      return (jax.vmap(function)(w, a, b) ** 2).sum()

    gradient = jax.grad(loss)
    return loss(a), gradient(a), jax.jvp(gradient, (a,), (b,))[1]

  hidden = functools.partial(opaque, plain)
  assert_close(results(hidden), results(plain), 1e-6)
  program = str(jax.make_jaxpr(hidden)(w[0], a[0], b[0]).eqns[0].primitive)
  assert program == NAME


COPIED = {
  'products': {'layer': 'all+none@4'},
  'soft': {'layer': 'soft:2'},
  'neurons': {'layer': 'all', 'feed_forward': 'all|sequence:256'},
  'diagonal': {'layer': 'all+none@diagonal'},
}
QUICK = (('products', 'none', 1), ('products', 'dots', 3))


@pytest.mark.parametrize(
  'name,remat,group',
  [
    pytest.param(
      name,
      *remat,
      marks=() if (name, *remat) in QUICK else (pytest.mark.slow,),
    )
    for name in COPIED
    for remat in (*test_stack.REMAT, ('dots', 3))
    if name == 'products' or remat in (('none', 1), ('dots', 1))
  ],
)
def test_no_policy_keeps_combined_weights_of_every_layer(name, remat, group):
  """Twelve visits: temporaries of a few layers' weights, never of twelve."""
  config = config_of(
    COPIED[name], num_layers=12, d_model=256, remat=remat, remat_group=group
  )
  lowered, _ = test_stack.gradient_program(config)
  temporary = lowered.compile().memory_analysis().temp_size_in_bytes
  one = 4 * sum(t.size for t in shapes.layer(config.model).values())
  assert temporary < (7 if name == 'soft' else 4) * one


def test_training_owners_alone_copies_nothing():
  config = config_of(
    {'layer': 'all'},
    num_layers=12,
    d_model=256,
    remat='none',
    shared_gradient='owner',
  )
  lowered, one = test_stack.gradient_program(config)
  assert lowered.compile().memory_analysis().temp_size_in_bytes < 4 * one
