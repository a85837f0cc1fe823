"""A sweep: several schemes and seeds, whole or cut, and what it writes."""

import io
import json
import math
import os
import random
import re
import shutil
import signal
import types

import matplotlib.image
import pytest
import tqdm

from shared_tfm import accounting, config
from shared_tfm.__main__ import main
from shared_tfm.errors import BadInput, Interrupted
from shared_tfm.report import (
  compare,
  pool,
  results_file,
  sweep,
  sweep_file,
  tables,
  trained,
  tuning,
)
from shared_tfm.train import log, runs, turns

STEPS, SEEDS = 6, 2
SCHEMES = ['none', 'attention=all norm=none']
WORDS = 'a bank of weights is picked by row and every layer reads its own row'
FILES = [
  '.lock',
  'loss_vs_flops.png',
  'loss_vs_params.png',
  'loss_vs_steps.png',
  'report.html',
  'results.csv',
  'runs',
  'summary.md',
  'sweep.json',
]


@pytest.fixture(scope='module')
def fields(tmp_path_factory):
  path = tmp_path_factory.mktemp('data') / 'text.txt'
  path.write_text(' '.join(random.Random(0).choices(WORDS.split(), k=3000)))
  return {
    'model': {
      'num_layers': 2,
      'd_model': 16,
      'num_heads': 2,
      'max_len': 16,
      'dropout': 0.1,
    },
    'train': {
      'num_steps': STEPS,
      'batch_size': 4,
      'eval_every': 3,
      'eval_batches': 2,
      'checkpoint_every': 4,
      'log_every': 4,
    },
    'data': {'source': 'text', 'path': str(path)},
  }


def with_fields(fields, group, **changed):
  return {**fields, group: {**fields[group], **changed}}


@pytest.fixture(scope='module')
def whole(fields, tmp_path_factory):
  """The folder and the results of a sweep that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('sweep')
  return workdir, compare.compare(fields, SCHEMES, SEEDS, workdir)


def timeless(results):
  return [
    tuple(
      getattr(r, name) for name in results_file.FIELDS if 'second' not in name
    )
    for r in results
  ]


def curves(workdir):
  """The losses that every run has written down."""
  return {
    str(path.parent.relative_to(workdir)): [
      (line['kind'], line['step'], line['loss'])
      for line in log.read(path.parent)
    ]
    for path in workdir.rglob('metrics.jsonl')
  }


def times(folder):
  return {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()}


@pytest.fixture
def interrupt(monkeypatch):
  """(step) -> the next sweep gets SIGTERM after so many steps of all runs."""

  def set_up(at):
    class Bar(tqdm.tqdm):
      def update(self, n=1):
        super().update(n)
        if self.n == at:
          os.kill(os.getpid(), signal.SIGTERM)

    def progress(steps):
      return Bar(total=steps, file=io.StringIO())

    monkeypatch.setattr(compare, 'progress', progress)

  return set_up


@pytest.mark.slow
def test_what_a_sweep_writes(whole):
  workdir, results = whole
  assert sorted(path.name for path in workdir.iterdir()) == FILES
  header, *rows = (workdir / 'results.csv').read_text().splitlines()
  assert header.startswith('scheme,seed,')
  assert [row.split(',')[:2] for row in rows] == [
    ['none', '0'],
    ['none', '1'],
    ['attention=all norm=none', '0'],
    ['attention=all norm=none', '1'],
  ]
  assert results_file.read(workdir / 'results.csv') == results
  summary = (workdir / 'summary.md').read_text()
  assert summary == tables.render(tables.summary(results)) + '\n'
  page = (workdir / 'report.html').read_text()
  for scheme in SCHEMES:
    assert f'>{scheme}<' in page
  assert '>devices</' in page and '>1 x cpu</' in page
  for name in FILES[1:4]:
    assert matplotlib.image.imread(workdir / name).std() > 0.01


@pytest.mark.slow
def test_results_are_those_of_the_runs(whole, fields):
  workdir, results = whole
  folders = sorted((workdir / 'runs').glob('*/*'))
  assert [str(f.relative_to(workdir / 'runs')) for f in folders] == [
    'attention=all--norm=none/seed-0',
    'attention=all--norm=none/seed-1',
    'none/seed-0',
    'none/seed-1',
  ]
  for result, folder in zip(results, folders[2:] + folders[:2], strict=True):
    run = json.loads((folder / 'result.json').read_text())
    seed = json.loads((folder / 'config.json').read_text())['train']['seed']
    assert seed == result.seed
    assert result.validation_loss == run['validation_loss']
    assert result.scores['bits_per_byte'] == run['validation_bits_per_byte']
    assert result.tokens == run['tokens'] == STEPS * 4 * 16
  # One layer's attention is stored less: 4 products of 16 x 16, with biases.
  none, shared = results[0], results[2]
  assert none.stored_params - shared.stored_params == 4 * (16 * 16 + 16)
  assert none.applied_params == shared.applied_params
  assert none.flops_per_token == shared.flops_per_token
  assert none.sharing_ratio == 1 < shared.sharing_ratio
  losses = [result.validation_loss for result in results]
  assert len(set(losses)) == 4


@pytest.mark.slow
def test_a_sweep_that_was_cut_goes_on(whole, fields, tmp_path, interrupt):
  expected_folder, expected = whole
  interrupt(STEPS + 2)  # in the second run
  with pytest.raises(Interrupted, match='SIGTERM after step'):
    compare.compare(fields, SCHEMES, SEEDS, tmp_path)
  done = list(tmp_path.glob('runs/*/*/result.json'))
  assert len(done) == 1
  assert len(results_file.read(tmp_path / 'results.csv')) == 1
  assert not (tmp_path / 'report.html').exists()
  before = {path.parent: times(path.parent) for path in done}

  interrupt(None)
  results = compare.compare(fields, SCHEMES, SEEDS, tmp_path)
  for folder, then in before.items():
    assert times(folder) == then
  assert timeless(results) == timeless(expected)
  assert curves(tmp_path) == curves(expected_folder)
  assert results_file.read(tmp_path / 'results.csv') == results
  assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_every_scheme_has_its_own_folder():
  schemes = (
    'cycle:2',
    'none+sequence:1',
    'none|sequence:1',
    'none sequence=all',
    'recurrent:1/1x2/1',
    '@albert:2',
    'attention=all norm=none',
  )
  slugs = [sweep.row(scheme).folder for scheme in schemes]
  assert len(set(slugs)) == len(schemes)
  assert all(re.fullmatch(r'[\w.,=@+!~-]+', slug) for slug in slugs)


@pytest.mark.slow
def test_a_finished_sweep_may_grow(whole, fields, tmp_path):
  first = compare.compare(fields, ['none'], 1, tmp_path)
  before = times(tmp_path / 'runs')
  both = compare.compare(fields, ['none', SCHEMES[1]], 1, tmp_path)
  after = times(tmp_path / 'runs')
  assert {path: after[path] for path in before} == before
  assert both[:1] == first
  assert timeless(both) == timeless(whole[1][::2])


@pytest.mark.slow
def test_runs_are_scored_on_as_many_examples(fields, tmp_path):
  compare.compare(fields, ['none'], 1, tmp_path)
  before = times(tmp_path)
  more = with_fields(fields, 'train', eval_batches=3)
  with pytest.raises(BadInput, match=r'here are 8 \(none .*12 \(all seed 0\)'):
    compare.compare(more, ['none', 'all'], 1, tmp_path)
  rows = ['none', {'sharing': 'all', 'train': {'batch_size': 2}}]
  with pytest.raises(BadInput, match=r'here are 8 .*, 4 \(all seed 0\)'):
    compare.compare(fields, rows, 1, tmp_path)
  assert times(tmp_path) == before


@pytest.mark.slow
def test_the_seeds_begin_at_the_configs_own(whole, fields, tmp_path):
  seeded = with_fields(fields, 'train', seed=1)
  (result,) = compare.compare(seeded, ['none'], 1, tmp_path)
  assert result.seed == 1
  assert timeless([result]) == timeless([whole[1][1]])


@pytest.mark.slow
def test_the_configs_own_sharing_plays_no_part(whole, fields, tmp_path):
  shared = with_fields(fields, 'model', sharing={'feed_forward': 'all'})
  (result,) = compare.compare(config.cross(shared), ['none'], 1, tmp_path)
  assert timeless([result]) == timeless(whole[1][:1])


@pytest.mark.slow
def test_a_run_that_diverges_is_reported_too(fields, tmp_path):
  lost = {'name': 'lion', 'learning_rate': 1e30, 'schedule': 'constant'}
  results = compare.compare({**fields, 'optimizer': lost}, ['all'], 1, tmp_path)
  assert math.isnan(results[0].validation_loss)
  assert sorted(path.name for path in tmp_path.iterdir()) == FILES
  assert ' nan |' in (tmp_path / 'summary.md').read_text()
  read = results_file.read(tmp_path / 'results.csv')
  assert str(read) == str(results)
  for name in ('result.json', 'metrics.jsonl'):
    (path,) = tmp_path.rglob(name)
    assert 'NaN' not in path.read_text()  # which is no JSON


@pytest.mark.slow
def test_the_verb_prints_the_summary(whole, fields, tmp_path, capsys):
  shutil.copytree(whole[0], tmp_path / 'sweep')
  path = tmp_path / 'config.py'
  path.write_text(f'def get_config():\n  return {fields!r}\n')
  before = times(tmp_path / 'sweep' / 'runs')
  words = f'--config={path}', f'--workdir={tmp_path / "sweep"}'
  schemes = f'--sharing={";".join(SCHEMES)}'
  assert main(['compare', *words, schemes, f'--seeds={SEEDS}']) == 0
  printed = capsys.readouterr().out
  summary = (whole[0] / 'summary.md').read_text()
  report = tmp_path / 'sweep' / 'report.html'
  assert printed == f'{summary}\nreport: {report}\n'
  assert times(tmp_path / 'sweep' / 'runs') == before


# Rows with labels and fields of their own, from Python and from a file.


ROWS = """
[[row]]
sharing = 'none'
optimizer.learning_rate = 2e-3

[[row]]
label = 'a layer'
sharing = 'all'
model.num_layers = 1
model.d_model = 8
train.batch_size = 8
train.eval_batches = 1
"""


def sweep_in(folder, fields, text, **more):
  """A sweep file, and the config that it names."""
  (folder / 'base.py').write_text(f'def get_config():\n  return {fields!r}\n')
  path = folder / 'sweep.toml'
  given = {'config': str(folder / 'base.py'), **more}
  lines = [f'{name} = {value!r}' for name, value in given.items()]
  path.write_text('\n'.join([*lines, text]))
  return path


def test_a_row_has_the_fields_it_names(fields, tmp_path):
  path = sweep_in(tmp_path, fields, 'train.num_steps = 4\n' + ROWS, seeds=2)
  asked = sweep_file.load(path)
  assert (asked.labels, asked.seeds) == (['none', 'a layer'], 2)
  one, other = sweep.crossed(asked).values()
  assert (one.train.num_steps, one.model.num_layers, one.model.d_ff) == (
    4,
    2,
    64,
  )
  assert one.optimizer.learning_rate == 2e-3
  assert other.optimizer.learning_rate == config.Optimizer().learning_rate
  # What is derived follows the row's own fields.
  model = other.model
  assert (model.num_layers, model.d_ff, model.head_dim) == (1, 32, 4)
  assert model.sharing.layer == 'all'
  assert accounting.describe(other)['owners']['attention'] == [0]


def test_a_row_may_be_what_the_config_is_not(fields):
  """The config's own sharing needs 2 layers, and plays no part."""
  shared = with_fields(fields, 'model', sharing={'layer': '0,1'})
  rows = [{'sharing': 'cycle:3', 'model': {'num_layers': 3}}]
  (made,) = sweep.crossed(sweep.of(shared, rows)).values()
  assert made.model.sharing == config.Sharing('cycle:3')


@pytest.mark.slow
def test_a_sweep_file_and_the_folder_alone(whole, fields, tmp_path, capsys):
  path = sweep_in(tmp_path, fields, ROWS.replace('optimizer', '# optimizer'))
  folder = tmp_path / 'sweep'
  assert main(['compare', f'--sweep={path}', f'--workdir={folder}']) == 0
  first = capsys.readouterr().out
  results = results_file.read(folder / 'results.csv')
  assert [(r.scheme, r.seed) for r in results] == [('none', 0), ('a layer', 0)]
  assert timeless(results[:1]) == timeless(whole[1][:1])
  # A batch of its own is data of its own.
  assert [r.tokens for r in results] == [STEPS * 4 * 16, STEPS * 8 * 16]
  assert '| a layer |' in first and results[1].stored_params < 2000 + 258 * 8
  path.unlink()
  before = times(folder / 'runs')
  assert main(['compare', f'--workdir={folder}']) == 0
  assert capsys.readouterr().out == first
  assert times(folder / 'runs') == before
  # And it may grow.
  grown = compare.compare(workdir=folder, seeds=2)
  assert [r.seed for r in grown] == [0, 1, 0, 1]
  assert timeless(grown[:2]) == timeless(whole[1][:2])


# Budgets, rates and processes.


@pytest.mark.slow
def test_rates_are_tuned_on_a_seed_of_their_own(fields, tmp_path):
  given = {'tune': [1, 1e5], 'tune_steps': 3}
  results = compare.compare(fields, ['all'], 1, tmp_path, **given)
  losses = {}
  for path in tmp_path.glob('tune/all/*/result.json'):
    made = json.loads((path.parent / 'config.json').read_text())
    assert made['train']['seed'] == tuning.SEEDS
    assert made['train']['num_steps'] == 3
    rate = made['optimizer']['learning_rate']
    losses[rate] = json.loads(path.read_text())['validation_loss']
  assert losses.keys() == {1e-3, 100.0} and losses[1e-3] < losses[100.0]
  made = json.loads((tmp_path / 'runs/all/seed-0/config.json').read_text())
  assert made['optimizer']['learning_rate'] == 1e-3
  assert results[0].adjusted == 'rate 0.001 at the edge'
  lines = (tmp_path / 'summary.md').read_text().splitlines()
  assert lines[2].endswith('| rate 0.001 at the edge |')
  # It is not tuned again, and rates of another grid are another sweep.
  before = times(tmp_path / 'tune')
  assert compare.compare(workdir=tmp_path) == results
  assert times(tmp_path / 'tune') == before
  with pytest.raises(BadInput, match='differs in tune'):
    compare.compare(workdir=tmp_path, tune=[1])


def test_a_longer_row_is_tuned_for_longer(fields, tmp_path):
  long = {'label': 'long', 'sharing': 'none', 'train': {'num_steps': 12}}
  asked = sweep.of(fields, ['none', long], tune=[1], tune_steps=3)
  made = sweep.crossed(asked)
  steps = [
    one.config.train.num_steps
    for row in asked.rows
    for one in tuning.runs_of(asked, row, made[row.label], tmp_path)
  ]
  assert (STEPS, steps) == (6, [3, 6])


def test_a_rate_at_the_edge_is_told(fields, tmp_path, caplog):
  asked = sweep.of(fields, ['none'], tune=[1, 2, 4])
  (made,) = sweep.crossed(asked).values()
  tried = tuning.runs_of(asked, asked.rows[0], made, tmp_path)
  losses = dict(zip(tried, [3.0, 2.0, 1.0], strict=True))
  found = tuning.chosen('none', sweep_file.Solved(note='a note'), losses)
  assert found.fields == {'optimizer.learning_rate': 4e-3} and found.tuned
  assert found.note == 'a note, rate 0.004 at the edge'
  assert 'none: the best learning rate, 0.004, is at the edge' in caplog.text
  # What diverged is not the best; where all did, the lowest is taken.
  losses = dict(zip(tried, [3.0, 2.0, None], strict=True))
  found = tuning.chosen('none', sweep_file.Solved(), losses)
  assert found.note == 'rate 0.002'
  found = tuning.chosen('none', sweep_file.Solved(), dict.fromkeys(tried))
  assert found.note == 'rate 0.001 at the edge'


@pytest.mark.slow
def test_equal_time_is_measured_once(fields, tmp_path, monkeypatch):
  times_ = iter([[0.02, 0.01]])
  monkeypatch.setattr(pool.turns, 'seconds', lambda _: next(times_))
  results = compare.compare(fields, ['none', 'all'], 1, tmp_path, equal='time')
  assert [r.steps for r in results] == [STEPS, 2 * STEPS]
  again = compare.compare(fields, ['none', 'all'], 1, tmp_path, equal='time')
  assert again == results  # nothing was measured, and nothing trained
  line = (tmp_path / 'summary.md').read_text().splitlines()[3]
  assert line.endswith('| steps 6 -> 12, 10 ms a step, time +0.0 % |')


def test_a_folder_takes_one_sweep_at_a_time(fields, tmp_path, monkeypatch):
  asked = sweep.of(fields, ['none'], equal='time')

  def meanwhile(_):
    theirs = {'none': sweep_file.Solved(note='theirs')}
    sweep_file.write(tmp_path, asked, theirs)
    return [0.01]

  monkeypatch.setattr(pool.turns, 'seconds', lambda _: [0.01])
  with runs.alone(tmp_path), pytest.raises(BadInput, match='is in use by'):
    compare.run(asked, tmp_path)
  assert not (tmp_path / 'sweep.json').exists()
  # Both may have measured before either began: what was solved first stays.
  monkeypatch.setattr(pool.turns, 'seconds', meanwhile)
  with pytest.raises(BadInput, match='another process has begun in workdir'):
    compare.run(asked, tmp_path)
  assert sweep_file.taken(asked, tmp_path)['none'].note == 'theirs'
  assert not (tmp_path / 'runs').exists()


@pytest.mark.slow
def test_steps_are_timed_by_turns(fields):
  deep = with_fields(fields, 'model', num_layers=24)
  one, other = turns.seconds([config.cross(fields), config.cross(deep)])
  assert 0 < one < other < 100 * one


@pytest.mark.slow
def test_processes_give_what_one_gives(whole, fields, tmp_path):
  """And a row that diverges ends no other."""
  diverges = {
    'label': 'lost',
    'sharing': 'none',
    'optimizer': {'name': 'lion', 'learning_rate': 1e30},
    'train': {'max_skipped': 2},
  }
  rows = [diverges, 'none']
  lost, good = compare.compare(fields, rows, 1, tmp_path, processes=2)
  assert math.isnan(lost.validation_loss) and lost.steps < STEPS
  assert timeless([good]) == timeless(whole[1][:1])
  name = 'runs/none/seed-0'
  assert curves(tmp_path)[name] == curves(whole[0])[name]
  assert sorted(path.name for path in tmp_path.iterdir()) == FILES


@pytest.mark.slow
def test_processes_that_are_cut_are_saved_and_go_on(
  fields, tmp_path, monkeypatch
):
  steps = 4_000  # of a millisecond: more than are done when it is told
  long = with_fields(fields, 'train', num_steps=steps, log_every=1_000)
  long = with_fields(long, 'train', checkpoint_every=steps, eval_every=steps)
  sent = []

  class Bar(tqdm.tqdm):
    def update(self, n=1):
      super().update(n)
      if not sent:  # at the first steps that are told
        sent.append(os.kill(os.getpid(), signal.SIGTERM))

  monkeypatch.setattr(
    compare, 'progress', lambda n: Bar(total=n, file=io.StringIO())
  )
  with pytest.raises(Interrupted, match='SIGTERM with 2 runs to do; saved'):
    compare.compare(long, SCHEMES, 1, tmp_path, processes=2)
  (saved, *_) = tmp_path.glob('runs/*/*/checkpoints/*')
  assert not [*tmp_path.rglob('result.json')]
  assert not (tmp_path / 'report.html').exists()
  monkeypatch.undo()
  results = compare.compare(workdir=tmp_path)
  assert [r.steps for r in results] == [steps, steps]
  # One that was saved went on from there.
  told = [
    step
    for kind, step, _ in curves(tmp_path)[
      str(saved.parents[1].relative_to(tmp_path))
    ]
    if kind == 'train'
  ]
  assert told == [*range(1_000, steps + 1, 1_000)]


@pytest.mark.slow
def test_a_worker_that_cannot_go_on_ends_all(fields, tmp_path, capsys):
  """Its line is the sweep's."""
  run = trained.Run('none', 0, config.cross(fields), tmp_path / 'run')
  gone = with_fields(fields, 'data', path=str(tmp_path / 'gone.txt'))
  data = types.SimpleNamespace(config=config.cross(gone), workdir=tmp_path)
  bar = tqdm.tqdm(disable=True)
  with pytest.raises(BadInput, match=r'data\.path .*gone\.txt: no such file'):
    list(pool.finished([run], data, bar, 2))
  assert not run.folder.exists()


def test_a_process_stays_with_a_row_whose_programs_it_has():
  """Two take a row each, and the third together."""
  waiting = pool.Waiting(['none'] * 2 + ['all'] * 3 + ['cycle'] * 3)
  order = [1, 2, 1, 2, 1, 1, 2, 1]  # the second is slower
  assert [waiting.take(who) for who in order] == [0, 2, 1, 3, 5, 6, 4, 7]
  assert waiting.take(2) is None
  waiting = pool.Waiting(['none'] * 3)
  assert [waiting.take(1), waiting.take(2)] == [0, 1]  # nothing else is left
  waiting.clear()
  assert waiting.take(1) is None


def test_each_process_sees_its_own_gpus(fields, tmp_path, monkeypatch):
  two = with_fields(fields, 'train', batch_size=8) | {'mesh': {'data': 2}}
  run = trained.Run('none', 0, config.cross(two), tmp_path)
  monkeypatch.setattr(pool, 'gpus', lambda: list('4567'))
  found = pool.environments([run], 2)
  assert [one[pool.CUDA] for one in found] == ['4,5', '6,7']
  with pytest.raises(BadInput, match='--processes=3 with 2 GPUs each need 6'):
    pool.environments([run], 3)
  monkeypatch.setattr(pool, 'gpus', list)
  assert pool.CUDA not in pool.environments([run], 3)[2]


# Bad input: nothing is written.


@pytest.mark.parametrize(
  ('old', 'new', 'rule'),
  [
    (ROWS, 'row = 3', 'row is a list, got 3'),
    ('[[row]]', '[[rows]]', "unknown setting 'rows'; did you mean 'row'?"),
    ('sharing', '', 'is no TOML'),
    (ROWS, '', 'there is no scheme to compare'),
    (ROWS, "row = ['none', 3]", 'a row is a table, got 3'),
    (ROWS, 'seeds = 1.5', 'seeds is a int, got 1.5'),
    (ROWS, 'seeds = 0', 'there is no scheme'),
    ("sharing = 'none'", "label = 'x'", 'a row needs its scheme, such as'),
    ("'none'", "'nine'", "unknown sharing scheme 'nine'; did you mean 'none'?"),
    ('label', 'lable', "unknown key of a row 'lable'; did you mean 'label'?"),
    ("'a layer'", "'none'", 'the scheme none is given twice'),
    ("'a layer'", "'../up'", 'a label has letters, digits, spaces and'),
    ("'a layer'", '3', 'a label is a text, got 3'),
    ("'a layer'", "'a--b'\n[[row]]\nlabel='a b'", 'a row needs its scheme'),
    ('model.num_layers = 1', 'model.sharing.norm = "none"', 'a row says what'),
    ('model.num_layers = 1', 'train.seed = 1', 'train.seed is for all rows'),
    ('num_layers = 1', 'num_layer = 1', "did you mean 'model.num_layers'?"),
    (
      'num_layers = 1',
      'num_layers = 1.5',
      'model.num_layers is a int, got 1.5',
    ),
    ('model.num_layers = 1\nmodel.d_model', 'model', 'model is a group of'),
    ('d_model = 8', 'd_model = 9', "row 'a layer': model.d_model must be"),
    (
      "'all'\n",
      "'@universal'\nmodel.step_signal = 'none'\n",
      "by @universal, and 'none' by the row",
    ),
  ],
)
def test_a_sweep_file_that_is_wrong(fields, tmp_path, capsys, old, new, rule):
  path = sweep_in(tmp_path, fields, ROWS.replace(old, new))
  folder = tmp_path / 'sweep'
  assert main(['compare', f'--sweep={path}', f'--workdir={folder}']) == 2
  line = capsys.readouterr().err
  assert rule in line and line.count('\n') == 1, line
  assert not folder.exists()


@pytest.mark.parametrize(
  ('words', 'rule'),
  [
    (['--sweep=none.toml'], 'there is no sweep file none.toml'),
    ([], 'has no sweep yet, so one of these is required: --sweep, --config'),
    (['--config=x.py'], '--config needs --sharing beside it'),
    (['--sharing=all'], '--sharing needs --config beside it'),
    (['--config=x.py', '--sweep=y'], 'a sweep file says its own config'),
    (['--sweep=x', '--tune=1,x'], 'argument --tune: invalid list of numbers'),
  ],
)
def test_flags_that_say_no_sweep(tmp_path, capsys, words, rule):
  folder = tmp_path / 'sweep'
  assert main(['compare', *words, f'--workdir={folder}']) == 2
  line = capsys.readouterr().err
  assert rule in line and line.count('\n') == 1, line
  assert not folder.exists()


@pytest.mark.parametrize(
  'content', ['', '[]', '{"solved": {}}', '{"solved": {"a": 3}, "rows": []}']
)
def test_a_sweep_that_cannot_be_read(tmp_path, content):
  (tmp_path / 'sweep.json').write_text(content)
  with pytest.raises(BadInput, match=r'sweep\.json is not a sweep: '):
    compare.compare(workdir=tmp_path)


@pytest.mark.parametrize(
  ('schemes', 'rule'),
  [
    (['none', 'all', 'none'], 'the scheme none is given twice'),
    (['0,0,0'], 'the table 0,0,0 has 3 entries for 2 layers'),
    (['none', ' '], 'an empty sharing scheme'),
    (['norm=cycle:1', 'norm=cycle:01'], 'norm=cycle:1 is given twice'),
    (['none', 'cycle:3'], 'cycle:3 needs num_layers divisible by 3, got 2'),
    (
      ['none', 'cyle:2'],
      "unknown sharing scheme 'cyle'; did you mean 'cycle'?",
    ),
    (['none', 'norms=all'], "unknown component 'norms'; did you mean 'norm'?"),
    (['none', '@albrt'], "unknown preset 'albrt'; did you mean 'albert'?"),
    (['@albert:2', '@albert: 2'], 'the scheme @albert:2 is given twice'),
    (['none', '@mlkv:3'], 'mlkv needs num_layers divisible by 3, got'),
    (
      ['none', '@one_wide_ffn'],
      "@one_wide_ffn is for model.family 'encoder_decoder', got 'decoder'",
    ),
    ([], 'there is no scheme to compare'),
  ],
)
def test_one_bad_scheme_stops_all(fields, tmp_path, schemes, rule):
  with pytest.raises(BadInput) as error:
    compare.compare(fields, schemes, 1, tmp_path / 'sweep')
  assert rule in str(error.value)
  assert not (tmp_path / 'sweep').exists()


@pytest.mark.slow
def test_a_folder_of_another_config_is_refused(whole, fields):
  workdir, _ = whole
  before = times(workdir)
  other = with_fields(fields, 'train', batch_size=8)
  with pytest.raises(BadInput, match=r'train\.batch_size \(4 there, 8 given\)'):
    compare.compare(other, ['all', 'none'], 1, workdir)
  assert times(workdir) == before
  assert not (workdir / 'runs' / 'all').exists()
