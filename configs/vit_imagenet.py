"""ViT-B/16 on ImageNet from scratch, at published scale.

Expected: 77.9 % top-1 is what its authors report for this recipe at a
  resolution of 384 (2010.11929, table 5); not run here. 86,567,656 parameters.
Cost: 300 epochs of 1.28 million pictures, 4.0e19 FLOPs of matrix products;
  accelerators, and `train.accumulate` for as long as one of them has to do.
Command: python -m shared_tfm prepare imagenet2012 --path=DIR \
    --manual_dir=FOLDER_OF_THE_TAR_FILES
  python -m shared_tfm train --config=configs/vit_imagenet.py \
    --config.data.path=DIR --workdir=runs/vit_imagenet
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """ViT-B/16 at 224 pixels, its classes told from a vector of its own."""
  config = ml_collections.ConfigDict()
  config.model = {
    'family': 'vision',
    'image_size': 224,
    'patch_size': 16,
    'num_classes': 1000,
    'pooler': False,
    'num_layers': 12,
    'd_model': 768,
    'num_heads': 12,
    'dropout': 0.1,
    'dtype': 'bfloat16',
  }
  config.optimizer = {  # 2010.11929, table 3
    'learning_rate': 3e-3,
    'b2': 0.999,
    'weight_decay': 0.3,
    'warmup_steps': 10_000,
    'final_fraction': 0.0,
  }
  config.train = {
    'num_steps': 93_800,
    'batch_size': 4096,
    'accumulate': 32,
    'eval_every': 1000,
    'eval_batches': 0,
    'checkpoint_every': 1000,
  }
  config.data = {
    'source': 'tfds:imagenet2012',
    'threads': 16,  # a core makes some 230 pictures a second
    'augment': 'inception',
    'central_crop': 0.875,
  }
  return config
