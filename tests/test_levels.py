"""The grammar of specs: what can be said, what cannot, and what is drawn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_tfm import config as configs
from shared_tfm.errors import BadInput
from shared_tfm.sharing import draw
from shared_tfm.sharing.levels import Level, Spec, assignments, parse
from shared_tfm.sharing.table import SCHEMES
from shared_tfm.sharing.table import parse as table

SAID = {
  'cycle:3': Spec((Level(table('cycle:3')),)),
  '0,1,1': Spec((Level(table('0,1,1')),)),
  'all@4': Spec((Level(table('all'), rank=4),)),
  'all@diagonal': Spec((Level(table('all'), diagonal=True),)),
  'soft:4': Spec((Level(table('none'), templates=4),)),
  'all+none@64': Spec((Level(table('all')), Level(table('none'), rank=64))),
  'sequence:3+none@2+none@diagonal': Spec(
    (
      Level(table('sequence:3')),
      Level(table('none'), rank=2),
      Level(table('none'), diagonal=True),
    )
  ),
  'all+soft:2': Spec((Level(table('all')), Level(table('none'), templates=2))),
  'none|sequence:2': Spec((Level(table('none')),), within=table('sequence:2')),
  'all+none@4|0,0,1': Spec(
    (Level(table('all')), Level(table('none'), rank=4)),
    within=table('0,0,1'),
  ),
  '=attention.query': Spec(same_as='attention.query'),
}


@pytest.mark.parametrize('text', SAID)
def test_every_clause(text):
  assert parse(text) == SAID[text]
  assert str(parse(text)) == text


ranks = st.sampled_from(['', '@1', '@17', '@diagonal'])
integers = st.integers(1, 12)


@st.composite
def tables(draw):
  name = draw(st.sampled_from([*SCHEMES, 'literal']))
  if name == 'literal':
    rows = draw(st.lists(st.integers(0, 3), max_size=5))
    return ','.join(map(str, [*range(draw(integers)), *rows, 3, 2, 1, 0]))
  return ''.join(
    str(draw(integers)) if letter.isupper() else letter
    for letter in SCHEMES[name][0]
  )


@st.composite
def specs(draw):
  levels = draw(
    st.lists(st.builds(str.__add__, tables(), ranks), min_size=1, max_size=4)
  )
  if draw(st.booleans()):
    levels.insert(draw(st.integers(0, len(levels))), f'soft:{draw(integers)}')
  units = draw(st.one_of(st.just(''), st.builds('|{}'.format, tables())))
  return '+'.join(levels) + units


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(specs(), st.sampled_from([' ', '\t', '  ']))
def test_what_is_parsed_is_written_the_same(text, space):
  assert str(parse(text)) == text
  spaced = text.replace('+', f'{space}+{space}').replace('|', f' |{space}')
  assert parse(f'{space}{spaced}') == parse(text)


@settings(deadline=None, max_examples=400)
@given(st.text('alnoe:,0123@+|=. diagsft', max_size=20))
def test_anything_else_is_bad_input(text):
  """Whatever is typed, it is a spec that survives, or one clear line."""
  try:
    spec = parse(text)
  except BadInput as error:
    assert '\n' not in str(error) and str(error)
  else:
    assert parse(str(spec)) == spec


ERRORS = {
  '': "an empty level in ''; write levels as all+none@4",
  'all+': "an empty level in 'all+'; write levels as all+none@4",
  '+all': "an empty level in '+all'; write levels as all+none@4",
  'all++none': "an empty level in 'all++none'; write levels as all+none@4",
  '|all': "an empty level in '|all'; write levels as all+none@4",
  'soft': ("soft is written soft:K with K templates, at least 1, got 'soft'"),
  'soft:0': (
    "soft is written soft:K with K templates, at least 1, got 'soft:0'"
  ),
  'soft:x': (
    "soft is written soft:K with K templates, at least 1, got 'soft:x'"
  ),
  'soft:2@4': "templates are of full rank, got 'soft:2@4'",
  'soft:2@diagonal': "templates are of full rank, got 'soft:2@diagonal'",
  'soft:2+soft:3': "one level at most may be soft, got 'soft:2+soft:3'",
  'all@': "a rank is an integer of at least 1, or diagonal, got 'all@'",
  'all@0': "a rank is an integer of at least 1, or diagonal, got 'all@0'",
  'all@-1': "a rank is an integer of at least 1, or diagonal, got 'all@-1'",
  'all@1.5': "a rank is an integer of at least 1, or diagonal, got 'all@1.5'",
  'all@full': "a rank is an integer of at least 1, or diagonal, got 'all@full'",
  'all@2@3': "a rank is an integer of at least 1, or diagonal, got 'all@2@3'",
  'all+nonee@4': "unknown sharing scheme 'nonee'; did you mean 'none'?",
  'all+cycle@4': "cycle is written cycle:U with integers, got 'cycle'",
  'all+0,2@4': (
    'the rows of a table run from 0 without gaps; 0,2 has 2 but no 1'
  ),
  'none|': "| is followed by a table, got 'none|'",
  'none|al': "unknown sharing scheme 'al'; did you mean 'all'?",
  'none|all|all': "unknown sharing scheme 'all|all'; did you mean 'all'?",
  'none|all@2': "unknown sharing scheme 'all@2'; did you mean 'all'?",
  'none|soft:2': (
    "unknown sharing scheme 'soft'; known: none, all, sequence, cycle,"
    ' cycle_rev, sandwich, middle_cycle, middle_sequence, prefix, recurrent'
  ),
  '=': "= is followed by a part such as attention.query, got '='",
  '=attention': (
    "= is followed by a part such as attention.query, got '=attention'"
  ),
  '=attention.query@2': (
    "= is followed by a part such as attention.query, got '=attention.query@2'"
  ),
  'all+=attention.query': (
    "unknown sharing scheme '=attention.query'; known: none, all, sequence,"
    ' cycle, cycle_rev, sandwich, middle_cycle, middle_sequence, prefix,'
    ' recurrent'
  ),
}


@pytest.mark.parametrize('text', ERRORS)
def test_errors_of_the_grammar(text):
  with pytest.raises(BadInput) as error:
    parse(text)
  assert str(error.value) == ERRORS[text]


MISFITS = {
  ('layer', 'all+cycle:4@2'): (
    'layer: cycle:4 needs num_layers divisible by 4, got 6'
  ),
  ('layer', 'recurrent:2/4x3/2+none@2'): (
    'layer: recurrent:2/4x3/2 needs num_layers = P + C*R + K = 16, got 6'
  ),
  ('feed_forward_down', 'all+0,1@2'): (
    'feed_forward_down: the table 0,1 has 2 entries for 6 layers; a literal'
    ' needs one for each'
  ),
  ('attention', 'soft:2+all@x'): (
    "attention: a rank is an integer of at least 1, or diagonal, got 'all@x'"
  ),
  ('layer', '=attention.query'): (
    'layer: =attention.query is for a part such as attention.key'
  ),
  ('attention', '=feed_forward.up'): (
    'attention: =feed_forward.up is for a part such as attention.key'
  ),
  ('attention_key', '=attention.qery'): (
    "attention_key: unknown part 'attention.qery'; did you mean"
    " 'attention.query'?"
  ),
  ('attention_key', '=attention.key'): (
    'attention_key: attention.key has no weights of its own either'
  ),
  ('attention_value', '=attention.out'): (
    'attention_value: =attention.out needs attention.value (16, 8) to have the'
    ' shape of attention.out (16, 16)'
  ),
  ('norm_attention', '=norm.feed_forward'): (
    'norm_attention: =norm.feed_forward is for a part such as attention.key'
  ),
  ('norm', 'none|all'): (
    'norm: a table after | is for parts with heads or neurons, got |all'
  ),
  ('norm_attention', 'none|all'): (
    'norm_attention: a table after | is for parts with heads or neurons, got'
    ' |all'
  ),
  ('attention_query', 'none|sequence:3'): (
    'attention_query: |sequence:3 over the 4 heads or neurons of'
    ' attention.query: sequence:3 needs num_layers divisible by 3, got 4'
  ),
  ('attention', 'none|cycle:4'): (
    'attention: |cycle:4 over the 2 heads or neurons of attention.key: cycle:4'
    ' needs num_layers divisible by 4, got 2'
  ),
  ('feed_forward', 'none|0,1'): (
    'feed_forward: |0,1 over the 32 heads or neurons of feed_forward.up: the'
    ' table 0,1 has 2 entries for 32 layers; a literal needs one for each'
  ),
  ('kv_source', 'cycle:4'): (
    'kv_source: cycle:4 needs num_layers divisible by 4, got 6'
  ),
  ('map_source', 'all@2'): (
    "map_source: unknown sharing scheme 'all@2'; did you mean 'all'?"
  ),
}


def cross(**sharing):
  model = {'num_layers': 6, 'd_model': 16, 'num_heads': 4, 'num_kv_heads': 2}
  return configs.cross({'model': {**model, 'd_ff': 32, 'sharing': sharing}})


@pytest.mark.parametrize('field,text', MISFITS)
def test_errors_name_the_field(field, text):
  with pytest.raises(BadInput) as error:
    cross(**{field: text})
  assert str(error.value) == f'model.sharing.{MISFITS[field, text]}'


COMBINATIONS = {
  'a chain of =': (
    {'attention_key': '=attention.value', 'attention_value': ' =attention.out'},
    'attention_key: attention.value has no weights of its own either',
  ),
  '= to a part that reusing layers lack': (
    {'attention_out': '=attention.query', 'map_source': 'all'},
    'attention_out: =attention.query needs attention.query in every layer that'
    ' has attention.out; those that reuse activations have none',
  ),
  'two kinds of reuse': (
    {'kv_source': 'all', 'map_source': 'all'},
    None,
  ),
}


@pytest.mark.parametrize('name', COMBINATIONS)
def test_errors_of_combinations(name):
  sharing, message = COMBINATIONS[name]
  with pytest.raises(BadInput) as error:
    cross(**sharing)
  assert str(error.value) == (
    f'model.sharing.{message}'
    if message
    else 'kv_source and map_source cannot both be given: a layer that reuses an'
    ' attention map has no keys'
  )


def test_the_parts_of_a_scheme():
  assert assignments('all attention.key==attention.value norm=none') == {
    'layer': 'all',
    'attention.key': '=attention.value',
    'norm': 'none',
  }


def test_drawing_sums_units_and_ties():
  specs = {
    'attention': 'cycle:2+none@8',
    'attention.key': '=attention.out',
    'feed_forward': 'soft:2',
    'norm': 'all+none@diagonal',
    'attention.out': '0,0,1,1|all',
  }
  assert draw(specs, 4).splitlines() == [
    'layer          0  1  2  3',
    'attention      0  1  0  1  cycle:2         2 rows, each read 2 times',
    '        +      0  1  2  3  none@8          4 rows, each read 1 time',
    'attention.key  =  =  =  =  =attention.out  no weights',
    'feed_forward   ~  ~  ~  ~  soft:2          2 templates, mixed by every'
    ' layer',
    'norm           0  0  0  0  all             1 row, each read 4 times',
    '   +           0  1  2  3  none@diagonal   4 rows, each read 1 time',
    'attention.out  0  0  1  1  0,0,1,1|all     2 rows, each read 2 times',
  ]
