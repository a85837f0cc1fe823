"""Pictures whose class is to be told (ViT, 2010.11929)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.data import Dataset
from shared_tfm.data.pixels import Augmentation, Examples, Fitting, moments
from shared_tfm.data.sources.images import Pictures
from shared_tfm.data.tokenizers import SPECIALS, Tokenizer
from shared_tfm.errors import need
from shared_tfm.layers.cross_entropy import cross_entropy
from shared_tfm.model import Transformer
from shared_tfm.tasks.task import (
  Batch,
  Prediction,
  Shapes,
  Sums,
  Task,
  arguments,
)

# What says nothing: pictures have no text.
NO_TEXT = Tokenizer(
  SPECIALS, lambda texts: (np.zeros(0, np.int32) for _ in texts)
)


class ImageClassification(Task):
  """Tells the class of a picture by cross-entropy."""

  def batches(self) -> Sequence[Shapes]:
    """One kind: inputs (B, Y, X, C); targets and weights (B,)."""
    m, rows = self.config.model, self.config.train.batch_size
    shape = (rows, m.image_size, m.image_size, m.channels)
    return [
      {
        'inputs': jax.ShapeDtypeStruct(shape, jnp.float32),
        'targets': jax.ShapeDtypeStruct((rows,), jnp.int32),
        'weights': jax.ShapeDtypeStruct((rows,), jnp.float32),
      }
    ]

  def dataset(self, folder: Path, index: int, count: int) -> Dataset:
    """Pictures, those to train on changed at random where the config says."""
    data, model = self.config.data, self.config.model
    size = self.config.train.batch_size
    pictures = Pictures(data)
    need(
      pictures.classes == model.num_classes,
      f'model.num_classes must be {pictures.classes} for {data.source}, got'
      f' {model.num_classes}',
    )
    train = pictures.read('train')
    need(
      len(train) >= size,
      f'train.batch_size must be at most the {len(train)} pictures of'
      f' {data.source}, got {size}',
    )
    channels = train[0]['image'].shape[-1]
    need(
      channels == model.channels,
      f'model.channels must be {channels} for {data.source}, got'
      f' {model.channels}',
    )
    fitting = Fitting(model.image_size, data.central_crop)
    if data.normalise == 'channels':
      examples = Examples(*moments(train, fitting))
    else:
      half_C = np.full(channels, 0.5, np.float32)
      examples = Examples(half_C, half_C)

    def elements(split: str, seed: int) -> grain.MapDataset:
      read = train if split == 'train' else pictures.read(split)
      records = grain.MapDataset.source(read).seed(seed)
      if split == 'train' and data.augment != 'none':
        augmentation = Augmentation(data.augment, model.image_size)
        return records.random_map(augmentation).map(examples)
      return records.map(fitting).map(examples)

    return Dataset(NO_TEXT, elements, size, index, count)

  def losses(
    self, model: Transformer, hidden_BLD: jax.Array, batch: Batch
  ) -> tuple[jax.Array, Sums]:
    """Of each picture, with smoothed labels where the config says so."""
    smoothing = self.config.task.label_smoothing
    scores_BC = model.classes(hidden_BLD)
    losses_B = cross_entropy(scores_BC, batch['targets'], smoothing)
    return losses_B * batch['weights'], {}

  def observe(self, model: Transformer, batch: Batch) -> tuple[Sums, Sums]:
    """Sums 'loss', 'weight', 'correct'; of more than 10 classes 'among_5'."""
    scores_BC = model(**arguments(batch))
    targets_B, weights_B = batch['targets'], batch['weights']
    sums = {
      'loss': cross_entropy(scores_BC, targets_B),
      'weight': jnp.ones_like(weights_B),
      'correct': jnp.argmax(scores_BC, axis=-1) == targets_B,
    }
    if self.config.model.num_classes > 10:
      _, best_B5 = jax.lax.top_k(scores_BC, 5)
      sums['among_5'] = jnp.any(best_B5 == targets_B[:, None], axis=-1)
    return {name: jnp.sum(x_B * weights_B) for name, x_B in sums.items()}, {}

  def metrics(
    self,
    totals: Mapping[str, float],
    predictions: Sequence[Prediction],
    dataset: Dataset,
    split: str,
  ) -> dict[str, float]:
    """Loss, accuracy, and 'top_5_accuracy' of more than 10 classes."""
    names = {
      'loss': 'loss',
      'accuracy': 'correct',
      'top_5_accuracy': 'among_5',
    }
    need(
      totals['weight'] > 0,
      f'the {split} split of {self.config.data.source} has no labels',
    )
    return {
      name: totals[key] / totals['weight']
      for name, key in names.items()
      if key in totals
    }
