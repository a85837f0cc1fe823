"""`make bench`: what it writes, and that what it compares is the same."""

import json
import os

import jax
import jax.numpy as jnp
import pytest

from benchmarks import ours, suite, turns
from benchmarks.rows import NotHere, Plan, Row, compared
from benchmarks.sections import unrolled

TWO = {'ours': [1.0, 2.0, 3.0], 'theirs': [2.0, 4.0, 9.0]}


def written(folder):
  """The table, what the JSON holds, and the plots of one run of the suite."""
  (table,), (data,) = folder.glob('*.md'), folder.glob('*.json')
  return table.read_text(), json.loads(data.read_text()), folder.glob('*.png')


def test_a_ratio_is_of_medians_and_its_spread_of_rounds():
  row = compared('case', TWO, 'theirs', 'ours', FLOPs=1.5)
  assert (row.ratio, row.spread, row.rounds) == (2.0, (2.0, 3.0), 3)
  assert row.line(False) == '| case | 2 | 2 to 3 | 3 | FLOPs 1.5 |'
  assert 'theirs 4,000.0; ours 2,000.0 |' in row.line(True)


def test_a_section_that_fails_costs_no_other_its_rows(tmp_path):
  def good(plan):
    """What is fine."""
    yield compared('whole', TWO, 'theirs', 'ours')

  def bad(plan):
    """What breaks."""
    yield Row('half', 1.0, (1.0, 1.0))
    raise ValueError('something broke\nand there is more to it')

  def absent(plan):
    """What needs more."""
    raise NotHere('no such device')
    yield

  sections = {'bad': bad, 'absent': absent, 'good': good}
  told = suite.run(sections, Plan(3), tmp_path)
  table, data, _ = written(tmp_path)
  assert [len(told[name].rows) for name in sections] == [1, 0, 1]
  assert 'FAILED after 1 rows: ValueError: something broke\n' in table
  assert 'Not run: no such device.' in table
  assert '| whole | 2 | 2 to 3 | 3 |' in table
  assert data['sections']['good']['rows'][0]['seconds'] == {
    name: TWO[name] for name in TWO
  }
  assert '4,000' not in table  # no absolute times of a CPU


def test_files_are_there_before_the_next_section(tmp_path):
  def first(plan):
    yield compared('done', TWO, 'theirs', 'ours')

  def second(plan):
    table, data, _ = written(tmp_path)
    assert '| done |' in table and data['sections']['first']['rows']
    yield compared('also', TWO, 'ours', 'theirs')

  told = suite.run({'first': first, 'second': second}, Plan(3), tmp_path)
  assert not told['second'].failed


def test_unknown_sections_and_no_rounds_are_refused(tmp_path):
  for words in (['nonsense'], ['--rounds=0', 'memory']):
    with pytest.raises(SystemExit):
      suite.main([*words, f'--out={tmp_path}'])
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_a_loop_in_python_has_the_same_loss_and_gradient(remat):
  made = ours.programs(
    {
      'num_layers': 3,
      'd_model': 16,
      'num_heads': 2,
      'max_len': 8,
      'remat': remat,
      'sharing': {'layer': 'all'},
    },
    2,
  )
  params, batch = made.init(jnp.uint32(0)).params, ours.batch(made)
  loss, grads = (
    jax.jit(unrolled.value_and_grad(made.config.model, hidden))(params, batch)
    for hidden in (unrolled.scanned, unrolled.unrolled)
  )
  unrolled.agree(loss, grads)
  with pytest.raises(AssertionError):
    unrolled.agree(loss, (grads[0], jax.tree.map(jnp.zeros_like, grads[1])))


@pytest.mark.slow
def test_scaling_is_drawn(tmp_path):
  assert suite.main(['scaling', '--quick', f'--out={tmp_path}']) == 0
  table, data, plots = written(tmp_path)
  (plot,) = plots
  assert plot.name in table and plot.stat().st_size > 1000
  rows = data['sections']['scaling']['rows']
  assert [row['ratio'] for row in rows if row['name'].endswith('all')] == [1]


def contenders():
  """One that works, one that cannot be made, and one whose process dies."""

  def broken():
    raise ValueError('no compiler')

  return {
    'ours': lambda: os.getpid,
    'broken': broken,
    'dead': lambda: os._exit(1),
  }


def last_gasp():
  """One that dies in its first turn, which is the third run."""
  runs = iter([None, None])

  def run():
    if next(runs, 'over'):
      os._exit(1)

  return {'ours': lambda: run}


@pytest.mark.slow
def test_contenders_have_a_process_each(capsys):
  taken = turns.apart(contenders, 3)
  assert list(taken) == ['ours'] and len(taken['ours']) == 3
  said = capsys.readouterr().err
  assert said == 'broken: ValueError: no compiler\ndead: its process ended\n'
  with pytest.raises(RuntimeError, match='ours ended in its turn'):
    turns.apart(last_gasp, 1)


@pytest.mark.slow
@pytest.mark.parametrize('name', [n for n in suite.SECTIONS if n != 'scaling'])
def test_every_section_runs(name, tmp_path):
  words = [name, '--quick', '--rounds=1', f'--out={tmp_path}']
  assert suite.main(words) == 0
  table, data, _ = written(tmp_path)
  told = data['sections'][name]
  assert f'## {name}' in table and 'TINY' in table
  if name not in ('peers', 'generate') or not told['failed']:
    assert told['rows'] and not told['failed']
    assert all(row['ratio'] >= 0 for row in told['rows'])
