"""What analyses measure, against plain forms of it, and what the verb says."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_cli
from flax.traverse_util import unflatten_dict

from shared_tfm import config as configs
from shared_tfm import tasks
from shared_tfm.data import tokenizers
from shared_tfm.errors import BadInput
from shared_tfm.layers.context import Context
from shared_tfm.layers.layer import Layer
from shared_tfm.model import build, untied
from shared_tfm.report import analysis
from shared_tfm.report.analysis import (
  gradients,
  lens,
  ranks,
  similarity,
  text,
)
from shared_tfm.train import checkpoint, runs, synthetic, visits
from shared_tfm.train import state as states

LAYERS, V, L, B = 4, 258, 8, 4
SIZES = {
  'num_layers': LAYERS,
  'd_model': 16,
  'num_heads': 2,
  'max_len': L,
  'vocab_size': V,
  'activation': 'relu',
}
LOOPS = {'sharing': {'layer': 'cycle:2'}}


class Batches:
  """A dataset of made-up batches, the last row of the last one nobody's."""

  def __init__(self, config, count=2):
    task = tasks.make(config)
    self.tokenizer = tokenizers.make('bytes', [], V, None)
    self.made = [
      synthetic.batch(config, task.batches()[0], seed) for seed in range(count)
    ]
    last = self.made[-1]
    last['weights'][-1] = 0
    if 'row' in last:
      last['row'][-1] = -1
    if 'mask' in last:
      last['mask'][:, L - 2 :] = False
    if 'source_mask' in last:
      last['source_mask'][:, L - 3 :] = False

  def evaluation(self, split, count):
    yield from self.made


def reader_of(data=None, task=None, **model):
  """A reader of a network of random weights."""
  config = configs.cross(
    {
      'model': {**SIZES, **model},
      'task': task or {},
      'train': {'batch_size': B},
      'data': data or {},
    }
  )
  start = jax.jit(functools.partial(states.initial, config))
  state = start(jnp.uint32(0))
  random = np.random.default_rng(1)
  params = jax.tree.map(
    lambda a: a + 0.3 * random.normal(size=a.shape).astype(np.float32),
    state.params,
  )
  state = state.replace(params=params)
  found = Batches(config)
  return analysis.Reader('run', config, state, found, 'validation', 0)


@pytest.fixture(scope='module')
def looped():
  """A decoder of two rows, each read twice."""
  return reader_of(**LOOPS)


def only(reader, **changed):
  """The same reader, with some fields of its model's depth changed."""
  depth = dataclasses.replace(reader.config.model.depth, **changed)
  model = dataclasses.replace(reader.config.model, depth=depth)
  config = dataclasses.replace(reader.config, model=model)
  return analysis.Reader(
    'run', config, reader.state, reader.dataset, 'validation', 0
  )


# Streams.


def plain_streams(reader, batch):
  """What enters and leaves visits, one layer after the other, (N, B, L, D)."""
  model = reader.config.model
  weights = untied.of_visits(model, reader.state.params, {})['stack']
  positions_BL = jnp.broadcast_to(jnp.arange(L), batch['inputs'].shape)

  def layer(x_BLD, weights):
    own = {'params': unflatten_dict(weights)}
    return Layer(model).apply(own, x_BLD, Context(positions_BL))[0]

  def run(variables, weights):
    first_BLD = x_BLD = build(reader.config).apply(
      variables,
      method=lambda net: net.embedding(batch['inputs'], positions_BL),
    )
    into, out = [], []
    for i in range(model.num_layers):
      if model.depth.injection == 'add' and i % 2 == 0:
        x_BLD = x_BLD + first_BLD
      into.append(x_BLD)
      x_BLD = layer(x_BLD, {path: leaf[i] for path, leaf in weights.items()})
      out.append(x_BLD)
    return into, out

  found = jax.jit(run)(reader.variables, weights)
  return tuple(np.stack(streams) for streams in found)


@pytest.mark.slow
@pytest.mark.parametrize(
  'depth', [{}, {'injection': 'add'}, {'rule': 'act', 'halt_bias': 9.0}]
)
def test_streams_are_those_of_a_plain_loop_over_layers(depth):
  """The loops that act could skip, all tokens having halted, among them."""
  reader = reader_of(**LOOPS, depth=depth)
  seen = next(reader.seen())
  into, out = plain_streams(reader, reader.first)
  close = {'rtol': 1e-4, 'atol': 1e-4}
  np.testing.assert_allclose(seen.into['stack'][0], into, **close)
  np.testing.assert_allclose(seen.out['stack'][0], out, **close)
  assert seen.live['stack'].all()
  # To be watched changes nothing that comes out.
  read = tasks.arguments(reader.first)
  run = functools.partial(reader.model.apply, method='outputs')
  apart = jax.jit(run)(reader.variables, **read)
  np.testing.assert_allclose(
    seen.outputs.hidden_XBLD, apart.hidden_XBLD, rtol=1e-5, atol=1e-5
  )


@pytest.mark.slow
def test_distances_are_those_of_plain_vectors(looped):
  reader = looped
  found = analysis.analyse(reader, ['distance'])['distance']['stack']
  vectors = []
  for batch in reader.dataset.made:
    into, out = plain_streams(reader, batch)
    there = batch['weights'].any(axis=1)
    vectors.append([x[:, there].reshape(LAYERS, -1, 16) for x in (into, out)])
  a, b = (np.concatenate(x, axis=1) for x in zip(*vectors, strict=True))
  assert a.shape[1] == (2 * B - 1) * L  # the filling is left out
  size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
  cosine = (a * b).sum(axis=-1) / size
  expected = {
    'l2': np.linalg.norm(a - b, axis=-1),
    'cosine': cosine,
    'degrees': np.degrees(np.arccos(cosine)),
  }
  for name, values in expected.items():
    np.testing.assert_allclose(found[name], values.mean(axis=1), rtol=1e-3)


# Similarity.


def plain_hsic(x, y):
  """The unbiased HSIC of linear kernels: 2010.15327, equation 3."""
  n = len(x)
  k, m = x @ x.T, y @ y.T
  np.fill_diagonal(k, 0)
  np.fill_diagonal(m, 0)
  one = np.ones(n)
  total = np.trace(k @ m)
  total += one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2))
  total -= 2 / (n - 2) * (one @ k @ m @ one)
  return total / (n * (n - 3))


def test_cka_is_the_plain_formula(monkeypatch):
  monkeypatch.setattr(similarity, 'GROUP', 8)
  random = np.random.default_rng(0)
  x = random.normal(size=(2, 3, 5, 6)).astype(np.float32) + 3
  y = np.concatenate([x[:1, ..., :4] ** 2, random.normal(size=(1, 3, 5, 4))], 0)
  y = y.astype(np.float32)
  live = np.ones((3, 5), bool)
  live[2, 3:] = False
  sums, groups = similarity.hsic([jnp.asarray(x), jnp.asarray(y)], live)
  streams = [x[0], x[1], y[0], y[1]]
  # 15 positions in two groups.
  order = similarity.shuffled(15)
  assert sorted(order) == [*range(15)]
  expected = np.zeros((4, 4))
  for start in range(2):
    group = order[start::2]
    group = group[live.reshape(-1)[group]]
    each = [s.reshape(15, -1)[group].astype(np.float64) for s in streams]
    expected += [[plain_hsic(a, b) for b in each] for a in each]
  assert groups == 2
  np.testing.assert_allclose(sums, expected, rtol=1e-3, atol=1e-3)
  size = np.sqrt(np.diagonal(expected))
  np.testing.assert_allclose(
    similarity.cka(np.asarray(sums, np.float64)),
    expected / np.outer(size, size),
    atol=1e-4,
  )


def test_cka_sees_neither_rotations_nor_factors():
  random = np.random.default_rng(0)
  x = random.normal(size=(4, 8, 6)).astype(np.float32)
  turn, _ = np.linalg.qr(random.normal(size=(6, 6)))
  wide = np.concatenate([x, np.zeros_like(x)], axis=-1)
  other = random.normal(size=x.shape).astype(np.float32)
  same = np.stack([x, 7 * x @ turn.astype(np.float32) + 2, other])
  live = np.ones((4, 8), bool)
  sums, _ = similarity.hsic([jnp.asarray(same), jnp.asarray(wide[None])], live)
  found = similarity.cka(np.asarray(sums, np.float64))
  np.testing.assert_allclose(np.diagonal(found), 1, rtol=1e-6)
  np.testing.assert_allclose(found[0, [1, 3]], 1, atol=1e-4)
  assert abs(found[0, 2]) < 0.3


def test_cka_sees_what_places_differ_in(monkeypatch):
  """Though there are as many texts as a group has positions."""
  monkeypatch.setattr(similarity, 'GROUP', 8)
  random = np.random.default_rng(0)
  place_LD = random.normal(size=(4, 6))
  noise = 0.1 * random.normal(size=(2, 8, 4, 6))
  streams = (place_LD + noise).astype(np.float32)
  sums, groups = similarity.hsic([jnp.asarray(streams)], np.ones((8, 4), bool))
  assert groups == 4
  assert similarity.cka(np.asarray(sums, np.float64))[0, 1] > 0.9


def test_cka_of_what_never_changes_is_zero():
  still = np.ones((1, 2, 4, 3), np.float32)
  sums, _ = similarity.hsic([jnp.asarray(still)], np.ones((2, 4), bool))
  assert similarity.cka(np.asarray(sums, np.float64)).tolist() == [[0]]


# Lens.


def evaluated(reader):
  """The loss of an evaluation, by the task's own sums."""
  observe = jax.jit(
    functools.partial(reader.model.apply, method=reader.task.observe)
  )
  sums = [observe(reader.variables, b)[0] for b in reader.dataset.made]
  return sum(s['loss'] for s in sums) / sum(s['weight'] for s in sums)


FAMILIES = {
  'decoder': {},
  'post': {'norm_position': 'post'},
  'masked': {'family': 'encoder'},
  'classes': {
    'family': 'encoder',
    'head': 'classes',
    'num_classes': 3,
    'task': {'name': 'classification'},
  },
  'a number': {
    'family': 'encoder',
    'head': 'classes',
    'num_classes': 1,
    'task': {'name': 'classification'},
  },
  'spans': {
    'family': 'encoder',
    'head': 'spans',
    'task': {'name': 'question_answering'},
  },
  'vision': {
    'family': 'vision',
    'image_size': 4,
    'patch_size': 2,
    'num_classes': 3,
  },
  'two stacks': {
    'family': 'encoder_decoder',
    'num_decoder_layers': 2,
    'data': {'source': 'reverse', 'difficulty': 3},
  },
  'narrow core': {'core_width': 8, 'core_ff': 16},
}


SLOW = ('post', 'spans', 'narrow core', 'ponder', 'expert_choice')


def marked(names):
  return [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in names
  ]


WHOLE = 'vision', 'a number', 'spans', 'two stacks'


@pytest.mark.slow
@pytest.mark.parametrize(
  'family', marked(name for name in FAMILIES if name not in WHOLE)
)
def test_the_last_lens_is_the_network(family):
  reader = reader_of(**FAMILIES[family])
  check_lens(family, reader, lens.measure(reader))


def check_lens(family, reader, found):
  """The last lens is the network, and the first is not."""
  depth = 2 if family == 'two stacks' else LAYERS
  expected = [0, LAYERS - 1] if family == 'narrow core' else [*range(depth)]
  assert found['visits'] == expected
  assert found['final'] == pytest.approx(float(evaluated(reader)), rel=1e-4)
  assert found['loss'][-1] == pytest.approx(found['final'], rel=1e-4)
  assert found['loss'][0] != pytest.approx(found['final'], rel=1e-3)
  if family == 'a number':  # there is nothing to choose from
    assert found.keys() == {'visits', 'loss', 'final'}
    return
  assert found['agreement'][-1] == pytest.approx(1)
  assert found['kl'][-1] == pytest.approx(0, abs=1e-4)
  assert found['kl'][0] > 0.01
  assert ('example' in found) == (family not in ('classes', 'spans', 'vision'))


@pytest.mark.parametrize(
  'family',
  [
    WHOLE[0],
    *(pytest.param(name, marks=pytest.mark.slow) for name in WHOLE[1:]),
  ],
)
def test_all_that_says_something_of_a_family_is_written(family, tmp_path):
  """Where visits share no row, and whatever the head tells."""
  reader = reader_of(**FAMILIES[family])
  found = analysis.analyse(reader)
  check_lens(family, reader, found['lens'])
  assert found['left_out'].keys() == {'depth'}
  for name in analysis.ANALYSES.keys() - found['left_out']:
    numbers = [
      value
      for row in analysis.ANALYSES[name].rows(found[name])
      for value in row.values()
      if isinstance(value, float)
    ]
    assert numbers and np.isfinite(numbers).all(), name
  written = {path.name for path in analysis.write(found, tmp_path)}
  assert {'lens.png', 'cka.csv', 'gradients.png', 'rank.csv'} <= written
  assert json.loads((tmp_path / 'analysis.json').read_text()).keys() == {*found}
  assert analysis.tell(found).count('depth is fixed') == 1


@pytest.mark.slow
def test_the_lens_is_norm_and_head_of_a_stream(looped):
  reader = looped
  found = lens.measure(reader)
  loss = weight = agrees = kl = 0.0
  for batch in reader.dataset.made:
    _, out = plain_streams(reader, batch)

    def read(net, x_BLD):
      return net.scores(net.norm(x_BLD))

    logits = [
      np.asarray(
        jax.nn.log_softmax(
          reader.model.apply(reader.variables, out[i], method=read)
        ),
        np.float64,
      )
      for i in (1, LAYERS - 1)
    ]
    here, final = logits
    w = batch['weights']
    picked = np.take_along_axis(here, batch['targets'][..., None], -1)[..., 0]
    loss -= (picked * w).sum()
    agrees += ((here.argmax(-1) == final.argmax(-1)) * w).sum()
    kl += ((np.exp(final) * (final - here)).sum(-1) * w).sum()
    weight += w.sum()
  assert found['loss'][1] == pytest.approx(loss / weight, rel=1e-4)
  assert found['agreement'][1] == pytest.approx(agrees / weight)
  assert found['kl'][1] == pytest.approx(kl / weight, rel=1e-3)


@pytest.mark.slow
def test_the_lens_of_tokens_that_leave_early():
  base = reader_of(**LOOPS, depth={'rule': 'exits'})
  reader = only(base, criterion='probability', threshold=0.0)
  found = lens.measure(reader)  # all leave after the first of two loops
  assert found['final'] == pytest.approx(float(evaluated(reader)), rel=1e-4)
  assert found['loss'][1] == pytest.approx(found['final'], rel=1e-4)
  assert found['loss'][-1] != pytest.approx(found['final'], rel=1e-3)


def test_tokens_as_they_are_shown():
  pieces = (b'a', b' the', b'\n', 'é'.encode(), b'\xff', b'')
  shown = [text.token(pieces, i) for i in range(7)]
  assert shown == ['a', '·the', '\\n', 'é', '�', '<5>', '<6>']


# Gradients.


@pytest.mark.slow
def test_cosines_are_those_of_a_network_that_shares_nothing(looped):
  """Copied weights, one set a layer, and the gradient of its plain loss."""
  reader = looped
  model = reader.config.model
  copied = untied.spread(model, reader.state.params, {})
  whole = build(
    dataclasses.replace(reader.config, model=untied.untied(model)), train=True
  )

  def loss(params):
    total = 0.0
    for batch in reader.dataset.made:
      logits = whole.apply({'params': params}, batch['inputs'])
      log = jax.nn.log_softmax(logits)
      targets = batch['targets'][..., None]
      told = jnp.take_along_axis(log, targets, -1)[..., 0]
      total -= jnp.sum(told * batch['weights']) / (B * L)
    return total

  slopes = jax.grad(loss)(copied)['stack']['rows']
  found = analysis.analyse(reader, ['gradients'])['gradients']
  for name in ('attention', 'feed_forward', 'norm'):
    flat = np.concatenate(
      [
        np.asarray(leaf, np.float64).reshape(LAYERS, -1)
        for leaf in jax.tree.leaves(slopes[name])
      ],
      axis=1,
    )
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    expected = flat @ flat.T
    np.testing.assert_allclose(found[name]['cosines'], expected, atol=1e-4)
    assert found[name]['owners'] == [0, 1, 0, 1]
    assert found[name]['rows'] == {
      '0': pytest.approx(expected[0, 2], abs=1e-4),
      '1': pytest.approx(expected[1, 3], abs=1e-4),
    }


@pytest.mark.slow
def test_gradients_are_of_the_loss_that_was_trained(looped):
  """Of a smoothed one here, though all else is of the loss itself."""
  task = dataclasses.replace(looped.config.task, label_smoothing=0.5)
  config = dataclasses.replace(looped.config, task=task)
  reader = analysis.Reader(
    'run', config, looped.state, looped.dataset, 'validation', 0
  )
  gradient = jax.jit(visits.visit_gradients(config))
  parts = [
    gradient(looped.state.replace(step=looped.state.step + i), batch)
    for i, batch in enumerate(reader.batches())
  ]
  whole = jax.tree.map(lambda *leaves: sum(leaves), *parts)
  cosines = visits.cosines_of(config, whole)['attention']
  found = gradients.measure(reader)['attention']['cosines']
  np.testing.assert_allclose(found, cosines, atol=1e-6)
  plain = gradients.measure(looped)['attention']['cosines']
  assert np.abs(np.array(found) - plain).max() > 1e-3


# Depth.


DEPTHS = {
  'act': {'rule': 'act', 'halt_bias': 0.5},
  'token_choice': {'rule': 'token_choice'},
  'expert_choice': {'rule': 'expert_choice'},
  'ponder': {'rule': 'ponder'},
  'exits': {'rule': 'exits', 'criterion': 'entropy', 'threshold': 0.5},
}


@pytest.mark.slow
@pytest.mark.parametrize('rule', marked(DEPTHS))
def test_depth_of_tokens(rule):
  reader = reader_of(sharing={'layer': 'all'}, depth=DEPTHS[rule])
  for batch in reader.dataset.made:
    batch['weights'][:] = 1
  found = analysis.analyse(reader, ['depth'])['depth']
  assert sum(found['tokens']) == 2 * B * L
  assert len(found['example']) == L
  run = jax.jit(functools.partial(reader.model.apply, method='exited'))
  logged = [
    run(reader.variables, **tasks.arguments(batch))[1]
    for batch in reader.dataset.made
  ]
  if rule == 'ponder':  # which logs the mean under another name
    run = jax.jit(functools.partial(reader.model.apply, method='outputs'))
    logged = [
      run(reader.variables, **tasks.arguments(batch)).metrics['loops']
      for batch in reader.dataset.made
    ]
  else:
    spread = np.arange(LAYERS + 1) @ found['tokens'] / (2 * B * L)
    assert found['mean'] == pytest.approx(spread)
  assert found['mean'] == pytest.approx(float(np.mean(logged)), rel=1e-4)


def test_a_fixed_depth_is_a_line_and_no_error(looped):
  reader = looped
  why = analysis.ANALYSES['depth'].why_not(reader)
  assert why == (
    'the depth is fixed (fixed), and every token runs all 4 visits;'
    ' --exit=kl:0.01 would let tokens leave'
  )
  with pytest.raises(BadInput, match='--what=depth: the depth is fixed'):
    analysis.analyse(reader, ['depth'])


# Ranks.


def test_ranks_of_known_matrices():
  def of(matrix):
    return ranks.measured(np.linalg.svd(matrix, compute_uv=False))

  assert of(3 * np.eye(5)) == pytest.approx(
    {'effective': 5, 'stable': 5, 'norm': 3 * 5**0.5}
  )
  assert of(np.outer([1, 2, 3], [1, 1])) == pytest.approx(
    {'effective': 1, 'stable': 1, 'norm': 28**0.5}
  )
  shares = np.array([0.5, 0.25, 0.25])
  assert of(np.diag(4 * shares)) == pytest.approx(
    {'effective': 2**1.5, 'stable': 1.5, 'norm': 6**0.5}
  )
  assert of(np.zeros((2, 3))) == {'effective': 0, 'stable': 0, 'norm': 0}


@pytest.mark.slow
def test_ranks_of_every_level():
  reader = reader_of(
    sharing={'layer': 'cycle:2+none@3+none@diagonal', 'feed_forward': 'soft:2'}
  )
  found = analysis.analyse(reader, ['rank'])['rank']
  bank = reader.state.params['stack']
  part = [one for one in found if one['part'] == 'attention.key']
  counted = [(one['level'], one['row'], one['most']) for one in part]
  assert counted == [
    *(('cycle:2', row, 16) for row in range(2)),
    *(('none@3', row, 3) for row in range(4)),
    *(('none@diagonal', row, 16) for row in range(4)),
  ]
  low = bank['level_1']['attention']['key']['kernel']
  product = np.asarray(low['a'][2]) @ np.asarray(low['b'][2])
  values = np.linalg.svd(product.astype(np.float64), compute_uv=False)
  shares = values / values.sum()
  entropy = -(shares * np.log(np.maximum(shares, 1e-30))).sum()
  one = part[2 + 2]
  assert one['effective'] == pytest.approx(np.exp(entropy), rel=1e-4)
  assert one['norm'] == pytest.approx(np.linalg.norm(product), rel=1e-4)
  soft = [one for one in found if one['part'] == 'feed_forward.up']
  assert [(one['level'], one['row']) for one in soft] == [
    ('soft:2', 0),
    ('soft:2', 1),
  ]


# The verb.


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A folder with text.txt and what looks like a run of act, in `run`."""
  folder = tmp_path_factory.mktemp('analysed')
  (folder / 'text.txt').write_text(test_cli.TEXT)
  config = configs.cross(
    {
      'model': {**SIZES, 'sharing': {'layer': 'all'}, 'depth': {'rule': 'act'}},
      'train': {'batch_size': B},
      'data': {'source': 'text', 'path': 'text.txt'},
    }
  )
  made = functools.partial(states.initial, config)
  with runs.claimed(folder / 'run', config):
    kept = checkpoint.Checkpoints(folder / 'run' / runs.CHECKPOINTS, 1)
    kept.save(7, jax.jit(made)(jnp.uint32(0)).replace(step=jnp.int32(7)), {}, 5)
    kept.close()
  return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
  shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
  monkeypatch.chdir(tmp_path)
  return tmp_path


ANALYSE = ('analyse', '--workdir=run', '--batches=1')


@pytest.mark.slow
def test_analyse_writes_and_tells_all(here, capsys):
  before = test_cli.tree(here / 'run')
  told = test_cli.said(capsys, *ANALYSE)
  after = test_cli.tree(here / 'run')
  names = set(analysis.ANALYSES)
  assert {path.name for path in after.keys() - before.keys()} == {
    'analysis',
    'analysis.json',
    *(f'{name}.csv' for name in names),
    *(f'{name}.png' for name in names),
  }
  assert all(after[path] == before[path] for path in before if path.is_file())
  found = json.loads((here / 'run/analysis/analysis.json').read_text())
  assert found.keys() == {'run', 'left_out', *names}
  assert found['run']['step'] == 7
  assert np.shape(found['cka']['stack']) == (4, 4)
  for name in names:
    assert f'\n{name}: ' in told
    lines = (here / f'run/analysis/{name}.csv').read_text().splitlines()
    assert len(lines) > 4
  assert 'row 0: ' in told and 'final' in told and 'loops' in told


def test_analyse_as_json_and_elsewhere(here, capsys):
  before = test_cli.tree(here / 'run')
  words = ('--what=rank,distance', '--out=there', '--json')
  found = json.loads(test_cli.said(capsys, *ANALYSE, *words))
  assert found.keys() == {'run', 'left_out', 'rank', 'distance'}
  assert found == json.loads((here / 'there/analysis.json').read_text())
  assert test_cli.tree(here / 'run') == before


@pytest.mark.parametrize(
  ('word', 'line'),
  [
    ('--what=lense', "unknown analysis 'lense'; did you mean 'lens'?"),
    ('--what=,', '--what names analyses, or all: cka, distance'),
    ('--batches=-1', '--batches must be at least 0 (all), got -1'),
    ('--split=tset', "unknown split 'tset'; did you mean 'test'?"),
    ('--exit=kl:0.01', 'model.depth.criterion is for the rules'),
    ('--workdir=none', 'none is no run'),
    ('--config.model.d_model=8', 'a run has its config'),
  ],
)
def test_bad_input_is_one_line(here, capsys, word, line):
  assert test_cli.refused(capsys, here, *ANALYSE, word).startswith(line)
