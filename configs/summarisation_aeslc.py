"""Subject lines for e-mails, by two layers run twice (1906.03497).

Expected: a validation loss of 4.15, and ROUGE-1 of 0.10: many subjects have to
  do with their e-mail. See experiments/summarisation.
Cost: 12 minutes on one CPU core, and 1.5 for every scoring by beam search.
Command: python -m shared_tfm train --config=configs/summarisation_aeslc.py \
  --workdir=runs/summarisation_aeslc
Then: python -m shared_tfm evaluate --workdir=runs/summarisation_aeslc \
  --checkpoint=latest --split=test
"""

import os

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """An encoder-decoder over the first 64 tokens of an e-mail."""
  config = ml_collections.ConfigDict()
  config.model = {
    'family': 'encoder_decoder',
    'num_layers': 4,
    'd_model': 128,
    'num_heads': 4,
    'd_ff': 256,
    'vocab_size': 4096,
    'max_len': 64,
    'activation': 'relu',
    'position': 'sinusoidal',
    'embed_scale': 'width',
    'dropout': 0.1,
    'sharing': {'layer': 'cycle:2'},
  }
  # AdamW comes to frequent subjects for every e-mail: ROUGE-1 below 0.02.
  config.optimizer = {
    'name': 'muon',
    'learning_rate': 1e-2,
    'warmup_steps': 200,
    'weight_decay': 0.0,
  }
  config.train = {
    'num_steps': 1_600,
    'batch_size': 32,
    'eval_every': 200,
    'eval_batches': 16,
    'checkpoint_every': 400,
    'log_every': 50,
  }
  config.data = {
    'source': 'aeslc',
    'path': os.environ.get('SHARED_TFM_DATA', 'data') + '/aeslc',
    'tokenizer': 'bpe',
    'seq_len': 16,
    'source_len': 64,
    'buckets': '32',
  }
  config.task = {'name': 'summarisation', 'label_smoothing': 0.1}
  return config
