"""Published tables: our counts as literals, and what is said beside them."""

# ruff: noqa: RUF005
import json
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared_tfm.__main__ import main
from shared_tfm.model.transformer import Transformer
from shared_tfm.report import published
from shared_tfm.report.published import (
  albert,
  counts,
  experts,
  kinds,
  loops,
  mor,
  recursive,
  render,
  translation,
)

DOCS = pathlib.Path(__file__).parents[1] / 'docs'
UNSHARED = 109_081_344  # BERT base with its pooler
# Every number of ours, in the order of the rows; tables of owners left out.
COUNTS = {
  'albert_1': (UNSHARED, 11_683_584, 17_683_968, 58_724_864, 222_595_584),
  'albert_3': (87_648_000, 89_650_176, 93_654_528, UNSHARED)
  + (9_681_408, 11_683_584, 15_687_936, 31_114_752),
  'albert_4': (31_114_752, 83_078_400, 57_117_696, UNSHARED)
  + (11_683_584, 63_647_232, 37_686_528, 89_650_176),
  'albert_12': (17_683_968, 58_724_864, 222_595_584, 495_518_208),
  'albert_groups': (11_683_584, 18_771_456, 25_859_328)
  + (32_947_200, 47_122_944, 89_650_176),
  'takase': (60_915_712, 62_947_328, 62_947_328, 209_911_808)
  + (60_915_712,) * 6,
  'takase_orders': (),
  'mobilellm': (124_635_456, 124_635_456, 60, 2, 1)
  + (345_355_200, 345_355_200, 64, 2, 1),
  'mor_2': (3 / 4, 1 / 2, 1 / 4, 1)
  + (4 / 6, 1 / 3, 1 / 9, 1)
  + (5 / 8, 1 / 4, 1 / 16, 1),
  'mor_3': (314_635_200, 167_150_400, 167_152_320, 167_152_320)
  + (117_988_800, 117_991_680, 117_991_680)
  + (98_324_160, 98_328_000, 98_328_000)
  + (117_991_680,),
  'mor_6': (106_203_456, 28_311_552, 314_635_200, 47_185_920),
  'mor_10': (106_203_456,)
  + (53_102_016,) * 3
  + (56_642_112,) * 2
  + (35_401_536,) * 3
  + (38_941_632,) * 2
  + (314_635_200,)
  + (157_318_080,) * 3
  + (167_150_400,) * 2
  + (98_324_160,) * 3
  + (117_988_800,) * 2,
  'mor_11': (251_690_496, 251_690_496),
  'mor_15': (314_635_200, 304_804_800, 304_804_800)
  + (117_988_800,) * 2
  + (167_150_400,) * 2
  + (157_318_080,) * 2,
  'mor_16': (117_988_800, 124_542_400, 125_853_120),
  'rrt_1': (524_288_000, 1_981_884_416, 990_943_232, 660_629_504)
  + (131_072_000, 968_976_384, 484_489_216)
  + (206_045_184, 805_736_448, 402_870_272),
  'rrt_g2': (1_069_389_824, 1_147_836_416, 1_304_729_600, 1_597_282_304)
  + (534_951_936, 585_414_656, 686_340_096, 862_238_720)
  + (440_619_008, 478_367_744, 553_865_216, 704_860_160)
  + (739_076_096, 817_522_688, 974_415_872, 1_266_968_576),
  'rrt_h1': (9_437_184, 18_874_368, 37_748_736, 75_497_472)
  + (11_534_336, 23_068_672, 46_137_344, 92_274_688),
  'moeut': (44_345_792, 125_669_696, 243_326_784, 727_424_320),
  'cla': (163_840, 40_960, 20_480, 10_240, 5_120, 3_680, 2_560)
  + (5_120, 3_600, 2_560),
  'mlkv': (144, 36_864, 48, 12_288, 48, 12_288, 12, 3_072, 12, 3_072)
  + (6, 1_536, 4, 1_024, 2, 512, 1, 256),
  'gemma3n': (20, 20),
  'masa': (250 / 3, 200 / 3, 50, 100 / 3, 62.5, 50, 37.5, 25),
  'huginn': (3_508_961_280, 1_581_465_600, 52_534_394_880)
  + (103_141_294_080, 3_564_897_600),
  'ouro': (1_434_652_673, 2_667_974_657),
  'hrm': (27_262_976,),
  'trm': (6_815_744,),
  'one_wide_ffn': (209_125_376, 41_968_640, 41_968_640, 83_937_280)
  + (92_331_008, 50_374_656, 50_374_656, 100_749_312, 92_343_296)
  + (50_379_776, 23_552, -100_688_896)
  + (33_574_912, 25_181_184) * 3
  + (62_976_000, 20_992_000, 20_992_000),
}
DISAGREE = {
  ('albert_1', 'BERT base'),
  ('albert_1', 'ALBERT xlarge'),
  ('albert_1', 'ALBERT xxlarge'),
  ('albert_3', 'not-shared, E 768'),
  ('albert_4', 'E 768, not-shared'),
  ('albert_12', 'H 2048'),
  ('albert_12', 'H 4096'),
  ('albert_12', 'H 6144'),
  *(('mor_2', f'{n} recursions, the last, KV shared') for n in (2, 3, 4)),
  ('mor_15', 'Vanilla, KV Cycle 2'),
  ('mor_15', 'Vanilla, KV Sequence 2'),
  ('one_wide_ffn', 'Transformer Big'),
}


@pytest.fixture(scope='module')
def tables():
  return {name: published.make(name) for name in published.TABLES}


def test_titles(tables):
  made = {name: table.title for name, table in tables.items()}
  assert published.titles() == made


@pytest.mark.parametrize('name', published.TABLES)
def test_counts(tables, name):
  ours = [row.ours for row in tables[name].rows]
  numbers = [value for value in ours if not isinstance(value, tuple)]
  np.testing.assert_allclose(numbers, COUNTS[name], rtol=1e-12)


def test_what_disagrees_has_a_sentence_and_nothing_else_does(tables):
  rows = [(name, row) for name, table in tables.items() for row in table.rows]
  assert {
    (name, row.name) for name, row in rows if not row.agrees and row.paper
  } == (DISAGREE)
  for name, row in rows:
    assert bool(row.why) == ((name, row.name) in DISAGREE), row


def test_sentences_give_the_number_that_would_agree(tables):
  bert = tables['albert_1'].rows[0]
  assert 'Without the pooler, as is printed, it is 108,490,752' in bert.why
  (profiles,) = tables['moeut'].notes
  assert '581,941,056' in profiles  # the paper's own config file


def test_owner_tables(tables):
  rows = tables['gemma3n'].rows + tables['takase_orders'].rows
  drawn = [row for row in rows if isinstance(row.ours, tuple)]
  assert len(drawn) == 11 and all(row.agrees for row in drawn)
  assert drawn[-1].ours == (0, 1, 2, 3, 4, 5) * 2 + (5, 4, 3, 2, 1, 0)


@pytest.mark.parametrize(
  ('text', 'value', 'unit'),
  [
    ('108M', 108_000_000, 1_000_000),
    ('124.6M', 124_600_000, 100_000),
    ('1.07B', 1_070_000_000, 10_000_000),
    ('3,508,961,280', 3_508_961_280, 1),
    ('-100M', -100_000_000, 1_000_000),
    ('0.667', 0.667, 0.001),
    ('66.7%', 66.7, 0.1),
    ('64', 64, 1),
  ],
)
def test_printed_numbers(text, value, unit):
  assert kinds.printed(text) == (value, unit)


@pytest.mark.parametrize(
  ('paper', 'ours', 'agrees'),
  [
    ('0.58B', 585_414_656, True),  # cut off
    ('0.58B', 574_000_000, True),  # rounded
    ('0.58B', 590_000_000, False),
    ('0.58B', 570_000_000, False),
    ('0 0 1', (0, 0, 1), True),
    ('0 0 1', (0, 1, 1), False),
    ('', 3, None),
  ],
)
def test_agreement_is_less_than_one_unit_of_the_last_digit(paper, ours, agrees):
  assert kinds.Row('model', 'count', paper, ours).agrees is agrees


def test_text():
  table = kinds.Table(
    'A table',
    'A paper',
    (
      kinds.Row('small', 'parameters', '1.2M', 1_234_567),
      kinds.Row('large', 'parameters', '15M', 12_000_000, 'It is a slip.'),
      kinds.Row('half', 'ratio', '50.0%', 50.04),
    ),
    ('A note.',),
  )
  assert render.text(table) == (
    'A table (A paper)\n'
    '\n'
    'model  quantity    paper        ours  difference  agrees\n'
    '--------------------------------------------------------\n'
    'small  parameters   1.2M   1,234,567     +34,567  yes\n'
    'large  parameters    15M  12,000,000  -3,000,000  no [1]\n'
    'half   ratio       50.0%      50.04%       +0.04  yes\n'
    '\n'
    '[1] It is a slip.\n'
    '\n'
    'A note.'
  )


def test_the_page_is_up_to_date(tables):
  """After a change of counts: python docs/pages.py."""
  assert (DOCS / 'tables.md').read_text() == render.page(tables)


def test_the_verb(capsys):
  assert main(['table', 'albert_4']) == 0
  assert 'E 128, shared-FFN' in capsys.readouterr().out
  assert main(['table', 'albert_4', '--json']) == 0
  table = json.loads(capsys.readouterr().out)
  assert set(table) == {'title', 'source', 'rows', 'notes'}
  assert table['rows'][0] == {
    'name': 'E 768, all-shared',
    'quantity': 'parameters',
    'paper': '31M',
    'ours': 31_114_752,
    'why': '',
    'difference': 114_752,
    'agrees': True,
  }
  assert main(['table', '--list']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == list(published.TABLES)
  assert main(['table', '--list', '--json']) == 0
  assert list(json.loads(capsys.readouterr().out)) == list(published.TABLES)


@pytest.mark.parametrize(
  ('words', 'says'),
  [
    (['mor3'], "unknown table 'mor3'; did you mean 'mor_3'?"),
    ([], 'table takes a NAME or --list'),
    (['mor_3', '--list'], 'table takes a NAME or --list'),
    (['mor_3', '--config.model.num_layers=2'], 'table takes a NAME, got'),
  ],
)
def test_bad_input(capsys, words, says):
  assert main(['table', *words]) == 2
  assert says in capsys.readouterr().err


LARGE = {
  'albert': lambda: albert.encoder(24, 1024, 128, {'layer': 'all'}),
  'rrt': lambda: recursive.recursive('Gemma 2B', 2, 512),
  'mor': lambda: mor.looped('360M', 'middle_cycle', 10, 3, 'expert_choice'),
  'huginn': lambda: loops.released(32),
  'moeut': lambda: experts.sized('727M'),
  'wide': lambda: translation.wide('one_wide_ffn_shared_enc_dec'),
}


@pytest.mark.parametrize('name', LARGE)
def test_the_real_network_has_as_many_parameters(name):
  """At the published size: shapes alone, nothing is allocated."""
  model = LARGE[name]()
  tokens = jnp.zeros((1, 4), jnp.int32)
  source = {}
  if model.family == 'encoder_decoder':
    source = {'source_BS': tokens}
  network = Transformer(model)
  made = jax.eval_shape(network.init, jax.random.key(0), tokens, **source)
  leaves = jax.tree.leaves(nn.unbox(made)['params'])
  assert sum(math.prod(leaf.shape) for leaf in leaves) == counts.stored(model)
