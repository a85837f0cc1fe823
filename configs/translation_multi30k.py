"""A small Transformer for Multi30k, English to German (1605.00459).

Expected: 33.9 BLEU and 57.5 chrF on test_2016_flickr; see
  experiments/translation.
Cost: 37 minutes of one CPU core, and 4 for every scoring by beam search.
Command: python -m shared_tfm train --config=configs/translation_multi30k.py \
  --workdir=runs/translation_multi30k
Then: python -m shared_tfm evaluate --workdir=runs/translation_multi30k \
  --checkpoint=latest --split=test_2016_flickr
"""

import os

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """An encoder-decoder of 6 + 6 layers; the data is in a folder of its own."""
  config = ml_collections.ConfigDict()
  config.model = {
    'family': 'encoder_decoder',
    'num_layers': 6,
    'd_model': 128,
    'num_heads': 4,
    'd_ff': 256,
    'vocab_size': 4096,
    'max_len': 48,
    'activation': 'relu',
    'position': 'sinusoidal',
    'embed_scale': 'width',
    'dropout': 0.1,
    'sharing': {'layer': 'cycle_rev:3'},
  }
  config.optimizer = {
    'learning_rate': 2e-3,
    'warmup_steps': 400,
    'weight_decay': 0.0,
  }
  config.train = {
    'num_steps': 5_000,
    'batch_size': 24,
    'eval_every': 500,
    'eval_batches': 0,
    'checkpoint_every': 500,
    'log_every': 50,
  }
  config.data = {
    'source': 'parallel',
    'path': os.environ.get('SHARED_TFM_DATA', 'data') + '/multi30k_ende',
    'source_field': 'en',
    'target_field': 'de',
    'tokenizer': 'bpe',
    'buckets': '16,24',
  }
  config.task = {'name': 'translation', 'label_smoothing': 0.1}
  return config
