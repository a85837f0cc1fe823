"""Presets: their tables are those of the papers, and their parts train."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm import accounting, config_file, tasks
from shared_tfm import config as configs
from shared_tfm.config import ranges
from shared_tfm.errors import BadInput
from shared_tfm.report import gallery
from shared_tfm.sharing import presets
from shared_tfm.train import state as states
from shared_tfm.train import step as steps

DOCS = pathlib.Path(__file__).parents[1] / 'docs'
PRESETS = presets.PRESETS
ALL = (0,) * 12
# The tables of every example, as published: those that are not all layers' own.
# Under 'layer', where attention, feed-forward and norms have the same.
TABLES = {
  'albert:6': {'layer': (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)},
  'takase_sequence:6': {'layer': (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)},
  'takase_cycle:4': {'layer': (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3)},
  'takase_cycle_rev:3': {'layer': (0, 1, 2, 0, 1, 2, 0, 1, 2, 2, 1, 0)},
  'subformer': {
    'attention': (0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2),
    'feed_forward': (0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2),
  },
  'mobilellm_ls': {'layer': (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)},
  'looped:4': {'layer': (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3)},
  'universal': {'layer': ALL},
  'universal_act': {'layer': ALL},
  'mor_cycle:3': {'layer': (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3)},
  'mor_middle_cycle:3': {'layer': (0, 1, 2, 1, 2, 1, 2, 3)},
  'mor_sequence:2': {'layer': (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)},
  'mor_middle_sequence:3': {'layer': (0, 1, 1, 1, 2, 2, 2, 3)},
  'huginn:2,4,2': {
    'layer': (0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7),
  },
  'ouro:4': {'layer': (0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2)},
  'cotformer:3': {'layer': (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3)},
  'hrm:2,2': {'layer': (0, 1, 0, 1, 2, 3, 0, 1, 0, 1, 2, 3)},
  'trm:1,2': {'layer': ALL},
  'moeut:2,8,4': {'layer': (0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1)},
  'sut:8,2': {'layer': ALL},
  'relaxed_recursive:3,2': {'layer': (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3)},
  'residual_transformer:3,2': {
    'attention': (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3),
    'feed_forward': (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3),
  },
  'zamba2:2,2': {'layer': (0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1)},
  'masa:4': {
    f'attention.{part}': (None,) * 12
    for part in ('query', 'key', 'value', 'out')
  },
  'mobillama': {'feed_forward': ALL},
  'one_wide_ffn': {'encoder.feed_forward': (0,) * 6},
  'one_wide_ffn_shared_enc': {'encoder.feed_forward': (0,) * 6},
  'one_wide_ffn_shared_dec': {'feed_forward': (0,) * 6},
  'one_wide_ffn_shared_both': {
    'encoder.feed_forward': (0,) * 6,
    'feed_forward': (0,) * 6,
  },
  'one_wide_ffn_shared_enc_dec': {
    'encoder.feed_forward': (0,) * 6,
    'feed_forward': (0,) * 6,
  },
  'one_wide_ffn_no_enc': {},
  'one_wide_ffn_no_dec': {},
  'one_wide_ffn_no_enc_no_dec': {},
  'cla:3': {'kv_source': (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)},
  'mlkv:4': {'kv_source': (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)},
  'yoco': {'kv_source': (0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6)},
  'gemma3n:10': {
    'kv_source': (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 8, 8, 8, 9),
  },
  'swe_f:2': {'layer': ALL},
  'swe_a:2': {'layer': ALL},
  'swe_m:2': {'layer': ALL},
  'dynamic_layer_tying:2': {},
  'dynamic_layer_tying_summed:2': {},
}


def parts(made):
  """What a config has that a network may lack.

  A part is a choice or a switch of the network, a kind of spec, or a kind of
  task: what a table says in detail is asked of tables alone.
  """
  has = {type(tasks.make(made))}
  for field, value in ranges.leaves(dataclasses.asdict(made.model)):
    group, _, part = field.partition('.')
    if group.startswith('sharing'):
      has |= {mark for mark in ('+', '@', '|', '=', 'soft') if mark in value}
      if value and part.endswith(('source', 'across')):
        has.add(part)
    elif type(value) in (str, bool):
      has.add((field, value))
    elif field in ('core_width', 'depth.prelude', 'depth.coda'):
      has.add((field, value > 0))
  return has


def new_parts(named, known=()):
  """Those of named configs that have a part which none before them has."""
  seen, found = set().union(*map(parts, known)), []
  for name, made in named.items():
    has = parts(made)
    if has - seen:
      found.append(pytest.param(made, id=name))
    seen |= has
  return found


def with_a_source(made):
  """A config whose data has a source, where the network reads one."""
  if made.model.family != 'encoder_decoder':
    return made
  data = dataclasses.replace(made.data, source='reverse')
  return dataclasses.replace(made, data=data)


def examples(model, **fields):
  """Every preset at its smallest, by name, with some fields."""
  found = {}
  for preset in PRESETS.values():
    sizes = {**gallery.SMALL, 'num_layers': preset.layers, **model}
    given = {'preset': preset.example, 'model': sizes, **fields}
    found[preset.name] = with_a_source(configs.cross(given))
  return found


def test_every_preset_has_a_literal_table_here():
  assert [preset.example for preset in PRESETS.values()] == list(TABLES)


@pytest.mark.parametrize('preset', PRESETS.values(), ids=lambda p: p.name)
def test_tables(preset):
  shared = gallery.shared_tables(gallery.example(preset))
  assert shared == TABLES[preset.example]


@pytest.mark.parametrize(
  ('text', 'layers', 'table'),
  [
    ('albert', 12, ALL),
    ('albert:3', 12, (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2)),
    ('takase_sequence:3', 6, (0, 0, 1, 1, 2, 2)),
    ('takase_cycle:3', 6, (0, 1, 2, 0, 1, 2)),
    ('albert:5', 12, (0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4)),
    ('albert:2,2', 8, (0, 1, 0, 1, 2, 3, 2, 3)),
    ('takase_cycle', 8, (0, 1, 2, 3, 0, 1, 2, 3)),
    ('gemma3n:5', 10, (0, 1, 2, 3, 4, 3, 3, 3, 3, 4)),
  ],
)
def test_integers_of_a_preset(text, layers, table):
  config = configs.cross({'preset': text, 'model': {'num_layers': layers}})
  owners = accounting.describe(config)['owners']
  assert tuple(owners.get('kv_source', owners['attention'])) == table


@pytest.mark.parametrize('preset', PRESETS.values(), ids=lambda p: p.name)
def test_fields_exist_and_have_their_types(preset):
  given = presets.fields(preset.example, preset.layers)
  for name, value in given.items():
    field = configs.Config()
    for part in name.split('.'):
      field = getattr(field, part)
    assert type(value) is type(field), name
  assert len(preset.source) > 10 and len(preset.shared) > 10


@pytest.mark.parametrize(
  ('text', 'layers', 'says'),
  [
    ('albrt', 12, "unknown preset 'albrt'; did you mean 'albert'?"),
    ('albert:x', 12, r'albert is written albert\[:groups\[,inner\]\]'),
    ('albert:1,2,3', 12, 'with integers, got'),
    ('albert:', 12, 'with integers, got'),
    ('mlkv', 12, 'mlkv is written mlkv:layers_with_kv'),
    ('albert:13', 12, 'from 1 to 12 groups for 12 layers, got 13'),
    ('mobilellm_ls', 5, 'num_layers divisible by 2, got num_layers 5'),
    ('mor_cycle:0', 12, 'mor_cycle takes integers of at least 1'),
    ('hrm:2,3', 12, 'hrm needs num_layers divisible by 8, got num_layers 12'),
    (
      'gemma3n:3',
      12,
      'from 5 to 12 layers of own keys and a period of at least 1, got 3 and 5',
    ),
    ('huginn:8,1,8', 12, 'needs num_layers - 16 divisible by 1, got num_l'),
    ('mor_middle_cycle:3', 9, 'needs num_layers - 2 divisible by 3, got num'),
  ],
)
def test_bad_presets(text, layers, says):
  with pytest.raises(BadInput, match=says):
    configs.cross({'preset': text, 'model': {'num_layers': layers}})


@pytest.mark.parametrize('preset', PRESETS.values(), ids=lambda p: p.name)
def test_any_depth_fits_or_is_bad_input(preset):
  fitted = []
  for layers in range(1, 17):
    model = {**gallery.SMALL, 'num_layers': layers}
    try:
      config = configs.cross({'preset': preset.example, 'model': model})
    except BadInput as error:
      assert '\n' not in str(error)
    else:
      assert accounting.parameters(config.model)['layers_stored'] > 0
      fitted.append(layers)
  assert preset.layers in fitted


def test_a_preset_lies_under_the_fields_of_a_config():
  config = configs.cross(
    {
      'preset': 'huginn:1,2,1',
      'model': {
        'num_layers': 6,
        'norm_position': 'post',
        'sharing': {'norm': 'all'},
      },
    }
  )
  assert config.model.norm_position == 'post'  # the preset's is sandwich
  assert config.model.sharing.norm == 'all'
  assert config.model.sharing.layer == 'recurrent:1/2x2/1'
  assert config.model.depth.rule == 'random'


def test_what_is_given_stands_even_where_it_is_the_default(tmp_path):
  path = tmp_path / 'config.py'
  path.write_text(
    'import ml_collections\n'
    'def get_config():\n'
    '  model = {"num_layers": 6, "norm": "layernorm"}\n'
    '  return ml_collections.ConfigDict('
    '{"preset": "huginn:1,2,1", "model": model})\n'
  )
  plain = config_file.load(str(path), [])
  assert (plain.model.norm_position, plain.model.depth.rule) == (
    'sandwich',
    'random',
  )
  flags = ['--config.model.norm_position=pre', '--noconfig.model.depth.norm']
  config = config_file.load(str(path), flags)
  assert config.model.norm_position == 'pre'
  assert not config.model.depth.norm and plain.model.depth.norm
  assert config.model.sharing == plain.model.sharing
  fields = {'num_layers': 6, 'norm_position': 'pre'}
  made = configs.cross({'preset': 'huginn:1,2,1', 'model': fields})
  assert made.model.norm_position == 'pre'
  whole = configs.default()
  whole.preset = 'huginn:1,2,1'
  assert configs.cross(whole).model.norm_position == 'sandwich'


def test_a_preset_is_dissolved():
  config = configs.cross({'preset': 'albert:2', 'model': {'num_layers': 4}})
  plain = {'num_layers': 4, 'sharing': {'layer': 'sequence:2'}}
  assert config == configs.cross({'model': plain})
  assert configs.cross(dataclasses.asdict(config)) == config


def test_a_preset_may_stand_for_a_scheme():
  base = configs.cross(
    {'model': {'num_layers': 4, 'sharing': {'attention_key': 'all'}}}
  )
  shared = configs.with_sharing(base, '@subformer')
  assert shared.model.sharing.specs() == {'layer': 'sandwich', 'norm': 'none'}
  assert configs.with_sharing(shared, 'none').model.sharing.specs() == {
    'layer': 'none'
  }
  assert configs.scheme_name(' @albert: 2 ') == '@albert:2'
  assert configs.scheme_name('norm=none  cycle:2') == 'norm=none cycle:2'
  with pytest.raises(BadInput, match="did you mean 'subformer'"):
    configs.with_sharing(base, '@subfomer')


def test_the_page_is_up_to_date():
  """After a change of a preset: python docs/pages.py."""
  assert (DOCS / 'presets.md').read_text() == gallery.page()
  assert (DOCS / 'presets.png').exists()


L, B, V, STEPS = 16, 8, 16, 20


SMALLEST = {
  'model': {
    'vocab_size': V,
    'max_len': L,
    'norm': 'rmsnorm',  # and no biases: half as much to compile
    'use_bias': False,
    'experts': {'ff_width': 16},
  },
  'optimizer': {'learning_rate': 1e-2, 'schedule': 'constant'},
  'train': {'batch_size': B},
}


@pytest.mark.slow
@pytest.mark.parametrize('config', new_parts(examples(**SMALLEST)))
def test_every_part_of_a_preset_trains(config):
  """The loss of a batch it sees again and again falls, and stays finite."""
  random = np.random.default_rng(0)
  batch = {
    name: jnp.asarray(random.integers(V, size=(B, L)), jnp.int32)
    for name in ('inputs', 'targets', 'source')
  }
  batch |= {'weights': jnp.ones((B, L)), 'source_mask': jnp.ones((B, L), bool)}
  batch = {name: batch[name] for name in tasks.make(config).batches()[0]}

  @jax.jit
  def losses(batch):
    state = states.initial(config, jnp.uint32(0))
    update = steps.train_step(config)

    def step(state, _):
      state, metrics = update(state, batch)
      return state, (metrics['loss'], metrics['skipped'])

    return jax.lax.scan(step, state, None, STEPS)[1]

  loss, skipped = map(np.asarray, losses(batch))
  assert skipped[-1] == 0
  assert np.isfinite(loss).all()
  assert loss[-3:].mean() < loss[:3].mean() - 0.1
