"""Owner tables as literals, and the laws that hold for all of them."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_tfm.errors import BadInput
from shared_tfm.sharing import draw, owners, resolve, table
from shared_tfm.sharing.levels import assignments
from shared_tfm.sharing.table import SCHEMES, parse

# Every scheme over eight layers.
EIGHT = {
  'none': (0, 1, 2, 3, 4, 5, 6, 7),
  'all': (0, 0, 0, 0, 0, 0, 0, 0),
  'sequence:4': (0, 0, 1, 1, 2, 2, 3, 3),
  'cycle:4': (0, 1, 2, 3, 0, 1, 2, 3),
  'cycle_rev:4': (0, 1, 2, 3, 3, 2, 1, 0),
  'sandwich': (0, 1, 1, 1, 1, 1, 1, 2),
  'middle_cycle:2': (0, 1, 2, 1, 2, 1, 2, 3),
  'middle_sequence:2': (0, 1, 1, 1, 2, 2, 2, 3),
  'prefix:3': (0, 1, 2, 2, 2, 2, 2, 2),
  'recurrent:1/2x3/1': (0, 1, 2, 1, 2, 1, 2, 3),
  '0,1,2,2,1,0,3,3': (0, 1, 2, 2, 1, 0, 3, 3),
}


def test_every_scheme_has_a_literal():
  assert {parse(spec).name for spec in EIGHT} == {*SCHEMES, 'literal'}


@pytest.mark.parametrize('spec', EIGHT)
def test_eight_layers(spec):
  assert owners(spec, 8) == EIGHT[spec]


def digits(text):
  return tuple(map(int, text.replace(' ', '')))


PUBLISHED = {
  # ALBERT, modeling.py: group_idx = int(layer / layers * groups), 12 layers.
  'ALBERT, 1 group': ('all', '000000000000'),
  'ALBERT, 2 groups': ('sequence:2', '000000111111'),
  'ALBERT, 3 groups': ('sequence:3', '000011112222'),
  'ALBERT, 4 groups': ('sequence:4', '000111222333'),
  'ALBERT, 6 groups': ('sequence:6', '001122334455'),
  # Takase & Kiyono (2104.06022), Figure 1 and Table 1: (M, N).
  'Takase sequence (3, 6)': ('sequence:3', '001122'),
  'Takase cycle (3, 6)': ('cycle:3', '012012'),
  'Takase cycle rev (3, 6)': ('cycle_rev:3', '012210'),
  'Takase sequence (6, 12)': ('sequence:6', '001122334455'),
  'Takase cycle (6, 12)': ('cycle:6', '012345 012345'),
  'Takase cycle rev (6, 12)': ('cycle_rev:6', '012345 543210'),
  'Takase sequence (6, 18)': ('sequence:6', '000111222333444555'),
  'Takase cycle (6, 18)': ('cycle:6', '012345 012345 012345'),
  'Takase cycle rev (6, 18)': ('cycle_rev:6', '012345 012345 543210'),
  # MobileLLM (2402.14905), section 3.4, on ten of its layers.
  'MobileLLM immediate': ('sequence:5', '0011223344'),
  'MobileLLM repeat-all-over': ('cycle:5', '0123401234'),
  'MobileLLM reverse': ('cycle_rev:5', '0123443210'),
  # Mixture-of-Recursions (2507.10524), Table 5.
  'MoR cycle, L 9, 3 times': ('cycle:3', '012012012'),
  'MoR sequence, L 9, 3 times': ('sequence:3', '000111222'),
  'MoR middle-cycle, L 8, 3 times': ('middle_cycle:2', '0 12 12 12 3'),
  'MoR middle-sequence, L 8, 3 times': ('middle_sequence:2', '0 111 222 3'),
  # Subformer (2101.00234): sandwich-style sharing.
  'Subformer, L 6': ('sandwich', '011112'),
  'Subformer, L 12': ('sandwich', '011111111112'),
  # Huginn (2502.05171): prelude 2, core 4, coda 2; three loops of many.
  'Huginn, 3 loops': ('recurrent:2/4x3/2', '01 2345 2345 2345 67'),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_tables(name):
  spec, literal = PUBLISHED[name]
  assert owners(spec, len(digits(literal))) == digits(literal)


def test_a_name_stays_with_its_rule(monkeypatch):
  """A cell of a notebook may run again; a changed rule takes another name."""
  monkeypatch.setattr(table, 'SCHEMES', {})

  def zigzag(layers, rows):
    period = max(2 * rows - 2, 1)
    return tuple(min(i % period, period - i % period) for i in range(layers))

  table.scheme('zigzag:U')(zigzag)
  assert table.scheme('zigzag:U')(lambda n, rows: list(zigzag(n, rows)))
  assert table.SCHEMES['zigzag'][1] is zigzag
  for form, rule in {
    'zigzag:U': lambda layers, rows: zigzag(layers, rows)[::-1],
    'zigzag:UxU': lambda layers, rows, more: zigzag(layers, rows),
  }.items():
    with pytest.raises(BadInput, match='zigzag is another rule already'):
      table.scheme(form)(rule)
  assert owners('zigzag:3', 5) == (0, 1, 2, 1, 0)


def test_the_sizes_in_use():
  """MobileLLM-LS runs 30 and 32 blocks twice; Huginn loops its core 32x."""
  assert owners('sequence:30', 60)[-4:] == (28, 28, 29, 29)
  assert max(owners('sequence:32', 64)) == 31
  huginn = owners('recurrent:2/4x32/2', 132)
  assert huginn[:10] == (0, 1, 2, 3, 4, 5, 2, 3, 4, 5)
  assert huginn[-3:] == (5, 6, 7)


@pytest.mark.parametrize('groups', (1, 2, 3, 4, 6, 12))
def test_sequence_is_alberts_formula(groups):
  formula = tuple(int(layer / 12 * groups) for layer in range(12))
  assert owners(f'sequence:{groups}', 12) == formula


small = st.integers(1, 5)


@st.composite
def fitting(draw):
  """A spec and a depth it fits."""
  name = draw(st.sampled_from([*SCHEMES, 'literal']))
  rows, repeats = draw(small), draw(small)
  if name in ('none', 'all'):
    return name, rows
  if name == 'sandwich':
    return name, 2 + rows
  if name == 'literal':
    table = [*range(rows), *draw(st.lists(st.integers(0, rows - 1)))]
    return ','.join(map(str, draw(st.permutations(table)))), len(table)
  if name == 'recurrent':
    p, k = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    return f'recurrent:{p}/{rows}x{repeats}/{k}', p + rows * repeats + k
  ends = 2 if name.startswith('middle') else 0
  return f'{name}:{rows}', rows * repeats + ends


@settings(deadline=None, max_examples=300)
@given(fitting())
def test_owners_are_dense_from_0(case):
  spec, depth = case
  table = owners(spec, depth)
  assert len(table) == depth
  assert set(table) == set(range(max(table) + 1))


@settings(deadline=None, max_examples=300)
@given(fitting())
def test_new_rows_come_in_order(case):
  """Outside literals a row's number says when it is first read."""
  spec, depth = case
  table = owners(spec, depth)
  if parse(spec).name != 'literal':
    assert list(dict.fromkeys(table)) == list(range(max(table) + 1))


@settings(deadline=None, max_examples=300)
@given(fitting(), st.sampled_from(['', ' ', '\t']))
def test_specs_round_trip(case, space):
  spec, depth = case
  assert str(parse(spec)) == spec
  spaced = space + spec.replace(',', f'{space},{space}') + space
  assert parse(spaced) == parse(spec)
  table = owners(spec, depth)
  assert owners(','.join(map(str, table)), depth) == table


ERRORS = {
  ('cycle:5', 12): 'cycle:5 needs num_layers divisible by 5, got 12',
  ('sequence:5', 12): 'sequence:5 needs num_layers divisible by 5, got 12',
  ('cycle_rev:5', 12): 'cycle_rev:5 needs num_layers divisible by 5, got 12',
  ('cycle:0', 12): 'cycle:U needs U of at least 1, got 0',
  ('middle_cycle:0', 12): 'middle_cycle:U needs U of at least 1, got 0',
  ('middle_cycle:4', 12): (
    'middle_cycle:4 needs num_layers - 2 divisible by 4, and some middle, got'
    ' num_layers 12'
  ),
  ('middle_sequence:3', 12): (
    'middle_sequence:3 needs num_layers - 2 divisible by 3, and some middle,'
    ' got num_layers 12'
  ),
  ('middle_cycle:1', 2): (
    'middle_cycle:1 needs num_layers - 2 divisible by 1, and some middle, got'
    ' num_layers 2'
  ),
  ('sandwich', 2): 'sandwich needs num_layers of at least 3, got 2',
  ('recurrent:2/4x3/2', 12): (
    'recurrent:2/4x3/2 needs num_layers = P + C*R + K = 16, got 12'
  ),
  ('recurrent:2/0x3/2', 4): 'recurrent:2/0x3/2 needs C and R of at least 1',
  ('recurrent:2/4/2', 8): (
    'recurrent is written recurrent:P/CxR/K with integers, got'
    " 'recurrent:2/4/2'"
  ),
  ('cycle', 12): "cycle is written cycle:U with integers, got 'cycle'",
  ('cycle:-3', 12): "cycle is written cycle:U with integers, got 'cycle:-3'",
  ('all:3', 12): "all is written all with integers, got 'all:3'",
  ('cycel:3', 12): "unknown sharing scheme 'cycel'; did you mean 'cycle'?",
  ('0,1,2', 4): (
    'the table 0,1,2 has 3 entries for 4 layers; a literal needs one for each'
  ),
  ('0,2,2', 3): (
    'the rows of a table run from 0 without gaps; 0,2,2 has 2 but no 1'
  ),
  ('none', 0): 'num_layers must be at least 1, got 0',
}


@pytest.mark.parametrize('spec,depth', ERRORS)
def test_errors_name_the_rule_and_the_value(spec, depth):
  with pytest.raises(BadInput) as error:
    owners(spec, depth)
  assert str(error.value) == ERRORS[spec, depth]


def test_an_unrecognisable_scheme_lists_the_known_ones():
  with pytest.raises(BadInput, match='known: none, all, sequence, cycle'):
    owners('zzz', 4)


def test_the_nearest_ancestor_wins():
  names = {'layer': 'none', 'attention': 'all', 'attention.key': 'cycle:2'}
  assert resolve(names, 'attention.key.kernel') == 'attention.key'
  assert resolve(names, 'attention.keys') == 'attention'
  assert resolve(names, 'attention.query') == 'attention'
  assert resolve(names, 'feed_forward.up') == 'layer'
  assert resolve(names, 'layer') == 'layer'


def test_assignments():
  assert assignments('cycle:3') == {'layer': 'cycle:3'}
  assert assignments('all attention.key=none') == {
    'layer': 'all',
    'attention.key': 'none',
  }
  with pytest.raises(BadInput, match='norm is given twice'):
    assignments('norm=all norm=none')
  with pytest.raises(BadInput, match='empty sharing scheme'):
    assignments(' ')


def test_drawing():
  specs = {'attention': 'all', 'feed_forward': 'cycle_rev:3', 'norm': 'none'}
  assert draw(specs, 6) == (
    'layer         0  1  2  3  4  5\n'
    'attention     0  0  0  0  0  0  all          1 row, each read 6 times\n'
    'feed_forward  0  1  2  2  1  0  cycle_rev:3  3 rows, each read 2 times\n'
    'norm          0  1  2  3  4  5  none         6 rows, each read 1 time'
  )
  assert draw({'layer': 'sandwich'}, 11).splitlines()[1] == (
    'layer   0   1   1   1   1   1   1   1   1   1   2  sandwich  '
    '3 rows, each read 1-9 times'
  )


def test_the_heart_needs_the_standard_library_alone():
  """Reading a table imports nothing that is not Python's own or this code."""
  code = (
    'import sys; before = set(sys.modules);'
    'import shared_tfm.sharing.table;'
    'new = {m.partition(".")[0] for m in set(sys.modules) - before};'
    'print(sorted(new - set(sys.stdlib_module_names)))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "['shared_tfm']"
