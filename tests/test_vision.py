"""Pictures: their files, what is done to them, and a model that reads them."""

import gzip
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn import metrics as sklearn_metrics

from shared_tfm import accounting, config_file, tasks
from shared_tfm import config as configs
from shared_tfm.data import pixels
from shared_tfm.data.sources import images, records
from shared_tfm.errors import BadInput
from shared_tfm.layers import patches
from shared_tfm.model import build
from shared_tfm.train import loop

ROOT = pathlib.Path(__file__).parents[1]
KEY = jax.random.key(0)
TINY = {
  'family': 'vision',
  'image_size': 8,
  'patch_size': 4,
  'channels': 1,
  'num_classes': 4,
  'pooler': False,
  'num_layers': 2,
  'd_model': 16,
  'num_heads': 2,
}


def config_of(model=(), data=(), train=(), **rest):
  return configs.cross(
    {
      'model': TINY | dict(model),
      'data': {'source': 'mnist'} | dict(data),
      'train': {'batch_size': 8} | dict(train),
      **rest,
    }
  )


def idx(array):
  """The bytes of an IDX file, https://yann.lecun.com/exdb/mnist."""
  head = bytes([0, 0, 8, array.ndim])
  sizes = b''.join(n.to_bytes(4, 'big') for n in array.shape)
  return head + sizes + array.tobytes()


def quadrants(rows, seed):
  """Noise, with one quadrant brighter than the others: that is the class."""
  rng = np.random.default_rng(seed)
  pictures = rng.integers(0, 100, (rows, 8, 8)).astype(np.uint8)
  labels = (np.arange(rows) % 4).astype(np.uint8)
  for picture, label in zip(pictures, labels, strict=True):
    top, left = 4 * (label // 2), 4 * (label % 2)
    picture[top : top + 4, left : left + 4] += 120
  return pictures, labels


@pytest.fixture(scope='session')
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp('mnist')
  for begins, rows in (('train', 200), ('t10k', 24)):
    pictures, labels = quadrants(rows, rows)
    packed = gzip.compress(idx(pictures))
    (folder / f'{begins}-images-idx3-ubyte.gz').write_bytes(packed)
    (folder / f'{begins}-labels-idx1-ubyte').write_bytes(idx(labels))
  return folder


@pytest.fixture
def folder(written, tmp_path):
  """A copy, to be damaged."""
  for path in written.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  return tmp_path


def dataset(folder, **fields):
  fields['data'] = {'path': str(folder), **fields.get('data', {})}
  return tasks.prepare(config_of(**fields), folder)


# The model.


@pytest.mark.parametrize(('size', 'channels'), [(2, 1), (4, 3)])
def test_patches_are_cut_row_by_row(size, channels):
  pictures = np.random.default_rng(0).normal(size=(2, 8, 8, channels))
  found = patches.cut(jnp.asarray(pictures), size)
  expected = [
    [
      picture[y : y + size, x : x + size].ravel()
      for y in range(0, 8, size)
      for x in range(0, 8, size)
    ]
    for picture in pictures
  ]
  np.testing.assert_array_equal(found, np.asarray(expected, np.float32))


def permuted(pictures_BYXC, order):
  """Pictures of 8 x 8 whose four patches have changed places."""
  blocks = [
    pictures_BYXC[:, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4)
  ]
  a, b, c, d = (blocks[i] for i in order)
  return jnp.concatenate(
    [jnp.concatenate([a, b], axis=2), jnp.concatenate([c, d], axis=2)], axis=1
  )


@pytest.mark.parametrize(
  ('position', 'equal'), [('none', True), ('learned', False)]
)
def test_patches_have_no_order_but_by_their_positions(position, equal):
  model = build(config_of({'pool': 'mean', 'position': position}))
  pictures = jax.random.normal(KEY, (2, 8, 8, 1))
  variables = jax.jit(model.init)(KEY, pictures)
  apply = jax.jit(model.apply)
  scores = apply(variables, pictures)
  others = apply(variables, permuted(pictures, (2, 0, 3, 1)))
  assert scores.shape == (2, 4)
  assert bool(jnp.allclose(scores, others, atol=1e-5)) is equal


def leaves(model):
  config = configs.cross({'model': model})
  m = config.model
  shape = (1, m.image_size, m.image_size, m.channels)
  tree = jax.eval_shape(build(config).init, KEY, jnp.zeros(shape))
  size = sum(leaf.size for leaf in jax.tree.leaves(tree['params']))
  return size, accounting.describe(config)['params']['stored']


@pytest.mark.parametrize('pool', ['first', 'mean'])
@pytest.mark.parametrize('pooler', [True, False])
@pytest.mark.parametrize('position', ['learned', 'sinusoidal'])
def test_every_parameter_is_counted(pool, pooler, position):
  held, counted = leaves(
    TINY | {'pool': pool, 'pooler': pooler, 'position': position}
  )
  assert held == counted


def test_vit_b_16_is_as_large_as_published():
  # 86,567,656: ViT-B/16 at 224 pixels with a head of 1000 classes and no
  # hidden layer in it, as its authors fine-tune it (2010.11929, section 3.2).
  config = config_file.load(str(ROOT / 'configs' / 'vit_imagenet.py'), [])
  tree = jax.eval_shape(build(config).init, KEY, jnp.zeros((1, 224, 224, 3)))
  size = sum(leaf.size for leaf in jax.tree.leaves(tree['params']))
  stored = accounting.describe(config)['params']['stored']
  assert size == stored == 86_567_656


# What is done to pictures.


def test_a_crop_shifts_and_only_a_flip_mirrors():
  picture = np.arange(1, 65, dtype=np.uint8).reshape(8, 8, 1)
  padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)))
  shifts = {
    padded[y : y + 8, x : x + 8].tobytes() for y in range(3) for x in range(3)
  }
  mirrored = {
    padded[y : y + 8, x : x + 8][:, ::-1].tobytes()
    for y in range(3)
    for x in range(3)
  }
  rng = np.random.default_rng(0)

  def drawn(name):
    change = pixels.Augmentation(name, 8)
    return {
      change({'image': picture}, rng)['image'].tobytes() for _ in range(300)
    }

  assert drawn('crop') == shifts
  assert drawn('crop_flip') == shifts | mirrored


def test_inception_shows_parts_of_many_sizes():
  ramp = np.arange(40, dtype=np.uint8)[None, :, None].repeat(30, 0)
  change = pixels.Augmentation('inception', 16)
  rng = np.random.default_rng(0)
  found = [change({'image': ramp}, rng)['image'] for _ in range(200)]
  assert {image.shape for image in found} == {(16, 16, 1)}
  widths = [abs(int(image[0, -1, 0]) - int(image[0, 0, 0])) for image in found]
  assert min(widths) < 13
  assert max(widths) > 30
  rising = np.mean([image[0, -1, 0] > image[0, 0, 0] for image in found])
  assert 0.35 < rising < 0.65


def test_what_is_scored_is_the_middle():
  image = np.zeros((8, 12, 1), np.uint8)
  image[2:6, 4:8] = 200
  seen = pixels.Fitting(4, 0.5)({'image': image})['image']
  assert (seen == 200).all()
  whole = pixels.Fitting(8)({'image': image})['image']
  np.testing.assert_array_equal(whole, image[:, 2:10])


def test_inputs_are_normalised(folder):
  half = dataset(folder).examples('train')
  pictures, labels = quadrants(200, 200)
  for example, picture, label in zip(half, pictures, labels, strict=False):
    expected = (picture[..., None] / 255 - 0.5) / 0.5
    np.testing.assert_allclose(example['inputs'], expected, atol=1e-6)
    assert example['targets'] == label
  by_channel = dataset(folder, data={'normalise': 'channels'})
  inputs = np.stack([e['inputs'] for e in by_channel.examples('train')])
  assert abs(inputs.mean()) < 1e-5
  assert abs(inputs.std() - 1) < 1e-5


def test_only_training_pictures_are_changed(folder):
  plain = dataset(folder)
  changed = dataset(folder, data={'augment': 'crop'})
  for split, equal in (('train', False), ('validation', True), ('test', True)):
    pairs = zip(plain.examples(split), changed.examples(split), strict=True)
    same = [np.array_equal(a['inputs'], b['inputs']) for a, b in pairs]
    assert all(same) is equal


def test_resuming_is_exact_and_every_epoch_differs(folder):
  made = dataset(folder, data={'augment': 'crop_flip'})
  whole = made.train(3)
  first = [next(whole) for _ in range(50)]
  for cut in (1, 22, 23, 45):
    stopped, again = made.train(3), made.train(3)
    for _ in range(cut):
      next(stopped)
    again.set_state(stopped.get_state())
    for expected in first[cut : cut + 3]:
      found = next(again)
      for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
  seen = {row.tobytes() for batch in first for row in batch['inputs']}
  assert len(seen) > 0.8 * 400  # of 180 pictures, and some fit twice


def test_however_many_threads_make_the_same_batches(folder):
  one, many = (
    dataset(folder, data={'augment': 'crop_flip', 'threads': n}).train(3)
    for n in (1, 9)
  )
  for _ in range(30):
    expected, found = next(one), next(many)
    for name in expected:
      np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize('size', [5, 40])
def test_colours_are_scaled_as_each_alone(size):
  picture = np.random.default_rng(0).integers(0, 256, (31, 23, 3), np.uint8)
  cut = picture[2:, :20]
  found = pixels.scaled(cut, size)
  assert found.shape == (size, size, 3)
  for channel in range(3):
    alone = pixels.scaled(cut[..., channel : channel + 1], size)
    np.testing.assert_array_equal(found[..., channel : channel + 1], alone)


# Where pictures come from.


def test_splits_of_mnist(folder):
  pictures = images.Pictures(config_of(data={'path': str(folder)}).data)
  assert pictures.classes == 4
  expected, _ = quadrants(200, 200)
  read = {s: pictures.read(s) for s in ('train', 'validation', 'test')}
  assert {s: len(r) for s, r in read.items()} == {
    'train': 180,
    'validation': 20,
    'test': 24,
  }
  both = [r['image'][..., 0] for s in ('train', 'validation') for r in read[s]]
  np.testing.assert_array_equal(both, expected)


def test_mnist_itself():
  given = os.environ.get('SHARED_TFM_DATA')
  path = pathlib.Path(given or '', 'mnist')
  if not given or not path.is_dir():
    pytest.skip('SHARED_TFM_DATA names no folder with mnist in it')
  config = config_file.load(str(ROOT / 'configs' / 'vit_mnist.py'), [])
  pictures = images.Pictures(config.data)
  read = {s: pictures.read(s) for s in ('train', 'validation', 'test')}
  assert [len(r) for r in read.values()] == [54_000, 6_000, 10_000]
  counts = np.bincount([r['label'] for r in read['test']])
  assert counts.tolist() == [
    980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
  ]  # fmt: skip
  assert read['train'][0]['label'] == 5
  assert read['train'][0]['image'].shape == (28, 28, 1)


class Blobs(tfds.core.GeneratorBasedBuilder):
  """Pictures that TFDS holds; it needs TensorFlow to encode any as PNG."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [  # noqa: RUF012
    tfds.core.BuilderConfig(name=name)
    for name in ('plain', 'own', 'unnamed', 'unlabelled', 'png')
  ]

  def _info(self):
    name = self.builder_config.name
    f = tfds.features
    image = f.Tensor(shape=(8, 8, 1), dtype=np.uint8)
    fields = {
      'image': f.Image(shape=(8, 8, 3)) if name == 'png' else image,
      'label': np.int64 if name == 'unnamed' else f.ClassLabel(num_classes=4),
    }
    if name == 'unlabelled':
      del fields['label']
    return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(fields))

  def _split_generators(self, manager):
    sizes = {'train': 2000, 'test': 16}
    if self.builder_config.name != 'plain':
      sizes = {'train': 20, 'validation': 8, 'test': 8}
    return {s: self._generate_examples(s, n) for s, n in sizes.items()}

  def _generate_examples(self, split, size):
    pictures, labels = quadrants(size, 0)
    for i in range(size):
      image = pictures[i][..., None]
      if self.builder_config.name == 'png':
        image = encoded(image, 'L' if i % 2 else 'RGBA')
      label = (
        -1
        if self.builder_config.name == 'own' and split == 'test'
        else (int(labels[i]))
      )
      example = {'image': image, 'label': label}
      if self.builder_config.name == 'unlabelled':
        del example['label']
      yield i, example


def encoded(image, mode):
  """A PNG file with other channels than were promised."""
  import io

  import PIL.Image

  file = io.BytesIO()
  PIL.Image.fromarray(image[..., 0]).convert(mode).save(file, format='PNG')
  return file.getvalue()


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  tfds.disable_progress_bar()
  folder = tmp_path_factory.mktemp('blobs')
  for kind in Blobs.BUILDER_CONFIGS:
    Blobs(
      config=kind.name, data_dir=folder, file_format='array_record'
    ).download_and_prepare()
  return folder


def test_a_set_larger_than_memory_streams(prepared, monkeypatch):
  read = []
  real = records.Records.__getitem__

  def counted(self, index):
    read.append((len(self), index))
    return real(self, index)

  monkeypatch.setattr(records.Records, '__getitem__', counted)
  made = dataset(
    prepared, data={'source': 'tfds:blobs/plain', 'augment': 'crop'}
  )
  assert read == [(1800, 0)]  # one picture, to see what they are like
  batches = made.train(0)
  shown = [next(batches) for _ in range(3)]
  assert shown[0]['inputs'].shape == (8, 8, 8, 1)
  ahead = 8 * (3 + 8 + 4)  # of 3 batches, those read ahead, and those begun
  assert 3 * 8 <= len(read) <= ahead < 1800
  batches.close()


def test_splits_of_its_own(prepared):
  made = dataset(prepared, data={'source': 'tfds:blobs/own'})
  sizes = [len(made.examples(s)) for s in ('train', 'validation', 'test')]
  assert sizes == [20, 8, 8]
  assert all(e['weights'] == 0 for e in made.examples('test'))  # -1: unknown
  assert all(e['weights'] == 1 for e in made.examples('validation'))


def test_encoded_pictures_have_the_channels_that_were_promised(prepared):
  made = dataset(
    prepared, model={'channels': 3}, data={'source': 'tfds:blobs/png'}
  )
  assert {e['inputs'].shape for e in made.examples('train')} == {(8, 8, 3)}
  grey = made.examples('train')[0]['inputs']
  np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'data': {'path': ''}}, "source 'mnist' needs data.path, a folder"),
    (
      {'data': {'path': 'nowhere'}},
      'nowhere has no train-images-idx3-ubyte.gz',
    ),
    ({'data': {'source': 'mnits'}}, "source 'mnits'; did you mean 'mnist'"),
    ({'model': {'num_classes': 5}}, 'num_classes must be 4 for mnist, got 5'),
    ({'model': {'channels': 3}}, 'channels must be 1 for mnist, got 3'),
    ({'train': {'batch_size': 181}}, 'at most the 180 pictures of mnist, got'),
    (
      {'data': {'source': 'tfds:blobs/unnamed'}},
      'the label of tfds:blobs/unnamed is not one of classes',
    ),
    (
      {'data': {'source': 'tfds:blobs/unlabelled'}},
      'tfds:blobs/unlabelled has no field label; it has image',
    ),
    (
      {'data': {'source': 'tfds:mnist'}},
      'tfds:mnist is not prepared under',
    ),
  ],
)
def test_pictures_that_cannot_be_used(folder, prepared, fields, message):
  tfds_source = fields.get('data', {}).get('source', '').startswith('tfds')
  with pytest.raises(BadInput, match=message) as told:
    dataset(prepared if tfds_source else folder, **fields)
  assert '\n' not in str(told.value)


def test_a_split_that_is_not_there(folder, prepared):
  (folder / 't10k-labels-idx1-ubyte').unlink()
  with pytest.raises(BadInput, match=r'has no t10k-labels-idx1-ubyte.gz'):
    dataset(folder)
  made = dataset(prepared, data={'source': 'tfds:blobs/own'})
  with pytest.raises(BadInput, match='tfds:blobs/own has no tests split'):
    made.examples('tests')


def test_a_split_that_nobody_has(folder):
  with pytest.raises(BadInput, match='mnist has no valid split, but test, tr'):
    dataset(folder).examples('valid')


@pytest.mark.parametrize(
  ('name', 'damage', 'message'),
  [
    (
      'train-images-idx3-ubyte.gz',
      lambda content: content[:-40],
      'train-images-idx3-ubyte.gz cannot be read: Compressed file ended',
    ),
    (
      'train-images-idx3-ubyte.gz',
      lambda content: content[:100] + b'no' + content[102:],
      'train-images-idx3-ubyte.gz cannot be read: ',
    ),
    (
      'train-images-idx3-ubyte.gz',
      lambda content: b'<html>404</html>',
      'train-images-idx3-ubyte.gz cannot be read: Not a gzipped file',
    ),
    (
      'train-labels-idx1-ubyte',
      lambda content: content[:-1],
      'labels-idx1-ubyte is no IDX file of 1 axes of bytes, or is damaged',
    ),
    ('train-labels-idx1-ubyte', lambda content: b'', 'no IDX file of 1 axes'),
    (
      'train-labels-idx1-ubyte',
      lambda content: idx(np.zeros(7, np.uint8)),
      'has 200 images and 7 labels to train',
    ),
  ],
)
def test_a_damaged_file(folder, name, damage, message):
  path = folder / name
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(BadInput, match=message) as told:
    dataset(folder)
  assert '\n' not in str(told.value)


# The task.


@pytest.mark.slow
@pytest.mark.parametrize('classes', [10, 12])
def test_scores_are_those_of_a_library(classes):
  model = {'num_classes': classes, 'num_layers': 1}
  config = config_of(model, train={'batch_size': 64})
  task, model = tasks.make(config), build(config)
  rng = np.random.default_rng(0)
  batch = {
    'inputs': rng.normal(size=(64, 8, 8, 1)).astype(np.float32),
    'targets': rng.integers(0, classes, 64).astype(np.int32),
    'weights': (np.arange(64) < 50).astype(np.float32),
  }
  variables = jax.jit(model.init)(KEY, batch['inputs'])

  @jax.jit
  def observed(variables, batch):
    sums, _ = model.apply(variables, batch, method=task.observe)
    return sums, model.apply(variables, batch['inputs'])

  sums, scores = observed(variables, batch)
  found = task.metrics(
    {k: float(v) for k, v in sums.items()}, [], None, 'validation'
  )
  gold = batch['targets'][:50]
  scores = np.asarray(scores)[:50]
  expected = {
    'loss': sklearn_metrics.log_loss(
      gold, jax.nn.softmax(scores), labels=range(classes)
    ),
    'accuracy': sklearn_metrics.accuracy_score(gold, scores.argmax(1)),
  }
  if classes > 10:
    expected['top_5_accuracy'] = sklearn_metrics.top_k_accuracy_score(
      gold, scores, k=5, labels=range(classes)
    )
  assert found == pytest.approx(expected, rel=1e-5)


def test_a_split_without_labels_cannot_be_scored():
  task = tasks.make(config_of())
  with pytest.raises(BadInput, match='the test split of mnist has no labels'):
    task.metrics({'loss': 0.0, 'weight': 0.0, 'correct': 0.0}, [], None, 'test')


@pytest.mark.slow
def test_a_vit_learns_where_the_light_is(folder, tmp_path):
  config = config_of(
    data={'path': str(folder), 'augment': 'crop'},
    model={'pool': 'mean', 'num_layers': 1},
    train={'batch_size': 16, 'num_steps': 150, 'eval_batches': 0},
    optimizer={'learning_rate': 1e-2},
  )
  result = loop.train(config, tmp_path / 'run')
  assert result['validation_accuracy'] == 1.0
  assert result['validation_loss'] < 0.2
