"""Highlights of CNN and Daily Mail articles, by a Universal Transformer base.

Expected: `describe` counts 62,951,424 parameters: in each stack one layer, that
  is run six times. It has not been run here.
Cost: describe, a second. Training: an accelerator's work.
Data: python -m shared_tfm prepare cnn_dailymail
Command: python -m shared_tfm train \
  --config=configs/summarisation_cnn_dailymail.py \
  --workdir=runs/summarisation_cnn_dailymail
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """An encoder-decoder over the first 512 tokens of an article."""
  config = ml_collections.ConfigDict()
  config.model = {
    'family': 'encoder_decoder',
    'num_layers': 6,
    'd_model': 1024,
    'num_heads': 16,
    'd_ff': 4096,
    'vocab_size': 32_768,
    'max_len': 512,
    'activation': 'relu',
    'position': 'sinusoidal',
    'embed_scale': 'width',
    'positions_at': 'every_layer',
    'step_signal': 'sinusoidal',
    'dropout': 0.1,
    'dtype': 'bfloat16',
    'sharing': {'layer': 'all'},
  }
  config.optimizer = {
    'learning_rate': 1e-3,
    'schedule': 'rsqrt',
    'warmup_steps': 4_000,
    'weight_decay': 0.0,
  }
  config.train = {
    'num_steps': 100_000,
    'batch_size': 128,
    'accumulate': 4,
    'eval_every': 2_000,
    'eval_batches': 64,
    'checkpoint_every': 2_000,
    'log_every': 100,
  }
  config.data = {
    'source': 'tfds:cnn_dailymail',
    'source_field': 'article',
    'target_field': 'highlights',
    'tokenizer': 'bpe',
    'seq_len': 128,
    'source_len': 512,
    'buckets': '256',
  }
  config.task = {
    'name': 'summarisation',
    'label_smoothing': 0.1,
    'length_penalty': 0.8,
  }
  return config
