"""Labelled texts: what is read, what it costs, and how it is scored."""

import collections
import dataclasses
import functools
import gzip
import os
import pathlib
import warnings

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from shared_tfm import config, tasks
from shared_tfm.data import labelled_examples
from shared_tfm.data.sources import glue, labelled, trec
from shared_tfm.errors import BadInput
from shared_tfm.model import build
from shared_tfm.tasks.classification import measured
from shared_tfm.train import gradient
from shared_tfm.train import state as states

EOS = 256

# Files as they are distributed: two lines to train on, one of dev, one of test.
TSV = {
  'cola': [
    'gj04\t1\t\tOur friends "won\'t buy.\ngj04\t0\t*\tThey drank.\n',
    'gj04\t1\t\tThe sailors.\n',
    'index\tsentence\n0\tBill whistled.\n',
  ],
  'sst2': [
    'sentence\tlabel\nhide new \t0\na "joy \t1\n',
    "sentence\tlabel\nit 's charming . \t1\n",
    'index\tsentence\n0\tuneasy .\n',
  ],
  'mrpc': [
    '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n'
    '1\t7\t8\tHe said " no\tno " , he said\r\n0\t7\t8\tA .\tB .\r\n',
    'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tA .\tA !\n',
    'index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\tC .\tD .\n',
  ],
  'qqp': [
    'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n'
    '4\t1\t2\tHow?\tWhy?\t0\n5\t1\t2\tbroken\n6\t1\t2\tHow?\tHow so?\t1\n',
    'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n4\t1\t2\tA?\tB?\t1\n',
    'id\tquestion1\tquestion2\n0\tC?\tD?\n',
  ],
  'stsb': [
    'index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1'
    '\tsentence2\tscore\n0\tg\tf\t12\t1\tn\tn\tA plane.\tA jet.\t4.750\n'
    '1\tg\tf\t12\t1\tn\tn\tA man.\tA dog.\t0.5\n',
    'index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1'
    '\tsentence2\tscore\n0\tg\tf\t12\t1\tn\tn\tA.\tB.\t3\n',
    'index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1'
    '\tsentence2\n0\tg\tf\t12\t1\tn\tn\tC.\tD.\n',
  ],
  'mnli': [
    'index\tpromptID\tpairID\tgenre\tsentence1_binary_parse'
    '\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1'
    '\tsentence2\tlabel1\tgold_label\n'
    '0\t3\t3n\tg\t( a )\t( b )\t(R a)\t(R b)\tOne.\tTwo.\tneutral\tneutral\n'
    '1\t3\t3c\tg\t( a )\t( b )\t(R a)\t(R b)\tIn.\tOut.\tx\tcontradiction\n',
    'index\tpromptID\tpairID\tgenre\tsentence1_binary_parse'
    '\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1'
    '\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n'
    '0\t3\t3e\tg\tp\tp\tp\tp\tA.\tB.\tn\tn\tn\tn\tn\tentailment\n',
    'index\tpromptID\tpairID\tgenre\tsentence1_binary_parse'
    '\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1'
    '\tsentence2\n0\t3\t3e\tg\tp\tp\tp\tp\tC.\tD.\n',
  ],
  'qnli': [
    'index\tquestion\tsentence\tlabel\n0\tWhen?\tIn May.\tentailment\n'
    '1\tWho?\tIn May.\tnot_entailment\n',
    'index\tquestion\tsentence\tlabel\n0\tA?\tB.\tentailment\n',
    'index\tquestion\tsentence\n0\tC?\tD.\n',
  ],
  'rte': [
    'index\tsentence1\tsentence2\tlabel\n0\tNo arms.\tArms.\tnot_entailment\n'
    '1\tRed car.\tA car.\tentailment\n',
    'index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tentailment\n',
    'index\tsentence1\tsentence2\n7\tC.\tD.\n',
  ],
  'wnli': [
    'index\tsentence1\tsentence2\tlabel\n0\tHe hit it.\tIt hit.\t1\n'
    '1\tIt broke.\tHe broke.\t0\n',
    'index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\t1\n',
    'index\tsentence1\tsentence2\n0\tC.\tD.\n',
  ],
}
TRAIN = {  # what the two items to train on are
  'cola': [(('Our friends "won\'t buy.',), 1), (('They drank.',), 0)],
  'sst2': [(('hide new ',), 0), (('a "joy ',), 1)],
  'mrpc': [(('He said " no', 'no " , he said'), 1), (('A .', 'B .'), 0)],
  'qqp': [(('How?', 'Why?'), 0), (('How?', 'How so?'), 1)],
  'stsb': [(('A plane.', 'A jet.'), 4.75), (('A man.', 'A dog.'), 0.5)],
  'mnli': [(('One.', 'Two.'), 1), (('In.', 'Out.'), 2)],
  'qnli': [(('When?', 'In May.'), 0), (('Who?', 'In May.'), 1)],
  'rte': [(('No arms.', 'Arms.'), 1), (('Red car.', 'A car.'), 0)],
  'wnli': [(('He hit it.', 'It hit.'), 1), (('It broke.', 'He broke.'), 0)],
}
CLASSES = {'stsb': 1, 'mnli': 3}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """GLUE in little, some of it zipped, and TREC."""
  root = tmp_path_factory.mktemp('glue')
  for task, contents in TSV.items():
    home = root / glue.TASKS[task].folder
    home.mkdir()
    half = '_matched' if task == 'mnli' else ''
    names = 'train', f'dev{half}', f'test{half}'
    for name, content in zip(names, contents, strict=True):
      if task in ('cola', 'mrpc') and name == 'train':
        zipped = gzip.compress(content.encode())
        (home / f'{name}.tsv.gz').write_bytes(zipped)
      else:
        (home / f'{name}.tsv').write_bytes(content.encode())
  lines = [f'{label} What {i} ?'.encode() for i, label in enumerate(trec.FINE)]
  lines[3] = lines[3].replace(b'What', b'sister\xf0city')
  (root / 'train_5500.label').write_bytes(b'\n'.join(lines) + b'\n')
  (root / 'TREC_10.label').write_bytes(b'NUM:dist How far ?\n')
  return root


def opened(source, path, classes=2, **fields):
  data = config.Data(source=source, path=str(path), **fields)
  return labelled.open_set(data, classes)


def crossed(source, path, family='encoder', classes=2, length=24, **model):
  model = {
    'family': family,
    'num_layers': 2,
    'd_model': 16,
    'num_heads': 2,
    'max_len': length,
    'num_classes': classes,
    'pool': 'last' if family == 'decoder' else 'first',
    'sharing': {'layer': 'all'},
    **model,
  }
  return config.cross(
    {
      'model': model,
      'task': {'name': 'classification'},
      'train': {'batch_size': 2},
      'data': {'source': source, 'path': str(path)},
    }
  )


def initial(made):
  return jax.jit(functools.partial(states.initial, made))(np.uint32(0))


# Reading.


@pytest.mark.parametrize('task', TSV)
def test_files_as_they_are_distributed(folder, task):
  found = opened(f'glue:{task}', folder, CLASSES.get(task, 2))
  assert [item[:2] for item in found.read('train')] == TRAIN[task]
  (held_out,), (kept,) = found.read('validation'), found.read('test')
  assert held_out.label is not None and kept.label is None
  assert len(kept.texts) == len(held_out.texts) == len(TRAIN[task][0][0])


@pytest.mark.parametrize('count', [6, 50])
def test_trec(folder, count):
  found = opened('trec', folder, count)
  train, held_out = found.read('train'), found.read('validation')
  assert (len(train), len(held_out)) == (45, 5)
  labels = {item.texts[0]: item.label for item in [*train, *held_out]}
  assert labels['What 49 ?'] == count - 1 and labels['What 0 ?'] == 0
  assert labels['sister city 3 ?'] == (1 if count == 6 else 3)
  assert len({*labels.values()}) == count
  (item,) = found.read('test')
  assert found.classes[item.label] == ('NUM' if count == 6 else 'NUM:dist')


BAD = {
  'MRPC/train.tsv': [
    ('Quality\t#1 String\n1\ta\n', 'line 1: there is no column #2 String'),
    (
      'Quality\t#1 String\t#2 String\n1\ta\tb\n1\tcut',
      'line 3: needs 3 columns, got 2',
    ),
    (
      'Quality\t#1 String\t#2 String\n2\ta\tb\n',
      "line 2: the label must be 0 or 1, got '2'",
    ),
    ('Quality\t#1 String\t#2 String\n', 'holds no examples'),
    ('', 'line 1: there is no column #1 String'),
  ],
  'CoLA/train.tsv': [('a\t1\t\tb\nc\t1\n', 'line 2: needs 4 columns, got 2')],
  'STS-B/train.tsv': [
    (
      'sentence1\tsentence2\tscore\na\tb\thigh\n',
      "line 2: the score must be a number, got 'high'",
    )
  ],
  'train_5500.label': [
    ('NUM:dist How?\nNUM:far Is it?\n', "line 2: 'NUM:far' is no label"),
    ('NUM:dist\n', 'line 1: needs a label and a question'),
    ('', 'holds no questions'),
  ],
}
SOURCE = {
  'MRPC/train.tsv': ('glue:mrpc', 2),
  'CoLA/train.tsv': ('glue:cola', 2),
  'STS-B/train.tsv': ('glue:stsb', 1),
  'train_5500.label': ('trec', 6),
}


@pytest.mark.parametrize(
  ('name', 'content', 'said'),
  [(name, *case) for name, cases in BAD.items() for case in cases],
)
def test_a_file_that_is_wrong(tmp_path, name, content, said):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  path.write_text(content)
  source, classes = SOURCE[name]
  with pytest.raises(BadInput) as error:
    opened(source, tmp_path, classes).read('train')
  assert str(error.value).startswith(str(path)) and said in str(error.value)


@pytest.mark.parametrize(
  ('source', 'classes', 'split', 'said'),
  [
    ('glue:mrpc', 2, 'test', 'MRPC has no test.tsv; it holds dev.tsv'),
    ('glue:mnli', 3, 'train', 'has no folder MNLI'),
    (
      'glue:mprc',
      2,
      'train',
      "unknown task of GLUE 'mprc'; did you mean",
    ),
    ('glue:mrpc', 3, 'train', 'glue:mrpc needs model.num_classes 2, got 3'),
    ('glue:stsb', 2, 'train', 'glue:stsb needs model.num_classes 1, got 2'),
    ('trec', 5, 'train', 'model.num_classes must be one of them, got 5'),
    ('trec', 6, 'train', 'has no train_5500.label'),
    ('trec', 6, 'dev', 'trec has no dev split, but train and test'),
    ('local', 2, 'train', "unknown data.source of labelled texts 'local'"),
  ],
)
def test_what_is_not_there(tmp_path, source, classes, split, said):
  for name in ('MRPC', 'STS-B'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'dev.tsv').write_text(TSV['mrpc'][1])
  with pytest.raises(BadInput) as error:
    opened(source, tmp_path, classes).read(split)
  assert said in str(error.value)


class Glue(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Some tasks as TFDS has them, from files."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [  # noqa: RUF012
    tfds.core.BuilderConfig(name=name) for name in ('mrpc', 'stsb', 'mnli')
  ]
  files = ''

  def _info(self):
    task = self.builder_config.name
    fields = {key: tfds.features.Text() for key in glue.TASKS[task].fields}
    names = [f'class {i}' for i in range(CLASSES.get(task, 2))]
    fields['idx'] = np.int32
    fields['label'] = tfds.features.ClassLabel(names=names)
    if task == 'stsb':
      fields['label'] = np.float32
    features = tfds.features.FeaturesDict(fields)
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, _):
    splits = ['train', 'validation', 'test']
    if self.builder_config.name == 'mnli':
      splits = ['train', 'validation_matched', 'test_matched']
    return {split: self._generate_examples(split) for split in splits}

  def _generate_examples(self, split):
    task = self.builder_config.name
    for i, item in enumerate(glue.reader(task, self.files)(split)):
      texts = dict(zip(glue.TASKS[task].fields, item.texts, strict=True))
      label = -1 if item.label is None else item.label
      number = i if item.number is None else item.number
      yield i, {**texts, 'label': label, 'idx': number}


class Trec(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """TREC as TFDS has it, its classes in another order, and fine ones merged."""

  VERSION = tfds.core.Version('1.0.0')
  files = ''

  def _info(self):
    fine = sorted({name.partition(':')[2] for name in trec.FINE})
    fields = {
      'text': tfds.features.Text(),
      'label-coarse': tfds.features.ClassLabel(names=trec.COARSE[::-1]),
      'label-fine': tfds.features.ClassLabel(names=fine),
    }
    features = tfds.features.FeaturesDict(fields)
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, _):
    return {name: self._generate_examples(name) for name in trec.FILES}

  def _generate_examples(self, split):
    for i, item in enumerate(trec.reader(self.files, trec.FINE)(split)):
      coarse, _, fine = trec.FINE[item.label].partition(':')
      labels = {'label-coarse': coarse, 'label-fine': fine}
      yield i, {'text': item.texts[0], **labels}


@pytest.fixture(scope='module')
def prepared(folder, tmp_path_factory):
  """MRPC, STS-B, MNLI and TREC as TFDS prepares them, from the same files."""
  tfds.disable_progress_bar()
  home = tmp_path_factory.mktemp('tfds')
  Glue.files = Trec.files = str(folder)
  given = {'data_dir': home, 'file_format': 'array_record'}
  for task in Glue.BUILDER_CONFIGS:
    Glue(config=task.name, **given).download_and_prepare()
  Trec(**given).download_and_prepare()
  return home


@pytest.mark.parametrize('task', ['mrpc', 'stsb', 'mnli'])
def test_tfds_gives_what_the_files_give(folder, prepared, task):
  classes = CLASSES.get(task, 2)
  files = opened(f'glue:{task}', folder, classes)
  found = opened(f'tfds:glue/{task}', prepared, classes)
  assert found.classes == files.classes
  for split in ('train', 'validation', 'test'):
    texts_and_labels = [
      sorted(item[:2] for item in which.read(split)) for which in (found, files)
    ]
    assert texts_and_labels[0] == texts_and_labels[1]
  assert [*found.read('test')] == files.read('test')


def test_too_few_to_hold_any_out(tmp_path):
  lines = [f'NUM:dist How far {i} ?' for i in range(9)]
  (tmp_path / 'train_5500.label').write_text('\n'.join(lines))
  with pytest.raises(BadInput, match='9 items to train on are too few to hold'):
    opened('trec', tmp_path, 6).read('train')


def test_texts_that_are_cut_are_counted(folder, tmp_path, caplog):
  made = crossed('glue:cola', folder, length=20)
  tasks.prepare(made, tmp_path / 'short')
  assert '1 of 2 items to train on are cut to data.seq_len 20' in caplog.text
  caplog.clear()
  tasks.prepare(crossed('glue:cola', folder, length=40), tmp_path / 'long')
  assert not caplog.records


def test_a_number_has_no_smoothed_label(folder, tmp_path):
  made = crossed('glue:stsb', folder, classes=1)
  made = dataclasses.replace(
    made, task=config.Task(name='classification', label_smoothing=0.1)
  )
  with pytest.raises(BadInput, match=r'has no task\.label_smoothing, got 0\.1'):
    tasks.prepare(made, tmp_path)


@pytest.mark.parametrize('count', [6, 50])
def test_trec_by_tfds(folder, prepared, count):
  files = opened('trec', folder, count)
  found = opened('tfds:trec', prepared, count)
  assert found.classes == files.classes

  def both(which):
    return sorted([*which.read('train'), *which.read('validation')])

  assert both(found) == both(files)
  assert len(found.read('validation')) == 5
  assert [*found.read('test')] == files.read('test')


def test_any_set_of_tfds(prepared):
  fields = {'text_field': 'sentence1, sentence2'}
  (path,) = (prepared / 'glue' / 'mrpc').iterdir()
  other = prepared / 'my_pairs' / '1.0.0'
  other.parent.mkdir()
  other.symlink_to(path)
  found = opened('tfds:my_pairs', prepared, 2, **fields)
  assert found.classes == ('class 0', 'class 1')
  assert sorted(found.read('train')) == sorted(
    opened('tfds:glue/mrpc', prepared).read('train')
  )
  with pytest.raises(BadInput, match=r'no data\.text_field sentence3'):
    opened('tfds:my_pairs', prepared, 2, text_field='sentence3')
  with pytest.raises(BadInput, match=r'needs model\.num_classes 2, got 3'):
    opened('tfds:my_pairs', prepared, 3, **fields)
  number = opened('tfds:my_pairs', prepared, 2, text_field='sentence1,idx')
  with pytest.raises(BadInput, match=r'field idx of .*, not text'):
    number.read('train')
  fields['target_field'] = 'sentence2'
  text = opened('tfds:my_pairs', prepared, 2, **fields)
  with pytest.raises(BadInput, match=r'sentence2 of .* holds str'):
    text.read('train')


# What a network reads.


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 50))
def test_the_longer_text_is_shortened_first(first, second, room):
  kept = [first, second]
  while sum(kept) > room:
    kept[0 if kept[0] > kept[1] else 1] -= 1
  assert labelled_examples.truncated([first, second], room) == kept
  assert labelled_examples.truncated([first], room) == [min(first, room)]


def test_an_example(folder):
  made = crossed('glue:mrpc', folder, length=16, type_vocab_size=2)
  dataset = tasks.prepare(made, folder / 'run')
  long, short = (dataset.elements('train', 0)[i] for i in (0, 1))
  assert long['inputs'].tolist() == [EOS, *b'He said', EOS, *b'no " ,', EOS]
  assert long['types'].tolist() == [0] * 9 + [1] * 7 and long['mask'].all()
  assert short['inputs'].tolist() == [EOS, *b'A .', EOS, *b'B .'] + [EOS] * 8
  assert short['types'].tolist() == [0] * 5 + [1] * 4 + [0] * 7
  assert short['mask'].tolist() == [True] * 9 + [False] * 7
  assert [int(e['targets']) for e in (long, short)] == [1, 0]
  assert [float(e['weights']) for e in (long, short)] == [1, 1]
  assert [int(e['row']) for e in (long, short)] == [0, 1]
  assert float(dataset.elements('test', 0)[0]['weights']) == 0
  (shapes,) = tasks.make(made).batches()
  batch = next(dataset.validation(0))
  assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
    name: (s.shape, s.dtype) for name, s in shapes.items()
  }
  assert batch['row'].tolist() == [0, -1]


# What padding does: nothing.

KINDS = {
  'encoder': ('glue:mrpc', 2, {'type_vocab_size': 2}),
  'mean': ('glue:mrpc', 2, {'pool': 'mean', 'position': 'rotary'}),
  'number': ('glue:stsb', 1, {'norm_position': 'post'}),
  'decoder': ('glue:mrpc', 2, {'family': 'decoder'}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
  'kind',
  [
    'encoder',
    'decoder',
    pytest.param('mean', marks=pytest.mark.slow),
    pytest.param('number', marks=pytest.mark.slow),
  ],
)
def test_padding_does_not_leak(folder, tmp_path, kind):
  source, classes, fields = KINDS[kind]
  made = crossed(source, folder, classes=classes, length=32, **fields)
  dataset = tasks.prepare(made, tmp_path)
  examples = [dataset.elements('train', 0)[i] for i in (0, 1)]
  batch = {k: np.stack([e[k] for e in examples]) for k in examples[0]}
  assert not batch['mask'].all(axis=1).any()
  inputs = np.where(batch['mask'], batch['inputs'], 7)
  state = initial(made)
  model, losses = build(made), gradient.losses(tasks.make(made))

  def loss(params, batch):
    total, _, _ = model.apply({'params': params}, batch, method=losses)
    return total

  values = jax.jit(jax.value_and_grad(loss))
  left, right = (
    values(state.params, each) for each in (batch, {**batch, 'inputs': inputs})
  )
  jax.tree.map(np.testing.assert_array_equal, left, right)
  assert float(left[0]) > 0
  moved = right[1]['embedding']['token']['embedding']
  assert not moved[7].any() and moved[ord('A')].any()
  # A row that is nobody's is all padding, and harms nobody.
  blank = {k: np.stack([v[0], np.zeros_like(v[0])]) for k, v in batch.items()}
  alone = values(state.params, blank)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(alone))


# Scores.


def test_scores_by_hand():
  gold, told = np.array([1, 0, 1, 1]), np.array([1, 1, 0, 1])
  # Two hits, one false alarm, one miss, no other.
  found = measured(['accuracy', 'f1', 'matthews'], gold, told)
  assert found == pytest.approx(
    {'accuracy': 0.5, 'f1': 2 / 3, 'matthews': -1 / 3}
  )
  gold, told = np.array([1.0, 2.0, 3.0]), np.array([1.0, 30.0, 2.0])
  found = measured(['pearson', 'spearman'], gold, told)
  assert found['spearman'] == pytest.approx(0.5)
  deviations = np.array([-10, 19, -9])  # of what was told, from its mean
  expected = (-1 * -10 + 1 * -9) / (2 * (deviations**2).sum()) ** 0.5
  assert found['pearson'] == pytest.approx(expected)


@pytest.mark.parametrize('gold', [[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
@pytest.mark.parametrize('told', [0, 1])
def test_always_the_same_class_says_nothing(gold, told):
  gold, told = np.array(gold), np.full(4, told)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    classes = measured(['accuracy', 'f1', 'matthews'], gold, told)
    numbers = measured(['pearson', 'spearman'], gold / 3, told / 3)
  assert classes['matthews'] == 0 and set(numbers.values()) == {0.0}
  assert classes['accuracy'] == np.mean(gold == told)
  hits = (gold & told).sum()
  assert classes['f1'] == pytest.approx(2 * hits / max(1, (gold + told).sum()))


@pytest.mark.parametrize('task', TSV)
def test_labels_as_predictions_score_one(folder, tmp_path, task):
  classes = CLASSES.get(task, 2)
  made = tasks.make(crossed(f'glue:{task}', folder, classes=classes))
  dataset = made.dataset(tmp_path, 0, 1)
  said = []
  for example in dataset.examples('train'):
    label = example['targets']
    scores = np.array([label]) if classes == 1 else np.eye(classes)[label]
    known = {name: example[name] for name in ('row', 'targets', 'weights')}
    said.append(tasks.Prediction(scores=scores, **known))
  totals = {'loss': 0.5, 'weight': 2.0}
  found = made.metrics(totals, said, dataset, 'train')
  names = {'cola': 'matthews', 'mrpc': 'f1', 'qqp': 'f1', 'stsb': 'pearson'}
  assert found.pop('loss') == 0.25
  assert names.get(task, 'accuracy') in found
  assert set(made.reported) <= found.keys()
  assert found == pytest.approx(dict.fromkeys(found, 1.0))
  assert made.metrics({}, [], dataset, 'test') == {}


@pytest.mark.slow
def test_what_is_told_of_a_test_split(folder, tmp_path):
  for task, name, answers in (
    ('rte', 'RTE.tsv', {'entailment', 'not_entailment'}),
    ('mnli', 'MNLI-m.tsv', {'entailment', 'neutral', 'contradiction'}),
  ):
    made = crossed(f'glue:{task}', folder, classes=CLASSES.get(task, 2))
    state = initial(made)
    task = tasks.make(made)
    dataset = task.dataset(tmp_path, 0, 1)
    variables = {'params': state.params}
    assert task.score(variables, dataset, 'test', tmp_path) == {}
    head, line = (tmp_path / name).read_text().splitlines()
    row, _, answer = line.partition('\t')
    expected = '7' if name == 'RTE.tsv' else '0'
    assert (head, row) == ('index\tprediction', expected) and answer in answers


def test_what_is_told_has_the_numbers_of_the_set(tmp_path, monkeypatch):
  """Of files, and of TFDS, which reads them in another order."""
  home = tmp_path / 'MRPC'
  home.mkdir()
  (home / 'train.tsv').write_text(TSV['mrpc'][0])
  (home / 'dev.tsv').write_text(TSV['mrpc'][1])
  lines = [f'{100 + i}\t7\t8\t{i % 3}\tB .' for i in range(12)]
  head = TSV['mrpc'][2].partition('\n')[0]
  (home / 'test.tsv').write_text('\n'.join([head, *lines, '']))
  monkeypatch.setattr(Glue, 'files', str(tmp_path))
  Glue(
    config='mrpc', data_dir=tmp_path / 'tfds', file_format='array_record'
  ).download_and_prepare()
  expected = [f'{100 + i}\t{int(i % 3 > 0)}' for i in range(12)]
  for source, path in (
    ('glue:mrpc', tmp_path),
    ('tfds:glue/mrpc', tmp_path / 'tfds'),
  ):
    made = crossed(source, path)
    task = tasks.make(made)
    dataset = task.dataset(tmp_path, 0, 1)
    rows = [item.texts[0] for item in opened(source, path).read('test')]
    said = [
      tasks.Prediction(row=np.array(i), scores=np.array([0.5, float(text)]))
      for i, text in enumerate(rows)
    ]
    monkeypatch.setattr(task, 'said', lambda *_, said=said: said)
    task.score({}, dataset, 'test', tmp_path)
    told = (tmp_path / 'MRPC.tsv').read_text().splitlines()
    assert told == ['index\tprediction', *expected]
  assert rows != [str(i % 3) for i in range(12)]  # that order is another


# Real data.

needs_data = pytest.mark.skipif(
  'SHARED_TFM_DATA' not in os.environ,
  reason='SHARED_TFM_DATA names no folder of public data sets',
)


@needs_data
@pytest.mark.parametrize(
  ('task', 'train', 'held_out', 'majority'),
  [  # GLUE's own sizes; of WNLI this copy has a part
    ('cola', 8551, 1043, 721),
    ('sst2', 67349, 872, 444),
    ('mrpc', 3668, 408, 279),
    ('rte', 2490, 277, 146),
    ('stsb', 5749, 1500, None),
    ('wnli', 518, 71, 40),
  ],
)
def test_glue(task, train, held_out, majority):
  path = pathlib.Path(os.environ['SHARED_TFM_DATA']) / 'glue'
  found = opened(f'glue:{task}', path, CLASSES.get(task, 2))
  assert abs(len(found.read('train')) - train) <= 1
  items = found.read('validation')
  assert len(items) == held_out
  assert all(text for item in items for text in item.texts)
  labels = collections.Counter(item.label for item in items)
  if majority:
    assert labels.most_common(1)[0][1] == majority
  else:
    assert (min(labels), max(labels)) == (0, 5)


@needs_data
def test_the_whole_of_trec():
  path = pathlib.Path(os.environ['SHARED_TFM_DATA']) / 'trec'
  for count in (6, 50):
    found = opened('trec', path, count)
    items = [*found.read('train'), *found.read('validation')]
    assert (len(items), len(found.read('test'))) == (5452, 500)
    assert len({item.label for item in items}) == count
