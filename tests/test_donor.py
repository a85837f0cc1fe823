"""Fine-tuning: a run that starts from the weights of another."""

import dataclasses
import io
import os
import random
import shutil
import signal

import jax
import numpy as np
import pytest
import tqdm

from shared_tfm import config, tasks
from shared_tfm.errors import BadInput, Interrupted
from shared_tfm.model import build
from shared_tfm.report import sweep, trained, tuning
from shared_tfm.train import donor, log, loop, programs

WORDS = ['alpha', 'beta', 'gamma', 'delta', 'row', 'bank', 'reads', 'a', 'the']
MODEL = {
  'family': 'encoder',
  'num_layers': 4,
  'd_model': 16,
  'num_heads': 2,
  'max_len': 24,
  'vocab_size': 290,
  'type_vocab_size': 2,
  'sharing': {'layer': 'cycle:2'},
}
TRAIN = {
  'num_steps': 6,
  'batch_size': 4,
  'eval_every': 2,
  'eval_batches': 2,
  'checkpoint_every': 2,
  'log_every': 1,
}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """Text, labelled sentences, and a run that was pre-trained on the text."""
  home, draw = tmp_path_factory.mktemp('home'), random.Random(0)

  def sentence():
    return ' '.join(draw.choices(WORDS, k=draw.randint(4, 8))) + '.'

  (home / 'text.txt').write_text(' '.join(sentence() for _ in range(300)))
  (home / 'SST-2').mkdir()
  for name in ('train', 'dev'):
    lines = [
      f'{(text := sentence())}\t{int("bank" in text)}' for _ in range(40)
    ]
    content = '\n'.join(['sentence\tlabel', *lines, ''])
    (home / 'SST-2' / f'{name}.tsv').write_text(content)
  loop.train(pretrain(home), home / 'pretrained')
  return home


def pretrain(home, **groups):
  fields = {
    'model': MODEL,
    'train': TRAIN,
    # The loss is at its best when it is first measured.
    'optimizer': {'learning_rate': 3.0, 'schedule': 'constant'},
    'task': {'name': 'masked_lm', 'sentence_order': True},
    'data': {
      'source': 'text',
      'path': str(home / 'text.txt'),
      'tokenizer': 'bpe',
    },
  }
  return config.cross(
    {name: fields[name] | groups.get(name, {}) for name in fields}
  )


def finetune(home, name='pretrained', **groups):
  given = {
    'model': {'num_classes': 2, **groups.get('model', {})},
    'train': {'init_from': str(home / name), **groups.get('train', {})},
    'optimizer': {'learning_rate': 1e-3},
    'task': {'name': 'classification', 'sentence_order': False},
    'data': {
      'source': 'glue:sst2',
      'path': str(home),
      **groups.get('data', {}),
    },
  }
  return pretrain(home, **given)


def started(made, folder):
  """The state that a run starts from, and what is said of it."""
  tasks.prepare(made, folder)
  return donor.start(made, programs.programs(made).init(np.uint32(7)))


def assert_same(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


class Bar(tqdm.tqdm):
  """A progress bar at whose step 5 the run is told to end."""

  def __init__(self):
    super().__init__(file=io.StringIO())

  def update(self, n=1):
    super().update(n)
    if self.n == 5:
      os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_the_best_weights_are_taken_and_a_classifier_is_fresh(
  home, tmp_path, caplog
):
  made = finetune(home)
  state, told = started(made, tmp_path)
  best = loop.load(home / 'pretrained', 'best')[1]
  latest = loop.load(home / 'pretrained', 'latest')[1]
  assert int(best.step) == told['donor_step'] < int(latest.step)
  for name in ('embedding', 'stack', 'norm'):
    assert_same(state.params[name], best.params[name])
  assert_same(state.params['classes']['pool'], best.params['classes']['pool'])
  fresh = programs.programs(made).init(np.uint32(7)).params
  assert_same(state.params['classes']['score'], fresh['classes']['score'])
  assert told['taken'] == ['classes.pool', 'embedding', 'norm', 'stack']
  assert told['fresh'] == ['classes.score']
  kept = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  assert told['taken_params'] == kept - 2 * 16 - 2
  assert caplog.messages == [
    f'starts from step {told["donor_step"]} of {home / "pretrained"}: taken'
    ' over classes.pool, embedding, norm, stack; fresh classes.score; left'
    ' there classes.score, head.bias, head.norm, head.project'
  ]
  own, others = (
    tmp_path / 'tokenizer.json',
    home / 'pretrained/tokenizer.json',
  )
  assert own.read_bytes() == others.read_bytes()

  # So it encodes a text as the donor does.
  batch = next(tasks.prepare(made, tmp_path).train(0))
  arguments = tasks.arguments(batch)
  encoded = [
    build(c).apply({'params': p}, **arguments, method='hidden')
    for c, p in (
      (made, state.params),
      (loop.load(home / 'pretrained')[0], best.params),
      (made, fresh),
    )
  ]
  np.testing.assert_array_equal(encoded[0], encoded[1])
  assert np.abs(encoded[0] - encoded[2]).max() > 0.1


@pytest.mark.slow
def test_the_same_task_goes_on_with_the_same_loss(home, tmp_path):
  made = pretrain(
    home, train={'init_from': str(home / 'pretrained'), 'num_steps': 1}
  )
  loop.train(made, tmp_path)
  (first,) = (x for x in log.read(tmp_path) if x['kind'] == 'train')
  (start,) = (x for x in log.read(tmp_path) if x['kind'] == 'start')
  assert start['fresh'] == start['left'] == []
  best = loop.load(home / 'pretrained', 'best')[1]
  compiled = programs.programs(made)
  batch = next(tasks.prepare(made, tmp_path).train(0))
  state = compiled.init(np.uint32(0)).replace(params=best.params)
  _, metrics = compiled.train(state, jax.device_put(batch))
  assert first['loss'] == float(metrics['loss'])
  assert first['order_loss'] == float(metrics['order_loss'])
  other = compiled.init(np.uint32(0))
  assert first['loss'] != float(
    compiled.train(other, jax.device_put(batch))[1]['loss']
  )


@pytest.mark.slow
def test_a_fine_tuned_run_resumes_bit_for_bit(home, tmp_path):
  shutil.copytree(home / 'pretrained', tmp_path / 'donor')
  made = finetune(tmp_path, 'donor', data={'path': str(home)})
  whole = loop.train(made, tmp_path / 'whole')
  with pytest.raises(Interrupted):
    loop.train(made, tmp_path / 'cut', bar=Bar())
  shutil.rmtree(tmp_path / 'donor')  # which is not needed any more
  result = loop.train(made, tmp_path / 'cut')
  left, right = (loop.load(tmp_path / n, 'latest')[1] for n in ('whole', 'cut'))
  assert_same(left, right)
  clocks = ('tokens_per_second', 'time')
  lines = [
    [{k: v for k, v in x.items() if k not in clocks} for x in log.read(folder)]
    for folder in (tmp_path / 'whole', tmp_path / 'cut')
  ]
  assert lines[0] == lines[1] and lines[0][0]['kind'] == 'start'
  assert result['validation_loss'] == whole['validation_loss']


@pytest.mark.slow
@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    (
      {'model': {'max_len': 32}},
      'has embedding.position.embedding of shape (24, 16), and this run'
      ' (32, 16)',
    ),
    (
      {'model': {'sharing': {'layer': 'sequence:2'}}},
      'shares attention as 0 1 0 1, and this run as 0 0 1 1',
    ),
    ({'model': {'sharing': {'layer': 'none'}}}, 'shares attention as 0 1 0 1'),
    ({'model': {'num_heads': 4}}, 'has model.num_heads 2, and this run 4'),
    (
      {'model': {'embed_scale': 'width'}},
      "has model.embed_scale 'none', and this run 'width'",
    ),
    (
      {'model': {'positions_at': 'every_layer'}},
      "has model.positions_at 'input', and this run 'every_layer'",
    ),
    (
      {'model': {'step_signal': 'sinusoidal'}},
      "has model.step_signal 'none', and this run 'sinusoidal'",
    ),
    (
      {'model': {'sharing': {'layer': 'cycle:2', 'map_source': 'all'}}},
      "has model.sharing.map_source '', and this run 'all'",
    ),
    (
      {'data': {'tokenizer': 'bytes'}},
      "has data.tokenizer 'bpe', and this run 'bytes'",
    ),
    (
      {'train': {'init_from': 'nowhere'}},
      'nowhere is no run: it has no config.json',
    ),
  ],
)
def test_weights_that_do_not_fit(home, tmp_path, fields, said):
  made = finetune(home, **fields)
  with pytest.raises(BadInput) as error:
    loop.train(made, tmp_path / 'run')
  assert said in str(error.value) and '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_more_visits_of_the_same_rows_fit(home):
  deeper = finetune(home, model={'num_layers': 8})
  names = donor._matched(deeper, loop.load(home / 'pretrained')[0])
  assert any(name[1] == 'stack' for name in names)


@pytest.mark.slow
def test_more_visits_add_what_the_donors_did(home):
  pretrained = loop.load(home / 'pretrained')[0]
  model = dataclasses.replace(pretrained.model, residual_scale='depth')
  scaled = dataclasses.replace(pretrained, model=model)
  deeper = {'num_layers': 8, 'residual_scale': 'depth'}
  with pytest.raises(BadInput, match=r'or visits, 4, and this run 8'):
    donor._matched(finetune(home, model=deeper), scaled)
  deeper['residual_visits'] = 4
  assert donor._matched(finetune(home, model=deeper), scaled)


@pytest.mark.slow
def test_another_tokenizer_is_refused(home, tmp_path):
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(BadInput) as error:
    tasks.prepare(finetune(home), tmp_path)
  assert str(error.value) == (
    f'{tmp_path / "tokenizer.json"} is another tokenizer than'
    f' {home / "pretrained" / "tokenizer.json"}, which the weights are of'
  )


@pytest.mark.slow
def test_a_run_that_has_begun_has_its_own_tokenizer(home, tmp_path):
  donor = tmp_path / 'donor'
  shutil.copytree(home / 'pretrained', donor)
  given = {'train': {'init_from': str(donor)}}
  ours = tasks.prepare(finetune(home, **given), tmp_path / 'run').tokenizer
  (tmp_path / 'run' / 'config.json').write_text('{}')
  text = (donor / 'tokenizer.json').read_text()
  (donor / 'tokenizer.json').write_text(text + ' ')
  again = tasks.prepare(finetune(home, **given), tmp_path / 'run').tokenizer
  assert again.pieces == ours.pieces


@pytest.mark.slow
def test_a_sweep_starts_from_a_sweep(home, tmp_path):
  for run in ('all/seed-3', 'all/seed-4', 'cycle-2/seed-4', 'all/.hidden'):
    (tmp_path / 'before' / 'runs' / run).mkdir(parents=True)
  made = finetune(tmp_path, 'before', train={'seed': 3})
  asked = sweep.of(made, ['all', 'cycle:2'], seeds=3)
  crossed = sweep.crossed(asked)
  after = trained.runs_of(asked, crossed, tmp_path / 'after')
  found = [(run.scheme, run.seed, run.config.train.init_from) for run in after]
  runs = tmp_path / 'before' / 'runs'
  assert found == [
    ('all', 3, f'{runs}/all/seed-3'),
    ('all', 4, f'{runs}/all/seed-4'),
    ('all', 5, f'{runs}/all/seed-3'),  # the first, where there is none
    ('cycle:2', 3, f'{runs}/cycle-2/seed-4'),
    ('cycle:2', 4, f'{runs}/cycle-2/seed-4'),
    ('cycle:2', 5, f'{runs}/cycle-2/seed-4'),
  ]
  # So do the runs that choose its rates.
  asked = dataclasses.replace(asked, tune=[1])
  (tried,) = tuning.runs_of(asked, asked.rows[0], crossed['all'], tmp_path)
  assert tried.config.train.init_from == f'{runs}/all/seed-3'


@pytest.mark.slow
def test_runs_that_start_otherwise_share_their_programs(home):
  assert programs.programs(finetune(home)) is programs.programs(
    finetune(home, train={'init_from': '', 'seed': 3})
  )
