"""A ViT for CIFAR-10, trained from scratch.

Expected: not run here; 10,694,794 parameters.
Cost: 200 epochs of 45,000 pictures, 3.8e16 FLOPs of matrix products: minutes
  on an accelerator, a day and a half on 2 CPU cores at 300 GFLOP/s.
Command: python -m shared_tfm prepare cifar10 --path=DIR
  python -m shared_tfm train --config=configs/vit_cifar10.py \
    --config.data.path=DIR --workdir=runs/vit_cifar10
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """A ViT of 6 layers that reads 64 patches of 4 x 4 pixels."""
  config = ml_collections.ConfigDict()
  config.model = {
    'family': 'vision',
    'image_size': 32,
    'patch_size': 4,
    'num_classes': 10,
    'pooler': False,
    'pool': 'mean',
    'num_layers': 6,
    'd_model': 384,
    'num_heads': 6,
    'd_ff': 1536,
    'dropout': 0.1,
  }
  config.optimizer = {
    'learning_rate': 1e-3,
    'weight_decay': 0.05,
    'warmup_steps': 2000,
    'final_fraction': 0.0,
  }
  config.train = {
    'num_steps': 70_000,
    'batch_size': 128,
    'eval_every': 1000,
    'eval_batches': 0,
    'checkpoint_every': 1000,
  }
  config.data = {
    'source': 'tfds:cifar10',
    'augment': 'crop_flip',
    'normalise': 'channels',
  }
  config.task = {'label_smoothing': 0.1}
  return config
