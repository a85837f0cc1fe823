"""Claims of experiments/: what they run, their verdicts, and their pages."""

import csv
import dataclasses
import math

import pytest

from experiments import claims, measure, overview
from shared_tfm import config as configs
from shared_tfm import config_file
from shared_tfm.errors import BadInput
from shared_tfm.report import compare, results_file
from shared_tfm.report import sweep as sweeps
from shared_tfm.report.results_file import Result

CLAIMS = claims.names()


def result(label, seed, loss, **scores):
  return Result(label, seed, 1, 1, 1, 1.0, 1, 0.0, loss, 1, 1, 1.0, 1, scores)


@pytest.mark.parametrize('name', CLAIMS)
def test_every_row_of_every_form_can_be_run(name):
  """Configs are crossed with all their checks."""
  claim = claims.read(name)
  assert {*claim.sweeps} >= {'cpu', 'gpu'}
  for form, sweep in claim.sweeps.items():
    crossed = sweeps.crossed(sweep)
    for row in claim.derived(form):
      config = crossed[row.of]
      if not row.converts:
        config = config_file.changed(config, row.flags)
        if row.loops:
          configs.with_loops(config, row.loops)


@pytest.mark.parametrize('name', CLAIMS)
def test_what_was_measured_has_every_row(name):
  claim = claims.read(name)
  for form, results in overview.measured(claim).items():
    assert list(results_file.schemes(results)) == claim.labels(form)
    seeds = {row.seed for row in results}
    assert len(results) == len(seeds) * len(claim.labels(form))
    assert len(seeds) == claim.sweeps[form].seeds


def test_pages_are_up_to_date(monkeypatch):
  """After a measurement: python -m experiments.overview."""
  made = {}
  monkeypatch.setattr(
    overview.files, 'replace', lambda path, text: made.update({path: text})
  )
  overview.write()
  assert len(made) == len(CLAIMS) + 1
  for path, text in made.items():
    assert path.read_text() == text


SAYS = claims.Says('they', 'a is better', 'a', 'b', 0.0, (), 'loss', False)


def verdict(lost, results=None, **fields):
  """Of row b, which loses this much against a, from seed to seed."""
  says = dataclasses.replace(SAYS, metric='validation_loss', **fields)
  claim = claims.Claim(claims.HERE, '', '', (says,), {})
  results = results or [
    result(label, seed, 2.0 + seed + more * (label == 'b'))
    for seed, more in enumerate(lost)
    for label in 'ab'
  ]
  return next(claims.verdicts(claim, results))


SURE = [0.1, 0.12, 0.11, 0.1, 0.12]


@pytest.mark.parametrize(
  ('lost', 'within', 'word'),
  [
    (SURE, 0.0, 'reproduced'),
    ([-x for x in SURE], 0.0, 'not reproduced'),
    ([-x for x in SURE], 0.2, 'reproduced'),  # as good, within 0.2
    ([-x for x in SURE], 0.05, 'not reproduced'),
    ([0.3, -0.3, 0.2, -0.2, 0.1], 0.0, 'not decidable'),
    ([0.3, -0.3, 0.2, -0.2, 0.1], 0.1, 'not decidable'),
  ],
)
def test_verdicts(lost, within, word):
  """Seeds differ by 1, and pairs by little: it is pairs that are compared."""
  found = verdict(lost, within=within)
  assert found.word == word
  assert found.low <= found.difference <= found.high
  assert found.difference == pytest.approx(sum(lost) / len(lost))


def test_what_may_be_lost_is_said():
  lost = [-x for x in SURE]
  assert overview._by(verdict(lost, within=0.2)).endswith('], -0.2 allowed')
  assert overview._by(verdict(lost)).endswith(']')


def test_more_may_be_better():
  results = [
    result(label, seed, 0.0, accuracy=0.5 + 0.1 * (label == 'a') + seed / 99)
    for seed in range(5)
    for label in 'ab'
  ]
  says = dataclasses.replace(SAYS, metric='accuracy', higher=True)
  claim = claims.Claim(claims.HERE, '', '', (says,), {})
  found = next(claims.verdicts(claim, results))
  assert found.word == 'reproduced'
  assert found.difference == pytest.approx(0.1)


def test_a_row_that_was_not_measured():
  with pytest.raises(BadInput, match='was not measured with the row b'):
    verdict([], [result('a', seed, 1.0) for seed in range(5)])


def test_what_was_lost_since():
  """b lost 0.1 more since its start than a since its own."""
  start = {'a': 1.0, 'b': 3.0, 'a0': 0.5, 'b0': 2.4}
  results = [
    result(label, seed, value + seed)
    for seed in range(5)
    for label, value in start.items()
  ]
  found = verdict([], results, less=('a0', 'b0'))
  assert found.difference == pytest.approx(0.1)
  assert found.word == 'reproduced'


CLAIM = """
question = 'Which?'
metric = 'validation_loss'
[[says]]
who = 'They'
claim = 'all is better'
better = 'all'
than = 'none, int8'
[[read]]
of = ['all']
label = '{of}, 5 loops'
loops = 5
[[convert]]
label = 'none, int8'
of = 'none'
flags = ['--quantise=int8']
"""
SWEEP = """
config = 'configs/quickstart.py'
seeds = 2
train.num_steps = 2
train.eval_every = 2
train.eval_batches = 2
train.batch_size = 2
optimizer.warmup_steps = 0
model.num_layers = 2
model.d_model = 16
data.max_bytes = 20000
[[row]]
sharing = 'none'
[[row]]
sharing = 'all'
model.num_layers = 3
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
  """A claim of its own, in a folder of its own."""
  monkeypatch.setattr(claims, 'HERE', tmp_path)

  def write(text=CLAIM):
    folder = tmp_path / 'mine'
    folder.mkdir(exist_ok=True)
    (folder / 'claim.toml').write_text(text)
    (folder / 'cpu.toml').write_text(SWEEP)
    return claims.read('mine')

  return write


@pytest.mark.slow
def test_a_claim_is_measured(written, tmp_path):
  claim = written()
  found = measure.measure(claim, 'cpu', 1, tmp_path / 'runs')
  labels = ['none', 'all', 'all, 5 loops', 'none, int8']
  assert [r.scheme for r in found] == [x for x in labels for _ in range(2)]
  loss = {(r.scheme, r.seed): r.validation_loss for r in found}
  assert len(set(loss.values())) == 8
  assert loss['none, int8', 0] == pytest.approx(loss['none', 0], abs=0.01)
  flops = {r.scheme: r.flops_per_token for r in found}
  assert flops['all, 5 loops'] > flops['all'] > flops['none']
  results_file.write(claim.folder / 'cpu.csv', found)
  again = measure.measure(claim, 'cpu', 1, tmp_path / 'runs')
  assert again == found  # nothing is trained anew
  page = overview.put(_page(claim), overview.lines_of(claim))
  table = [line for line in page.splitlines() if line.startswith('| ')]
  assert len(table) == 1 + len(labels)
  with (claim.folder / 'cpu.csv').open() as file:
    assert len(list(csv.reader(file))) == 1 + 8


@pytest.mark.slow
def test_what_diverged_makes_no_verdict_and_ends_nothing(written, tmp_path):
  claim = written()
  measure.measure(claim, 'cpu', 1, tmp_path / 'runs')
  folder = tmp_path / 'runs' / 'mine-cpu'
  (folder / 'runs' / 'none' / 'seed-1' / 'result.json').unlink()
  found = [*measure._derived(claim.derived('cpu'), [0, 1], folder)]
  lost = {(r.scheme, r.seed) for r in found if math.isnan(r.validation_loss)}
  assert lost == {('none, int8', 1)}
  assert math.isnan(claims.value(found[-1], 'bits_per_byte'))
  lines = overview.lines_of(claim)
  assert lines == ['Not run yet.']
  trained = compare.compare(workdir=folder)
  results_file.write(claim.folder / 'cpu.csv', [*trained, *found])
  sentence = overview.lines_of(claim)[-3]
  assert sentence.startswith('* They: all is better. **not decidable** (+nan')


@pytest.mark.slow
def test_a_conversion_is_the_one_that_is_asked_for(written, tmp_path):
  measure.measure(written(), 'cpu', 1, tmp_path / 'runs')
  changed = written(CLAIM.replace('=int8', '=int4'))
  with pytest.raises(BadInput, match=r'by --quantise=int8, not by .*int4'):
    measure.measure(changed, 'cpu', 1, tmp_path / 'runs')


def test_what_is_tuned_is_tuned_by_its_size(written):
  tuned = "[tuned]\ncpu = ['--a']\ngpu = ['--b']\n[[says]]"
  claim = written(
    CLAIM.replace('[[says]]', tuned).replace(
      "of = 'none'", "of = 'none'\ntune = true"
    )
  )
  flags = [claim.derived(size)[-1].flags for size in ('cpu', 'gpu')]
  assert flags == [
    ('--quantise=int8', '--tune', '--a'),
    ('--quantise=int8', '--tune', '--b'),
  ]


def _page(claim):
  page = claim.folder / 'README.md'
  page.write_text(f'# Mine\n{overview.BEGIN}\nold\n{overview.END}\nrest\n')
  return page


def test_a_page_keeps_what_stands_around_the_marks(written):
  made = overview.put(_page(written()), ['new'])
  assert made == f'# Mine\n{overview.BEGIN}\n\nnew\n\n{overview.END}\nrest\n'


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  [
    ("label = 'none, int8'", "label = 'all'", 'the row all is there twice'),
    ("than = 'none, int8'", "than = 'int8'", 'there is no row int8'),
    ("of = 'none'", "of = 'nobody'", 'made of nobody, which is not trained'),
    ('[[says]]', '[[says', 'claim.toml: '),
    ("question = 'Which?'", '', "claim.toml: there is no 'question'"),
    ("metric = 'v", "equal = ['size']\nmetric = 'v", "unknown --equal 'size'"),
  ],
)
def test_bad_claims(written, old, new, message):
  with pytest.raises(BadInput, match=message.replace('.', r'\.')):
    written(CLAIM.replace(old, new))


def test_forms_with_other_budgets(written):
  claim = written(
    CLAIM.replace('[[says]]', "equal = ['params', 'flops']\n[[says]]")
  )
  assert [*claim.sweeps] == ['cpu', 'cpu-params', 'cpu-flops']
  assert [each.equal for each in claim.sweeps.values()] == [
    'steps',
    'params',
    'flops',
  ]
  assert claim.labels('cpu-flops') == claim.labels('cpu')


def test_an_unknown_claim():
  with pytest.raises(BadInput, match='there is no claim nothing; albert_depth'):
    claims.read('nothing')
