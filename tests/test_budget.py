"""What rows of a comparison have alike, and that it is solved for once."""

import dataclasses

import pytest

from shared_tfm import accounting
from shared_tfm.errors import BadInput
from shared_tfm.report import budget, sweep, sweep_file

FIELDS = {
  'model': {
    'num_layers': 6,
    'd_model': 64,
    'num_heads': 2,
    'max_len': 32,
    'position': 'rotary',
  },
  'optimizer': {'warmup_steps': 20},
  'train': {'num_steps': 280},
}


def solved(rows, known=None, fields=FIELDS, timed=None, **settings):
  """The configs of a sweep's rows as they are trained, and the notes."""
  asked = sweep.of(fields, rows, **settings)
  crossed = sweep.crossed(asked)
  found = budget.solve(asked, crossed, known or {}, timed)
  made = {
    label: budget.configs.with_fields(crossed[label], one.fields)
    for label, one in found.items()
  }
  return made, {label: one.note for label, one in found.items()}


def stored(config):
  return accounting.describe(config)['params']['non_embedding']


def test_equal_parameters_by_width():
  rows = ['none', 'all', 'cycle:3', 'soft:4', 'cycle:3+none@8']
  made, notes = solved(rows, equal='params')
  target = stored(made['none'])
  for label, config in made.items():
    assert stored(config) == pytest.approx(target, rel=0.02), label
    model = config.model
    assert (model.num_heads, model.num_layers) == (2, 6)
    assert model.head_dim * 2 == model.d_model == model.embed_dim
    assert model.d_ff == pytest.approx(4 * model.d_model, rel=0.05)
  assert notes['none'] == ''
  assert notes['all'].startswith('width 64 -> 156, d_ff 256 -> ')
  # A sixth of the layers is stored: the width grows by the root of six.
  assert made['all'].model.d_model / 64 == pytest.approx(6**0.5, rel=0.02)


def test_what_the_note_says_is_so():
  made, notes = solved(['none', 'all'], equal='params')
  model = made['all'].model
  off = round(100 * (stored(made['all']) / stored(made['none']) - 1), 1)
  assert notes['all'] == (
    f'width 64 -> {model.d_model}, d_ff 256 -> {model.d_ff}, params'
    f' {off:+.1f} %'
  )


def test_no_width_comes_nearer():
  """Of all that keep two even heads and four times the width in between."""
  made, _ = solved(['none', 'cycle:2'], equal='params')
  target, off = stored(made['none']), stored(made['cycle:2'])
  for width in range(64, 152, 4):
    model = dict(FIELDS['model'], d_model=width)
    other = sweep.of(dict(FIELDS, model=model), ['cycle:2'])
    (config,) = sweep.crossed(other).values()
    assert abs(stored(config) - target) >= abs(off - target)


def test_sizes_that_are_no_multiple_of_the_width():
  """An embedding of its own width stays; a head that is wider scales."""
  model = {'embed_dim': 32, 'head_dim': 48, 'num_kv_heads': 1, 'd_ff': 96}
  fields = dict(FIELDS, model={**FIELDS['model'], **model})
  made, _ = solved(['none', 'all'], fields=fields, equal='params')
  model = made['all'].model
  assert (model.embed_dim, model.num_kv_heads) == (32, 1)
  scale = model.d_model / 64
  assert model.head_dim == pytest.approx(48 * scale, abs=1)
  assert model.d_ff == pytest.approx(96 * scale, rel=0.1)
  assert stored(made['all']) == pytest.approx(stored(made['none']), rel=0.02)


def test_equal_parameters_by_depth():
  made, notes = solved(['cycle:3', 'none'], equal='params', adjust='depth')
  assert made['none'].model.num_layers == 3
  assert notes['none'] == 'depth 6 -> 3, params +0.0 %'
  assert stored(made['none']) == stored(made['cycle:3'])


def test_a_depth_is_one_that_the_scheme_has():
  """Three rows of a cycle and products of each layer: depth goes by threes."""
  rows = [
    {'label': 'deep', 'sharing': 'cycle:3+none@8', 'model': {'num_layers': 21}},
    'cycle:3+none@8',
  ]
  made, _ = solved(rows, equal='params', adjust='depth')
  assert made['cycle:3+none@8'].model.num_layers == 21


def test_equal_flops():
  rows = ['none', {'sharing': 'cycle:3', 'model': {'num_layers': 12}}]
  made, notes = solved(rows, equal='flops')
  one, other = made.values()
  flops = [
    accounting.describe(c)['flops_per_token']['train'] * c.train.num_steps
    for c in (one, other)
  ]
  assert flops[1] == pytest.approx(flops[0], rel=0.005)
  # What is counted from the start of a run goes along.
  steps = other.train.num_steps
  assert 140 < steps < 150 and one.train.num_steps == 280
  assert other.optimizer.warmup_steps == round(20 * steps / 280)
  assert notes['cycle:3'].startswith(f'steps 280 -> {steps}, FLOPs ')


def test_equal_flops_are_those_of_the_texts_that_are_read():
  """Not of the longest that the network could read."""
  rows = ['none', {'sharing': 'none map_source=all', 'label': 'one map'}]
  fields = FIELDS | {'data': {'seq_len': 16}}
  fields['model'] = FIELDS['model'] | {'max_len': 256}
  made, _ = solved(rows, fields=fields, equal='flops')
  flops = [
    accounting.flops_per_token(c.model, 16)['train'] * c.train.num_steps
    for c in made.values()
  ]
  assert flops[1] == pytest.approx(flops[0], rel=0.005)
  for config in made.values():
    told = accounting.describe(config)['flops_per_token']
    assert told == accounting.flops_per_token(config.model, 16)


def test_changes_of_tables_go_along_with_the_steps():
  rows = [
    {'label': 'deep', 'sharing': 'none', 'model': {'num_layers': 12}},
    {'sharing': 'all', 'adapt': {'method': 'unshare_at', 'every': 70}},
    'none',
  ]
  made, _ = solved(rows, equal='flops')
  steps = made['all'].train.num_steps
  assert steps > 500
  assert made['all'].adapt.every == round(70 * steps / 280)
  assert made['none'].adapt.every == made['deep'].adapt.every == 100


def test_equal_flops_of_other_batches():
  rows = ['none', {'label': 'wide', 'sharing': 'none'}]
  rows[1]['train'] = {'batch_size': 32}
  made, notes = solved(rows, equal='flops')
  assert made['wide'].train.num_steps == 140
  assert notes['wide'] == 'steps 280 -> 140, FLOPs +0.0 %'


def test_equal_time():
  def timed(configs):
    return [0.02 if c.model.sharing.layer == 'all' else 0.03 for c in configs]

  made, notes = solved(['none', 'all'], equal='time', timed=timed)
  assert made['all'].train.num_steps == 420
  assert made['all'].optimizer.warmup_steps == 30
  assert notes == {
    'none': '30 ms a step, time +0.0 %',
    'all': 'steps 280 -> 420, 20 ms a step, time +0.0 %',
  }


def test_what_was_solved_is_not_solved_again():
  """Only the row that is new, beside the reference, is measured."""
  known = {
    'none': sweep_file.Solved(note='30 ms a step'),
    'all': sweep_file.Solved({'train.num_steps': 400}),
  }
  measured = []

  def timed(configs):
    measured.extend(c.model.sharing.layer for c in configs)
    return [0.03, 0.015]

  rows = ['none', 'all', 'cycle:2']
  made, notes = solved(rows, known, equal='time', timed=timed)
  assert measured == ['none', 'cycle:2']
  steps = {label: config.train.num_steps for label, config in made.items()}
  assert steps == {'none': 280, 'all': 400, 'cycle:2': 560}
  assert notes['none'] == '30 ms a step'
  solved(rows[:2], known, equal='time', timed=None)  # nothing is measured


@pytest.mark.parametrize(
  ('rows', 'settings', 'rule'),
  [
    (['none'], {'equal': 'param'}, "unknown --equal 'param'; did you mean"),
    (['none'], {'adjust': 'heads'}, "unknown --adjust 'heads'; known: width"),
    (['none'], {'adjust': 'depth'}, '--adjust=depth needs --equal=params'),
    (['none'], {'tune': [0]}, '--tune needs different positive factors'),
    (['none'], {'tune': [2, 2.0]}, '--tune needs different positive factors'),
    (['none'], {'tune': ['1']}, '--tune needs different positive factors'),
    (['none'], {'tune_steps': 3}, '--tune_steps needs --tune, and 0 or more'),
    (
      ['none', 'all'],
      {'equal': 'params', 'adjust': 'depth'},
      "row 'all': --equal=params: ",
    ),
    (
      ['cycle:3', '0,1,2,3,4,5'],
      {'equal': 'params', 'adjust': 'depth'},
      'parameters with num_layers 6 is the nearest to',
    ),
  ],
)
def test_budgets_that_cannot_be_had(rows, settings, rule):
  with pytest.raises(BadInput) as error:
    solved(rows, **settings)
  assert rule in str(error.value) and '\n' not in str(error.value)


# --- What a folder keeps ---


def kept(folder, rows=('none', 'all'), fields=FIELDS, **settings):
  """A folder with a sweep whose second row was solved."""
  asked = sweep.of(fields, rows, **{'equal': 'time', **settings})
  found = {
    'none': sweep_file.Solved(),
    'all': sweep_file.Solved({'train.num_steps': 420}, 'a note'),
  }
  sweep_file.write(folder, asked, found)
  return asked, found


def test_a_folder_keeps_its_sweep(tmp_path):
  rows = ['none', {'label': 'all', 'sharing': 'all', 'model': {'dropout': 0.5}}]
  asked, found = kept(tmp_path, rows, tune=[0.5, 1], seeds=2)
  assert sweep_file.begun(tmp_path) == asked
  assert sweep_file.taken(asked, tmp_path) == found
  # More seeds and rows, and other evaluations, are the same sweep.
  more = dict(FIELDS, train={'num_steps': 280, 'eval_every': 7})
  grown = sweep.of(
    more, [*rows, 'cycle:2'], equal='time', tune=[0.5, 1], seeds=5
  )
  assert sweep_file.taken(grown, tmp_path) == found


@pytest.mark.parametrize(
  ('changed', 'rule'),
  [
    ({'equal': 'steps'}, "differs in equal ('time' there, 'steps' given)"),
    ({'equal': 'flops'}, "differs in equal ('time' there, 'flops' given)"),
    ({'tune': [1, 2]}, 'differs in tune ([] there, [1, 2] given)'),
    ({'rows': ('all', 'none')}, 'holds its rows against none, got all'),
    ({'rows': ('none',)}, 'has more rows: all'),
    (
      {'fields': dict(FIELDS, train={'num_steps': 90})},
      'differs in train.num_steps (280 there, 90 given)',
    ),
  ],
)
def test_another_sweep_of_a_folder_is_refused(tmp_path, changed, rule):
  kept(tmp_path)
  given = {'rows': ('none', 'all'), 'fields': FIELDS, 'equal': 'time'}
  given |= changed
  other = sweep.of(given.pop('fields'), given.pop('rows'), **given)
  with pytest.raises(BadInput) as error:
    sweep_file.taken(other, tmp_path)
  assert rule in str(error.value)


def test_what_solves_nothing_may_be_another_each_time(tmp_path):
  kept(tmp_path, equal='steps')
  asked = sweep.of(FIELDS, ['cycle:2'])
  assert sweep_file.taken(asked, tmp_path) == {}
  assert dataclasses.replace(asked, seeds=2).labels == ['cycle:2']
