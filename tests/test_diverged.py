"""Numbers that blow up: what is dropped, and when a run gives up."""

import math
import random
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import (
  STEPS,
  WORDS,
  Bar,
  assert_same_run,
  checkpoints,
  cut,
  fields,
  kill,
  lines,
  tiny,
)
from test_step import assert_same, batch, crossed, halves, poisoned, walk

from shared_tfm.__main__ import main
from shared_tfm.data import Dataset
from shared_tfm.errors import Diverged
from shared_tfm.report import compare, results_file
from shared_tfm.train import gradient, log, loop
from shared_tfm.train import state as states
from shared_tfm.train import step as steps

TRAIN = Dataset.train

# Steps. That a bad batch changes nothing but the counts is in test_step.py.


@pytest.mark.slow
def test_dropped_micro_batches_are_counted_in_a_row():
  made, good, bad = crossed(train__accumulate=2), batch(0), poisoned(1, np.nan)
  read = [good, halves(good, bad), halves(bad, bad), halves(bad, good), good]
  read[2] = jax.tree.map(lambda a: jnp.concatenate([a[:4], a[:4]]), bad)
  states, metrics = walk(made, [*read, halves(bad, good)])
  assert [int(state.streak) for state in states] == [0, 1, 3, 0, 0, 0]
  assert [m['streak'] for m in metrics] == [0, 1, 3, 4, 0, 1]  # the longest
  assert [m['skipped'] for m in metrics] == [0, 1, 3, 4, 4, 5]


@jax.custom_vjp
def spoilt(total, bad):
  """The same number, whose gradient is NaN where it is `bad`."""
  return total


spoilt.defvjp(
  lambda total, bad: (total, bad),
  lambda bad, grad: (jnp.where(bad, jnp.nan, grad), None),
)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_dropped(monkeypatch):
  """Though the loss is; the batch to be spoilt begins with two zeros."""

  def losses(*given):
    measured = steps_losses(*given)

    def changed(model, read):
      total, sums, seen = measured(model, read)
      return spoilt(total, jnp.all(read['inputs'][0, :2] == 0)), sums, seen

    return changed

  steps_losses = gradient.losses
  monkeypatch.setattr(gradient, 'losses', losses)
  run = jax.jit(steps.train_step(crossed()))
  state = states.initial(crossed(), jnp.uint32(0))
  bad = batch(1)
  bad['inputs'] = bad['inputs'].at[0, :2].set(0)
  before, good = run(state, batch(0))
  after, measured = run(before, bad)
  assert np.isfinite(measured['loss']) and np.isnan(measured['grad_norm'])
  assert (good['skipped'], measured['skipped'], after.streak) == (0, 1, 1)
  assert_same(after.params, before.params)
  assert_same(after.opt_state, before.opt_state)


# Runs.


class Spoilt:
  """Batches to train on, those of some steps with a weight that is NaN."""

  def __init__(self, batches, steps):
    self.batches, self.steps, self.read = batches, steps, 0

  def __next__(self):
    read, self.read = next(self.batches), self.read + 1
    if self.read in self.steps:
      read = {**read, 'weights': read['weights'] * np.float32(np.nan)}
    return read

  def get_state(self):
    return {'read': self.read, 'batches': self.batches.get_state()}

  def set_state(self, state):
    self.read = state['read']
    self.batches.set_state(state['batches'])


def spoil(monkeypatch, steps, seeds=(0,)):
  """From now on these steps of runs from these seeds read a NaN."""
  monkeypatch.setattr(
    Dataset,
    'train',
    lambda self, seed: Spoilt(
      TRAIN(self, seed), steps if seed in seeds else ()
    ),
  )


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp('data') / 'text.txt'
  path.write_text(' '.join(random.Random(0).choices(WORDS.split(), k=3000)))
  return path


GIVEN = {
  'num_steps': STEPS,
  'batch_size': 4,
  'eval_every': 4,
  'eval_batches': 2,
  'checkpoint_every': 4,
  'log_every': 3,
  'keep': 5,
  'max_skipped': 3,
}


@pytest.mark.slow
def test_after_so_many_in_a_row_a_run_stops(text, tmp_path, monkeypatch):
  """Its last good checkpoint is kept; on good data it goes on from there."""
  made = tiny(text, train=GIVEN)
  said = (
    '3 micro-batches in a row had no finite gradient, by step 9'
    ' (train.max_skipped); the checkpoint of step 4 was saved before'
  )
  spoil(monkeypatch, {7, 8, 9})  # of which 8 is one to be saved
  for bar in (None, None, Bar(9, kill(signal.SIGTERM))):
    with pytest.raises(Diverged) as error:
      loop.train(made, tmp_path / 'run', bar=bar)
    assert (str(error.value), error.value.step) == (said, 9)
    assert checkpoints(tmp_path / 'run') == [4]
  last = log.read(tmp_path / 'run')[-1]
  assert (last['step'], last['skipped'], last['loss']) == (9, 3, None)
  assert not (tmp_path / 'run' / 'result.json').exists()

  spoil(monkeypatch, ())
  result = loop.train(made, tmp_path / 'run')
  expected = loop.train(made, tmp_path / 'straight')
  assert result['skipped'] == 0
  assert_same_run(tmp_path / 'run', result, (tmp_path / 'straight', expected))


def test_a_shorter_streak_only_delays_a_checkpoint(text, tmp_path, monkeypatch):
  """A signal saves in the midst of it, and what resumes goes on counting."""
  made = tiny(text, train=GIVEN)
  spoil(monkeypatch, {4, 8, 9, 12})
  expected = loop.train(made, tmp_path / 'straight')
  assert expected['skipped'] == 4
  assert checkpoints(tmp_path / 'straight') == [5, 10, 12]
  assert loop.load(tmp_path / 'straight', 'latest')[1].streak == 1

  cut(made, tmp_path / 'cut', at=8)
  assert checkpoints(tmp_path / 'cut') == [5, 8]
  assert loop.load(tmp_path / 'cut', 'latest')[1].streak == 1
  result = loop.train(made, tmp_path / 'cut')
  assert_same_run(tmp_path / 'cut', result, (tmp_path / 'straight', expected))


@pytest.mark.slow
def test_a_streak_is_counted_across_a_signal(text, tmp_path, monkeypatch):
  made = tiny(text, train=GIVEN)
  spoil(monkeypatch, {7, 8, 9})
  cut(made, tmp_path, at=8)
  with pytest.raises(Diverged, match='3 micro-batches in a row'):
    loop.train(made, tmp_path)


@pytest.mark.slow
def test_where_there_is_no_limit_a_run_goes_on(text, tmp_path, monkeypatch):
  made = tiny(text, train=GIVEN | {'max_skipped': 0})
  spoil(monkeypatch, range(5, STEPS + 1))
  whole = tmp_path / 'whole'
  assert loop.train(made, whole)['skipped'] == 8
  assert checkpoints(whole) == [4, 12]
  cut(made, tmp_path / 'cut', at=4)
  early, late = (loop.load(at, 'latest')[1] for at in (tmp_path / 'cut', whole))
  assert (early.step, late.step) == (4, STEPS)
  assert_same(early.params, late.params)


def test_the_verb_says_so_in_a_line(text, tmp_path, monkeypatch, capsys):
  given = fields(text, train=GIVEN)
  (tmp_path / 'config.py').write_text(
    f'def get_config():\n  return {given!r}\n'
  )
  spoil(monkeypatch, {1, 2, 3})
  words = f'--config={tmp_path / "config.py"}', f'--workdir={tmp_path / "run"}'
  assert main(['train', *words]) == 3
  out, err = capsys.readouterr()
  assert not out and err.splitlines()[-1] == (
    'diverged: 3 micro-batches in a row had no finite gradient, by step 3'
    ' (train.max_skipped); no checkpoint was saved before'
  )


@pytest.mark.slow
def test_a_run_that_diverges_ends_no_other(text, tmp_path, monkeypatch, caplog):
  given = fields(text, train=GIVEN | {'num_steps': 6})
  spoil(monkeypatch, {2, 3, 4}, seeds=(0,))
  lost, good = compare.compare(given, ['none'], 2, tmp_path)
  assert 'none seed 0 diverged: 3 micro-batches in a row' in caplog.text
  assert math.isnan(lost.validation_loss) and math.isnan(lost.train_loss)
  assert (lost.steps, lost.tokens) == (
    4,
    3 * 4 * 16,
  )  # tokens: when last logged
  assert lost.peak_memory_bytes == good.peak_memory_bytes
  assert math.isfinite(good.validation_loss) and good.steps == 6
  assert str(results_file.read(tmp_path / 'results.csv')) == str([lost, good])
  assert ' nan ' in (tmp_path / 'summary.md').read_text()
  assert (tmp_path / 'report.html').exists()

  spoil(monkeypatch, ())
  first, again = compare.compare(given, ['none'], 2, tmp_path)
  assert math.isfinite(first.validation_loss) and first.steps == 6
  assert again == good


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_in_float16_that_is_cut_goes_on(
  text, tmp_path, monkeypatch, count
):
  """The scale, and what it counts, is where it was."""
  train = {'accumulate': count, 'loss_scale': 2**26, 'loss_scale_every': 3}
  train = GIVEN | train | {'max_skipped': 100, 'num_steps': 20}
  made = tiny(text, model={'dtype': 'float16', 'dropout': 0.2}, train=train)
  spoil(monkeypatch, {13})
  expected = loop.train(made, tmp_path / 'straight')
  assert count < expected['skipped'] < 15 * count
  found = {line.get('loss_scale') for line in lines(tmp_path / 'straight')}
  assert len(found) > 3

  for at in (3, 14):
    cut(made, tmp_path / 'cut', at)
  state = loop.load(tmp_path / 'cut', 'latest')[1]
  assert state.scale.value < 2**26
  result = loop.train(made, tmp_path / 'cut')
  assert_same_run(tmp_path / 'cut', result, (tmp_path / 'straight', expected))
