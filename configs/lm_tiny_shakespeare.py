"""Characters of Shakespeare: a decoder of six layers (char-rnn's text, 1.1 MB).

Expected: 2.40 bits per character of the validation split and 2.54 of the test
  split, which is harder; the unigram entropy is 4.79.
Cost: 11 minutes on 2 CPU cores that had other work.
Command: python -m shared_tfm train --config=configs/lm_tiny_shakespeare.py \
  --workdir=runs/lm_tiny_shakespeare

The text is read from the folder that SHARED_TFM_DATA names, else from data/,
as tiny_shakespeare/input.txt, and split 90/5/5 as TFDS splits it. By way of
TFDS the same text comes after `python -m shared_tfm prepare tiny_shakespeare`
with --config.data.source=tfds:tiny_shakespeare --config.data.path=
"""

import os

import ml_collections

DATA = os.environ.get('SHARED_TFM_DATA', 'data')


def get_config() -> ml_collections.ConfigDict:
  """A character-level decoder, scored with at least 64 characters before."""
  config = ml_collections.ConfigDict()
  config.model = {
    'num_layers': 6,
    'd_model': 128,
    'num_heads': 4,
    'vocab_size': 67,  # 65 characters, the end of a document, the mask
    'max_len': 128,
    'activation': 'swiglu',
    'd_ff': 344,
    'position': 'rotary',
    'norm': 'rmsnorm',
    'use_bias': False,
    'dropout': 0.1,
  }
  config.optimizer = {
    'learning_rate': 4e-3,
    'warmup_steps': 50,
    'weight_decay': 0.1,
  }
  config.train = {
    'num_steps': 600,
    'batch_size': 16,
    'eval_every': 100,
    'eval_batches': 0,
    'checkpoint_every': 100,
  }
  config.data = {
    'source': 'text',
    'path': f'{DATA}/tiny_shakespeare/input.txt',
    'parts': '90/5/5',
    'tokenizer': 'characters',
  }
  config.task = {'stride': 64}
  return config
