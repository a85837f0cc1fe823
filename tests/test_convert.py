"""From any sharing scheme to any other: what is exact, and what is nearest."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import test_cli
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import refused, said
from test_encoder_decoder import params_of
from test_stack import TOKENS, assert_close, variables_of
from test_sums import N, config_of

from shared_tfm import accounting
from shared_tfm import config as configs
from shared_tfm.__main__ import main
from shared_tfm.compress import target
from shared_tfm.compress.convert import STARTS, check, convert
from shared_tfm.config.loops import is_plain, loops
from shared_tfm.errors import BadInput
from shared_tfm.model import build
from shared_tfm.report import gallery
from shared_tfm.sharing.presets import PRESETS
from shared_tfm.train import loop

here, run, trained = test_cli.here, test_cli.run, test_cli.trained


def converted(donor, heir, variables=None, **options):
  """The donor's variables, the heir's, and what is known of them."""
  if variables is None:
    both = donor.model.family == 'encoder_decoder'
    variables = {'params': params_of(donor)} if both else variables_of(donor)
  variables = dict(variables)
  params = variables.pop('params')
  made = convert(donor.model, params, variables, heir.model, None, **options)
  there = {**variables, 'params': params}
  variables.pop('tables', None)
  return there, {**variables, 'params': made.params}, made


def logits(config, variables, **source):
  return build(config).apply(variables, TOKENS, **source)


@pytest.mark.parametrize('start', [s for s in STARTS if s != 'random'])
def test_at_full_rank_the_logits_come_back(start):
  own = 'cycle:3+none@99'
  donor = config_of({'layer': 'none'}, use_bias=False)
  heir = config_of(
    {'layer': 'none', 'attention': own, 'feed_forward': own}, use_bias=False
  )
  before, after, made = converted(donor, heir, start=start)
  assert_close(logits(heir, after), logits(donor, before), 1e-5)
  assert not made.exact
  assert max(made.errors.values()) < 1e-5


def rows(table):
  """Dense from 0, in the order of first use."""
  order = list(dict.fromkeys(table))
  return [order.index(row) for row in table]


TABLES = st.lists(st.integers(0, N - 1), min_size=N, max_size=N).map(rows)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(TABLES, TABLES)
def test_a_table_that_can_say_it_says_it_exactly(there, ours):
  """Which is one whose rows are read by layers that were alike."""
  donor, heir = (
    config_of({'layer': ','.join(map(str, table))}) for table in (there, ours)
  )
  *_, made = converted(donor, heir)
  alike = all(
    there[i] == there[j]
    for i in range(N)
    for j in range(N)
    if ours[i] == ours[j]
  )
  assert made.exact == alike
  assert (max(made.errors.values()) == 0) == alike


EVERYTHING = {
  'layer': 'cycle:3+none@2+none@diagonal',
  'attention': 'soft:2|sequence:2',
  'attention_key': '=attention.query',
  'norm': 'all',
}
SOURCE = jnp.asarray(np.random.default_rng(1).integers(0, 64, (2, 8)))
BOTH = {'family': 'encoder_decoder'}


@pytest.mark.slow
@pytest.mark.parametrize(
  ('sharing', 'model'),
  (
    (EVERYTHING, {}),
    ({'layer': 'cycle:2', 'kv_source': 'sequence:3'}, {}),
    ({'layer': 'sandwich'}, {'core_width': 8}),
    ({'layer': 'cycle:2', 'across': 'feed_forward'}, BOTH),
    ({'layer': 'all'}, {'norm': 'batchnorm'}),
    ({'layer': 'cycle:2'}, {'depth': {'rule': 'ponder', 'core': 2}}),
  ),
)
def test_shared_to_dense_computes_the_same(sharing, model):
  donor = config_of(sharing, **model)
  kept = {name: sharing[name] for name in ('kv_source',) if name in sharing}
  heir = config_of({'layer': 'none', **kept}, **model)
  before, after, made = converted(donor, heir)
  assert made.exact
  source = {'source_BS': SOURCE} if model == BOTH else {}
  assert_close(
    logits(heir, after, **source), logits(donor, before, **source), 1e-6
  )


@pytest.mark.parametrize('preset', PRESETS.values(), ids=lambda p: p.name)
def test_every_preset_can_be_unrolled(preset):
  """What loops still does, and what layers reuse is still reused."""
  sizes = {**gallery.SMALL, 'num_layers': preset.layers, 'max_len': 8}
  config = configs.cross({'preset': preset.example, 'model': sizes})
  if preset.name == 'huginn':
    with pytest.raises(BadInput, match='need the same rows in every loop'):
      target.config_of(config, 'none', [])
    return
  own = target.config_of(config, 'none', [])
  check(config.model, own.model)
  counts = accounting.parameters(own.model)
  reused = config.model.sharing
  if not (reused.kv_source or reused.map_source):
    assert counts['layers_stored'] == counts['layers_applied']
  if not is_plain(own.model):
    assert loops(own.model) == loops(config.model)


def test_tables_in_the_state_are_what_is_read():
  """Of a run whose tables changed, not those of its config."""
  adapt = {'method': 'unshare_at', 'step': 1}
  donor = configs.cross(
    {
      'adapt': adapt,
      'model': dataclasses.asdict(config_of({'layer': 'all'}).model),
    }
  )
  variables = dict(variables_of(donor))
  owners = {
    name: jnp.arange(N)[:, None]
    for name in variables['tables']['stack']['owners']
  }
  variables['tables'] = {'stack': {'owners': owners}}
  before, after, made = converted(
    donor, config_of({'layer': 'none'}), variables
  )
  assert made.exact
  assert_close(
    logits(config_of({'layer': 'none'}), after), logits(donor, before), 1e-6
  )


def test_random_rows_are_fresh_and_all_else_is_taken():
  donor, heir = config_of({'layer': 'none'}), config_of({'layer': 'all'})
  params, fresh = variables_of(donor)['params'], variables_of(heir)['params']
  made = convert(donor.model, params, {}, heir.model, fresh, 'random')
  assert made.params['stack'] is fresh['stack']
  assert made.params['embedding'] is params['embedding']
  assert made.errors['attention'] > 1


def test_average_is_nearest():
  """In least squares, as it must be."""
  donor, heir = config_of({'layer': 'none'}), config_of({'layer': 'cycle:2'})
  errors = {
    start: converted(donor, heir, start=start)[2].errors['attention']
    for start in STARTS
    if start != 'random'
  }
  assert min(errors, key=errors.get) == 'average'


@pytest.mark.parametrize(
  ('there', 'ours', 'message'),
  (
    (
      {},
      {'d_ff': 32},
      'a conversion changes what is shared, and model.d_ff is 64 there and 32'
      ' here',
    ),
    (
      {'sharing': {'kv_source': 'sequence:3'}},
      {},
      "model.sharing.kv_source 'sequence:3' leaves layers without weights that"
      " 'none' needs",
    ),
    (
      {'tables': 'fixed'},
      {'tables': 'state'},
      'a conversion makes fixed tables; it needs --config.adapt.method=none',
    ),
    (
      {'depth': {'rule': 'act'}, 'sharing': {'layer': 'all'}},
      {'depth': {'rule': 'act'}, 'sharing': {'layer': 'cycle:3'}},
      'model.depth.rule act needs the same loops there and here, got'
      ' (0, 1, 6, 0) and (0, 3, 2, 0)',
    ),
    (
      BOTH,
      {**BOTH, 'sharing': {'across': 'norm'}},
      "a conversion fits each stack by itself, got model.sharing.across 'norm'",
    ),
  ),
)
def test_what_cannot_be(there, ours, message):
  donor, heir = (
    config_of(m.get('sharing', {}), **{k: m[k] for k in m if k != 'sharing'})
    for m in (there, ours)
  )
  with pytest.raises(BadInput) as raised:
    convert(donor.model, None, {}, heir.model, None)
  assert str(raised.value) == message


# The verb.


@pytest.mark.slow
def test_a_run_is_made_and_tuned(run, capsys):
  """It is a run like any other, and the same command goes on with it."""
  command = (
    'convert',
    '--from=run',
    '--workdir=dense',
    '--sharing=none',
    '--tune',
    '--config.train.num_steps=2',
  )
  table = said(capsys, *command)
  known = json.loads((run.parent / 'dense/conversion.json').read_text())
  assert known['exact']
  donor, made, tuned = (
    known['losses'][k] for k in ('donor', 'converted', 'tuned')
  )
  assert donor == pytest.approx(made, rel=1e-6)
  assert tuned != made
  assert known['steps'] == 2
  assert known['converted']['stored_params'] > known['donor']['stored_params']
  assert table == (run.parent / 'dense/conversion.md').read_text()
  assert f'| converted | {known["converted"]["stored_params"]:,} |' in table
  assert 'every visit has the weights it had; tuned for 2 steps' in table
  config, state = loop.load('dense', 'latest')
  assert config.model.sharing.layer == 'none'
  assert int(state.step) == 2
  assert said(capsys, *command) == table

  # A run that is to be made again with other rows is another conversion.
  assert main([*command, '--init=lower']) == 2
  assert 'has another conversion' in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_was_made_trains_without_a_config(run, capsys):
  out = said(capsys, 'convert', '--from=run', '--workdir=all', '--sharing=all')
  assert 'loss' in out and 'tuned' not in out
  assert 'weights are off by at most' in out
  assert json.loads(said(capsys, 'train', '--workdir=all'))['steps'] == 4
  assert json.loads(said(capsys, 'evaluate', '--workdir=all', '--json'))['loss']


def moments(state):
  """Adam's two trees, its count, and the schedule's."""
  _, (adam, _, rate) = state.opt_state
  return adam.mu, adam.nu, int(adam.count), int(rate.count)


@pytest.mark.slow
def test_moments_come_along(run, capsys):
  """Rows that split take a copy, rows that join the mean; and it trains on."""
  told = said(
    capsys,
    *('convert', '--from=run', '--workdir=own', '--sharing=none'),
    *('--optimizer_state', '--checkpoint=latest'),
  )
  assert 'every visit has the weights it had' in told
  there, here = loop.load('run', 'latest')[1], loop.load('own')[1]
  path = ('stack', 'rows', 'attention', 'query', 'kernel')
  for old, new in zip(moments(there)[:2], moments(here)[:2], strict=True):
    for name in path:
      old, new = old[name], new[name]
    assert np.abs(old).max() > 0
    np.testing.assert_array_equal(new, np.tile(old, (4, 1, 1)))
  assert moments(here)[2:] == (4, 0)
  assert moments(there)[2:] == (4, 4)

  back = ('convert', '--from=own', '--workdir=all', '--sharing=all')
  said(
    capsys, *back, '--optimizer_state', '--tune', '--config.train.num_steps=1'
  )
  _, state = loop.load('all', 'latest')
  assert moments(state)[2:] == (5, 1)

  refusals = refused(
    capsys,
    run.parent,
    *back[:2],
    '--workdir=new',
    '--optimizer_state',
    '--sharing=all+none@2',
  )
  assert refusals == (
    '--optimizer_state follows rows, and needs specs of one full-rank level;'
    ' got all+none@2'
  )
  assert 'rows that are not random' in refused(
    capsys,
    run.parent,
    *back[:2],
    '--workdir=new',
    '--optimizer_state',
    '--init=random',
  )
  assert refused(
    capsys,
    run.parent,
    *back[:2],
    '--workdir=new',
    '--optimizer_state',
    '--config.optimizer.name=lion',
  ).endswith('got adamw there and lion here')


def test_what_the_verb_refuses(run, capsys):
  def line(*words):
    return refused(capsys, run.parent, 'convert', *words)

  to = '--workdir=made'
  assert line('--from=nowhere', to) == (
    'nowhere is no run: it has no config.json'
  )
  assert line('--from=run', '--workdir=run') == 'run must be new or empty'
  assert line('--from=run', to, '--init=avrage') == (
    "unknown --init 'avrage'; did you mean 'average'?"
  )
  assert line('--from=run', to, '--products=pca', '--sharing=all+none@2') == (
    "unknown kind of products 'pca'; known: svd, zero"
  )
  assert 'cycle:5 needs' in line('--from=run', to, '--sharing=cycle:5')
  assert line('--from=run', to, '--config.model.d_model=32').startswith(
    'a conversion changes what is shared, and model.d_model is 16 there'
  )
  checkpoints = run / 'checkpoints'
  shutil.rmtree(checkpoints)
  assert 'there is no checkpoint in' in line('--from=run', to)


def test_train_needs_a_config_or_a_run(here, capsys):
  assert refused(capsys, here, 'train', '--workdir=new') == (
    'new has no run yet, so this is required: --config (see shared_tfm train'
    ' --help)'
  )
