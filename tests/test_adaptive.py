"""Tables that change during training, and everything that follows them."""

import dataclasses
import functools
import io
import json
import os
import random
import signal

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tqdm

from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.errors import BadInput, Interrupted
from shared_tfm.model import build
from shared_tfm.report import history, trained
from shared_tfm.sharing import adaptive, levels
from shared_tfm.train import adapt, frozen, log, loop, optimizer, q_network
from shared_tfm.train import programs as programs_of

LAYERS = 4
WORDS = 'a bank of weights is picked by row and every layer reads its own row'
RULES = configs.CHOICES['optimizer.name']


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  words = random.Random(0).choices(WORDS.split(), k=3000)
  path = tmp_path_factory.mktemp('data') / 'text.txt'
  path.write_text(' '.join(words))
  return path


def crossed(method='none', layer='all', model=None, train=None, **fields):
  sizes = {'num_layers': LAYERS, 'd_model': 16, 'num_heads': 2, 'max_len': 8}
  sharing = {'layer': layer, 'norm': 'none'}
  return configs.cross(
    {
      'model': {**sizes, 'sharing': sharing, **(model or {})},
      'train': {
        'num_steps': 8,
        'batch_size': 4,
        'eval_every': 4,
        'eval_batches': 1,
        'checkpoint_every': 4,
        'log_every': 2,
        **(train or {}),
      },
      'adapt': {'method': method, 'every': 2, **fields},
    }
  )


def batch(seed):
  inputs, targets = np.random.default_rng(seed).integers(
    258, size=(2, 4, 8), dtype=np.int32
  )
  return {
    'inputs': jnp.asarray(inputs),
    'targets': jnp.asarray(targets),
    'weights': jnp.ones((4, 8)),
  }


def started(config):
  compiled = programs_of.programs(config)
  return compiled, compiled.init(jnp.uint32(0))


def column(*owners):
  """A table of one level, (visits, 1)."""
  return np.array(owners, np.int32)[:, None]


def kernel(tree):
  return np.asarray(tree['stack']['rows']['attention']['query']['kernel'])


# Tables.


def test_what_can_be_done_to_a_table():
  assert adaptive.dense((3, 3, 0, 3)) == (0, 0, 1, 0)
  assert adaptive.untied((0, 0, 1, 0)) == (0, 1, 2, 3)
  assert adaptive.halved((0, 0, 0, 0, 0, 0)) == (0, 0, 0, 1, 1, 1)
  assert adaptive.halved((0, 0, 0, 1, 1, 1)) == (0, 0, 1, 2, 2, 3)
  assert adaptive.halved((0, 1, 0, 1)) == (0, 1, 2, 3)
  assert adaptive.halved((0, 1, 2)) == (0, 1, 2)
  assert adaptive.merged((0, 1, 2, 1), 0, 2) == (0, 1, 0, 1)
  assert adaptive.tied((0, 1, 2, 3), 3, 1) == (0, 1, 2, 1)
  assert adaptive.tied((0, 1, 2, 1), 3, 3) == (0, 1, 2, 3)
  assert adaptive.tied((0, 1, 1, 1), 1, 1) == (0, 1, 1, 1)  # it owns them
  assert adaptive.tied((0, 1, 1, 2), 1, 0) == (0, 0, 1, 2)  # 2 keeps its row


@pytest.mark.parametrize('layers', [1, 5, 6, 8])
def test_halving_ends_with_a_row_for_every_layer(layers):
  owners, steps = (0,) * layers, 0
  while owners != adaptive.untied(owners):
    owners, steps = adaptive.halved(owners), steps + 1
  assert steps == int(np.ceil(np.log2(layers)))


def test_the_correlation_is_over_visits_to_one_row():
  cosines = np.array([[1, 0.5, 9], [0.5, 1, 9], [9, 9, 1.0]])
  assert adaptive.correlation(cosines, (0, 0, 1)) == 0.5
  assert adaptive.correlation(cosines, (0, 1, 2)) is None


# Moving rows.


def moved(leaf, old, new, join='mean', path=('stack', 'rows', 'norm', 'scale')):
  tree = functools.reduce(lambda inner, key: {key: inner}, path[::-1], leaf)
  tables = {'layer': column(*old)}, {'layer': column(*new)}
  out = adaptive.retie(jax.tree.map(jnp.asarray, tree), *tables, join)
  return np.asarray(jax.tree.leaves(out)[0]).tolist()


def test_rows_follow_the_layers_that_read_them():
  rows = np.array([1.0, 5.0, 8.0, 0.0])
  assert moved(rows, (0, 0, 0, 1), (0, 1, 1, 2)) == [1, 1, 5, 0]
  assert moved(rows, (0, 1, 1, 2), (0, 1, 2, 3)) == [1, 5, 5, 8]
  # A mean over layers: the row that three of them read counts three times.
  assert moved(rows, (0, 0, 0, 1), (0, 0, 0, 0)) == [2, 0, 0, 0]
  assert moved(rows, (0, 0, 0, 1), (0, 0, 0, 0), 'first') == [1, 0, 0, 0]
  assert moved(rows.astype(int), (0, 0, 0, 1), (0, 0, 0, 0)) == [1, 0, 0, 0]
  assert moved(rows, (0, 1, 2, 2), (0, 1, 0, 2)) == [4.5, 5, 8, 0]


def test_a_copy_is_exact_and_what_nobody_reads_does_not_leak():
  rows = np.array([0.1, np.nan, np.inf, 0.3], np.float32)
  out = moved(rows, (0, 0, 0, 3), (0, 0, 0, 1))
  assert out == [rows[0], rows[3], 0, 0]


def test_only_banks_are_moved():
  rows = np.array([1.0, 2.0, 3.0, 4.0])
  move = functools.partial(moved, rows, (0, 1, 2, 3), (0, 0, 1, 2))
  assert move(path=('norm', 'scale')) == rows.tolist()
  assert move(path=('stack', 'layer', 'scale')) == rows.tolist()
  assert move(path=('stack', 'level_1', 'norm', 'scale')) != rows.tolist()
  # What is kept for a whole leaf is not kept for every row.
  assert moved(np.array([7.0]), (0, 1, 2, 3), (0, 0, 1, 2)) == [7]


def test_every_component_and_level_follows_its_own_table():
  leaf = jnp.arange(2.0)
  tree = {
    'stack': {
      'rows': {'attention': {'key': leaf, 'out': leaf}, 'norm': leaf},
      'level_1': {'attention': {'out': {'a': leaf}}},
    }
  }
  old = {
    'layer': column(0, 0),
    'attention': np.array([[0, 0], [0, 1]], np.int32),
    'attention.key': column(0, 1),
  }
  new = {
    'layer': column(0, 1),
    'attention': np.array([[0, 0], [1, 0]], np.int32),
    'attention.key': column(0, 0),
  }
  out = adaptive.retie(jax.tree.map(jnp.array, tree), old, new)['stack']
  assert out['rows']['attention']['key'].tolist() == [0.5, 0]
  assert out['rows']['attention']['out'].tolist() == [0, 0]
  assert out['rows']['norm'].tolist() == [0, 0]
  assert out['level_1']['attention']['out']['a'].tolist() == [0.5, 0]


@pytest.mark.parametrize(
  'name', [name for name in RULES if name != 'adafactor']
)
def test_moments_follow_the_weights_they_belong_to(name):
  """Untying and then updating every copy alike is updating and then untying."""
  config = crossed('unshare_at')
  o = dataclasses.replace(config.optimizer, name=name, clip_norm=0.0)
  rule = optimizer.make(dataclasses.replace(config, optimizer=o))
  old, new = {'layer': column(0, 0, 1)}, {'layer': column(0, 1, 2)}
  params = {
    'norm': {'scale': jnp.ones(3)},
    'stack': {'rows': {'up': {'kernel': jnp.arange(12.0).reshape(3, 2, 2)}}},
  }
  update = jax.jit(rule.update)

  def step(params, state, seed, table):
    draw = np.random.default_rng(seed)
    of_layer = draw.normal(size=(3, 2, 2)).astype(np.float32)
    of_layer[1] = of_layer[0]
    rows = np.zeros((3, 2, 2), np.float32)
    rows[table[:, 0]] = of_layer
    gradient = {
      'norm': {'scale': jnp.asarray(draw.normal(size=3), jnp.float32)},
      'stack': {'rows': {'up': {'kernel': jnp.asarray(rows)}}},
    }
    steps, state = update(gradient, state, params)
    return optax.apply_updates(params, steps), state

  state = rule.init(params)
  for seed in range(3):
    params, state = step(params, state, seed, old['layer'])
  copied = functools.partial(jax.tree.map, jnp.array)
  early = adaptive.retie(copied((params, state)), old, new)
  for seed in range(3, 6):
    params, state = step(params, state, seed, old['layer'])
    early = step(*early, seed, new['layer'])
  late = adaptive.retie((params, state), old, new)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
    early,
    late,
  )
  assert (early[0]['stack']['rows']['up']['kernel'][0] != 0).any()


def test_factored_moments_follow_too():
  rule = optax.adafactor(0.1)
  params = {'stack': {'rows': {'up': {'kernel': jnp.ones((3, 128, 130))}}}}
  draw = np.random.default_rng(0).normal(size=(3, 128, 130))
  gradient = jax.tree.map(lambda p: jnp.asarray(draw, p.dtype), params)
  _, state = rule.update(gradient, rule.init(params), params)
  before = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
  after = adaptive.retie(
    state, {'layer': column(0, 1, 2)}, {'layer': column(0, 0, 1)}
  )
  factored = 0
  for a, b in zip(before, jax.tree.leaves(after), strict=True):
    if a.shape in ((3, 128), (3, 130)):
      np.testing.assert_allclose(b[0], (a[0] + a[1]) / 2, rtol=1e-6)
      np.testing.assert_array_equal(b[1], a[2])
      factored += 1
    else:
      np.testing.assert_array_equal(a, b)
  assert factored == 2


def test_similarity_is_the_cosine_of_whole_rows():
  draw = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
  draw[2] = -2 * draw[0]
  rows = {'key': jnp.asarray(draw[:, :3]), 'out': jnp.asarray(draw[:, 3:])}
  params = {'stack': {'rows': {'attention': rows}}, 'norm': jnp.ones(3)}
  found = adaptive.similarity(params, {'layer': column(0, 1, 2)})
  assert set(found) == {'layer'}
  cosine = draw[0] @ draw[1] / np.prod(np.linalg.norm(draw[:2], axis=1))
  expected = np.array([[1, cosine, -1], [cosine, 1, -cosine], [-1, -cosine, 1]])
  np.testing.assert_allclose(found['layer'], expected, atol=1e-6)
  assert adaptive.similar(np.abs(expected), (0, 1, 2)) == (0, 2)


# Methods.


def decisions(method, seen, count, table=(0, 0, 0, 0), **fields):
  """The tables after each decision; `seen` has one measurement for each."""
  made = adapt.METHODS[method](crossed(method, **fields))
  tables, found = {'layer': column(*table)}, []
  for i in range(count):
    if not made.finished:
      tables = made.decide(tables, seen(i))
    found.append(tuple(tables['layer'][:, 0].tolist()))
  return found, made


def measured(cosine=None, similarity=None, loss=None):
  def matrix(values):
    return {'layer': np.broadcast_to(np.asarray(values), (LAYERS, LAYERS))}

  return adapt.Seen(
    loss=lambda: loss,
    cosines=lambda: matrix(cosine),
    similarity=lambda: matrix(similarity),
  )


TIED, OWN = (0, 0, 0, 0), (0, 1, 2, 3)


def test_sharing_ends_once_correlation_was_low_three_times_in_a_row():
  values = [0.4, 0.4, 0.6, 0.4, 0.4, 0.5, 0.4, 0.49, 0.1, 0.9]
  found, made = decisions('unshare_when', lambda i: measured(values[i]), 10)
  assert found == [TIED] * 8 + [OWN] * 2
  assert made.finished
  found, _ = decisions('unshare_when', lambda i: measured(0.4), 3, patience=1)
  assert found == [OWN] * 3
  found, made = decisions(
    'unshare_when', lambda i: measured(0.4), 5, threshold=0.3
  )
  assert found == [TIED] * 5 and not made.finished


def test_the_other_ways_of_unsharing():
  found, made = decisions('unshare_at', lambda _: measured(), 2)
  assert found == [OWN] * 2 and made.finished
  found, made = decisions('unshare_steps', lambda _: measured(), 3)
  assert found == [(0, 0, 1, 1), OWN, OWN] and made.finished


def test_the_most_similar_rows_merge_until_few_are_left():
  near = np.eye(LAYERS)
  near[1, 3] = near[3, 1] = 0.9
  near[0, 2] = near[2, 0] = 0.8
  found, made = decisions(
    'merge', lambda _: measured(similarity=near), 3, OWN, rows=2
  )
  assert found == [(0, 1, 2, 1), (0, 1, 0, 1), (0, 1, 0, 1)]
  assert made.finished


@pytest.mark.parametrize('liked', [OWN, TIED])
def test_the_q_network_learns_which_tables_are_rewarded(liked):
  """The perplexity is 1 under one table, and more the farther from it."""
  made = q_network.Tying(
    crossed('q_network', learning_rate=0.01, discount=0.5, decay=0.9)
  )
  tables, late = {'layer': column(*OWN)}, []
  for i in range(240):
    owners = tables['layer'][:, 0].tolist()
    wrong = sum(a != b for a, b in zip(owners, liked, strict=True))
    tables = made.decide(tables, measured(loss=float(np.log(1 + 3 * wrong))))
    if i >= 200:
      late.append(tuple(tables['layer'][:, 0].tolist()) == liked)
  assert made.epsilon == 0.01
  assert np.mean(late) > 0.8


def test_the_q_network_explores_less_and_less_and_clips_rewards():
  made = q_network.Tying(crossed('q_network', learning_rate=0.1, discount=0.0))
  tables = {'layer': column(*OWN)}
  assert made.epsilon == 1
  for _ in range(60):
    tables = made.decide(tables, measured(loss=float('nan')))
  assert made.epsilon == pytest.approx(0.95**20)  # rounds of three layers
  assert (made.memory['reward'][:59] == -10).all()
  states = np.array([[0, 1, 2, 3]])
  inputs = made._inputs(states, np.array([3]), np.array([0]))
  values = made.network.apply(made.learned[0], inputs)
  assert np.abs(values).max() < 15  # not the perplexity of a broken model


# Training.

CHANGING = crossed('unshare_steps', model={'shared_gradient': 'mean'})


@pytest.mark.slow
def test_a_table_in_the_state_trains_as_the_same_table_fixed():
  states = []
  for config in (crossed(model={'shared_gradient': 'mean'}), CHANGING):
    compiled, state = started(config)
    losses = []
    for seed in range(3):
      state, metrics = compiled.train(state, batch(seed))
      losses.append(float(metrics['loss']))
    states.append((state, losses))
  (one, losses), (other, others) = states
  assert losses == pytest.approx(others, rel=1e-5)
  assert len(kernel(other.params)) == LAYERS
  np.testing.assert_allclose(
    kernel(other.params)[:1], kernel(one.params), rtol=1e-4, atol=1e-6
  )


def compilations(act):
  """How many programs `act` makes XLA compile, or fetches from its cache."""
  seen = []

  def listen(name, _, **__):
    if name == '/jax/core/compile/backend_compile_duration':
      seen.append(name)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    act()
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  return len(seen)


@pytest.mark.slow
def test_changing_the_table_compiles_nothing():
  compiled, state = started(CHANGING)
  program, adapter = compiled.train, adapt.Adapter(CHANGING, compiled)
  seen = []

  def round_trip():
    nonlocal state
    state, metrics = program(state, batch(len(seen)))
    state, changed = adapter.apply(state, batch(0), metrics)
    state, metrics = program(state, batch(len(seen)))
    float(metrics['loss'])
    seen.append((changed, adapt.history(state)['layer']))

  assert compilations(round_trip) > 0  # retie, once
  size = adaptive.retie._cache_size()
  assert compilations(round_trip) == 0
  assert adaptive.retie._cache_size() == size
  assert compiled.train is program
  assert seen == [(True, '0,0,1,1'), (True, '0,1,2,3')]
  rows = kernel(state.params)
  assert len(np.unique(rows.reshape(LAYERS, -1), axis=0)) == LAYERS


def test_weights_and_moments_move_together():
  compiled, state = started(CHANGING)
  state, _ = compiled.train(state, batch(0))
  before = jax.device_get((state.params, state.opt_state))
  before = jax.tree.map(np.array, before)
  tables = {'layer': column(*OWN), 'norm': column(*OWN)}
  state = adapt.retied(state, tables)
  after, moved = (state.params, state.opt_state), 0
  for (path, old), new in zip(
    jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True
  ):
    name = jax.tree_util.keystr(path)
    if "['stack']" in name and "['norm']" not in name:
      np.testing.assert_array_equal(new, np.repeat(old[:1], LAYERS, axis=0))
      moved += bool(np.any(old[0] != old[1]))
    else:
      np.testing.assert_array_equal(new, old)
  assert moved >= 3 * 6  # kernels and two moments of each
  assert adapt.history(state) == {'layer': '0,1,2,3', 'norm': '0,1,2,3'}


def test_when_tables_may_change():
  def due(method, **fields):
    adapter = adapt.Adapter(crossed(method, **fields), None)
    return [step for step in range(1, 13) if adapter.due(step)]

  assert due('none') == []
  assert due('merge', every=4) == [4, 8, 12]
  assert due('merge', every=4, step=3) == [3, 7, 11]


class Bar(tqdm.tqdm):
  """A progress bar that stops the run at a step."""

  def __init__(self, at):
    super().__init__(file=io.StringIO())
    self.at = at

  def update(self, n=1):
    super().update(n)
    if self.n == self.at:
      os.kill(os.getpid(), signal.SIGTERM)


def with_data(config, text):
  data = dataclasses.replace(config.data, source='text', path=str(text))
  return dataclasses.replace(config, data=data)


def lines(workdir):
  clocks = {'time', 'tokens_per_second'}
  return [
    {name: n for name, n in line.items() if name not in clocks}
    for line in log.read(workdir)
  ]


RUNS = {
  'q_network': crossed(
    'q_network',
    'none',
    {'dropout': 0.1, 'shared_gradient': 'owner'},
    {'num_steps': 12},
  ),
  'unshare_when': crossed(
    'unshare_when', patience=4, threshold=1.0, train={'num_steps': 12}
  ),
  'merge': crossed('merge', 'none', rows=2, only='layer'),
}


def cut_as_whole(config, folder):
  """A run that was cut and went on ends as one that was not.

  Returns:
    Its result and its last state; it lies in `folder` / 'cut'.
  """
  whole = loop.train(config, folder / 'whole')
  with pytest.raises(Interrupted):
    loop.train(config, folder / 'cut', bar=Bar(7))
  result = loop.train(config, folder / 'cut')
  states = [loop.load(folder / name, 'latest')[1] for name in ('whole', 'cut')]
  jax.tree.map(np.testing.assert_array_equal, *states)
  assert lines(folder / 'whole') == lines(folder / 'cut')
  for each in (whole, result):
    each.pop('tokens_per_second')
  assert whole == result
  return result, states[1]


@pytest.mark.slow
@pytest.mark.parametrize(
  'name',
  ['q_network', 'unshare_when'],
)
def test_an_adaptive_run_that_was_cut_equals_one_that_was_not(
  name, text, tmp_path
):
  cut_as_whole(with_data(RUNS[name], text), tmp_path)
  changes = [line['step'] for line in log.read(tmp_path / 'cut')]
  assert max(changes) == 12
  found = [x for x in lines(tmp_path / 'cut') if x['kind'] == 'table']
  tables = [x['tables']['layer'] for x in found]
  assert len(tables) > 1
  if name == 'unshare_when':
    assert tables == ['0,0,0,0', '0,1,2,3']  # at step 8, after the cut


@pytest.fixture(scope='module')
def merged(text, tmp_path_factory):
  """A run that merges layers pair by pair, until two rows are left."""
  workdir = tmp_path_factory.mktemp('merged')
  config = with_data(RUNS['merge'], text)
  config = dataclasses.replace(
    config, train=dataclasses.replace(config.train, visit_gradients_every=4)
  )
  return workdir, config, loop.train(config, workdir)


@pytest.mark.slow
def test_a_run_writes_down_its_tables(merged):
  workdir, _, result = merged
  found = [line for line in lines(workdir) if line['kind'] == 'table']
  assert [line['step'] for line in found] == [0, 2, 4]
  texts = [line['tables']['layer'] for line in found]
  rows = [1 + max(map(int, text.split(','))) for text in texts]
  assert rows == [4, 3, 2]
  assert {line['tables']['norm'] for line in found} == {'0,1,2,3'}  # adapt.only
  last = found[-1]['tables']['layer']
  assert result['frozen_sharing'] == f'layer={last} norm=none'
  assert json.loads((workdir / 'result.json').read_text()) == result


@pytest.mark.slow
def test_a_run_logs_how_far_visits_agree(merged):
  found = [x for x in lines(merged[0]) if x['kind'] == 'visit_gradients']
  assert [line['step'] for line in found] == [4, 8]
  for line in found:
    names = ('attention', 'feed_forward', 'norm', 'layer')
    values = [line[f'cosine.{name}'] for name in names]
    assert all(-1 < value < 1 for value in values)
    assert len(set(values)) == 4


@pytest.mark.slow
def test_a_frozen_model_computes_what_the_adaptive_one_does(merged):
  workdir, _, result = merged
  config, state = loop.load(workdir, 'latest')
  fixed, variables = frozen.freeze(config, state)
  assert fixed.model.tables == 'fixed' and fixed.adapt.method == 'none'
  assert len(kernel(variables['params'])) == 2
  tokens = batch(0)['inputs']
  whole = {'params': state.params, **state.variables}
  np.testing.assert_array_equal(
    jax.jit(build(config).apply)(whole, tokens),
    jax.jit(build(fixed).apply)(variables, tokens),
  )
  stored = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  counts = accounting.parameters(fixed.model)
  assert stored == counts['stored'] == result['frozen_params']
  # So much a table of results says.
  run = trained.Run('merged', 0, config, workdir)
  assert trained.result(run, result, '').stored_params == stored
  # What the result says is a scheme that can be trained and compared.
  again = configs.with_sharing(fixed, result['frozen_sharing'])
  assert again.model.sharing == fixed.model.sharing


@pytest.mark.slow
def test_the_tables_of_a_run_are_drawn(merged, text):
  workdir, _, _ = merged
  path = history.draw(workdir)
  assert path == workdir / 'tables.png'
  assert path.read_bytes().startswith(b'\x89PNG')
  found = history.spans(history.read(workdir), 'layer', 8)
  assert [span[:2] for span in found] == [(0, 2), (2, 4), (4, 8)]
  assert found[0][2] == OWN and max(found[2][2]) == 1
  (workdir / 'metrics.jsonl').write_text('')
  path.unlink()
  assert history.draw(workdir) is None and not path.exists()


def test_levels_that_correct_keep_their_tables_when_frozen():
  specs = {
    'layer': levels.parse('all+none@2'),
    'attention': levels.parse('sequence:3|sequence:1'),
  }
  tables = {'layer': [(0, 1, 1), (0, 1, 2)], 'attention': [(0, 0, 0)]}
  assert adaptive.literals(specs, tables) == {
    'layer': '0,1,1+none@2',
    'attention': '0,0,0|sequence:1',
  }


# Bad input.


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'method': 'merg'}, "did you mean 'merge'"),
    ({'method': 'merge', 'layer': 'soft:2'}, 'no soft spec.*got soft:2'),
    (
      {'method': 'merge', 'model': {'sharing': {'kv_source': 'sequence:2'}}},
      'got sequence:2',
    ),
    ({'method': 'merge', 'rows': 5}, 'at most num_layers 4, got 5'),
    ({'method': 'merge', 'only': 'norms'}, "did you mean 'norm'"),
    ({'method': 'merge', 'threshold': 1.5}, 'adapt.threshold must be at most'),
    ({'method': 'merge', 'only': 'layer,norms'}, "did you mean 'norm'"),
    ({'method': 'merge', 'every': 0}, 'adapt.every must be at least 1'),
    (
      {'method': 'unshare_at', 'model': {'family': 'encoder_decoder'}},
      'one stack, got an encoder_decoder',
    ),
  ],
)
def test_what_cannot_be_adapted_is_said(given, message):
  with pytest.raises(BadInput, match=message):
    crossed(**given)
