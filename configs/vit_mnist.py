"""A small ViT on MNIST, from the four files of its authors.

Expected: 98.1 % of the test split (98.2 % of the validation split, which is the
  last tenth of the training pictures), with 304,906 parameters.
Cost: 4 minutes of processor time; 10 minutes on 2 cores that had other work.
Command: python -m shared_tfm train --config=configs/vit_mnist.py \
    --workdir=runs/vit_mnist
  python -m shared_tfm evaluate --workdir=runs/vit_mnist --split=test
  The files (train-images-idx3-ubyte.gz and so on) lie in data/mnist, or in
  mnist below the folder that SHARED_TFM_DATA names. The same through TFDS:
  python -m shared_tfm prepare mnist --path=DIR
  ... --config.data.source=tfds:mnist --config.data.path=DIR
"""

import os

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """A ViT of 6 layers that reads 16 patches of 7 x 7 pixels."""
  config = ml_collections.ConfigDict()
  config.model = {
    'family': 'vision',
    'image_size': 28,
    'patch_size': 7,
    'channels': 1,
    'num_classes': 10,
    'pooler': False,
    'pool': 'mean',
    'num_layers': 6,
    'd_model': 64,
    'num_heads': 4,
  }
  config.optimizer = {'learning_rate': 3e-3, 'warmup_steps': 100}
  config.train = {
    'num_steps': 1200,
    'batch_size': 128,
    'eval_every': 300,
    'eval_batches': 0,
    'checkpoint_every': 600,
    'log_every': 100,
  }
  config.data = {
    'source': 'mnist',
    'path': os.path.join(os.environ.get('SHARED_TFM_DATA', 'data'), 'mnist'),
  }
  return config
