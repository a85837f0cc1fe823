"""TREC's questions: which of six kinds of answer each asks for.

Expected: 73 % of the test questions from what configs/albert_small.py has
  learned, 65 to 67 % from nothing. See experiments/classification.
Cost: 40 seconds on one CPU core.
Command: python -m shared_tfm train --config=configs/trec.py \
  --workdir=runs/trec --config.train.init_from=runs/albert_small
  python -m shared_tfm evaluate --workdir=runs/trec --split=test

Without init_from it learns from nothing. The 50 fine classes are
--config.model.num_classes=50. Of 5,452 questions every tenth is for validation;
the 500 of TREC_10.label are the test split. Both files are read from trec/ of
the folder that SHARED_TFM_DATA names, else of data/.
"""

import os

import ml_collections

DATA = os.environ.get('SHARED_TFM_DATA', 'data')


def get_config() -> ml_collections.ConfigDict:
  """The network of configs/albert_small.py, with a head for six classes."""
  config = ml_collections.ConfigDict()
  config.model = {
    'family': 'encoder',
    'num_layers': 4,
    'd_model': 128,
    'num_heads': 4,
    'embed_dim': 64,
    'vocab_size': 4_096,
    'max_len': 128,
    'type_vocab_size': 2,
    'activation': 'gelu_tanh',
    'position': 'rotary',
    'dropout': 0.1,
    'num_classes': 6,
    'sharing': {'layer': 'all'},
  }
  config.optimizer = {
    'learning_rate': 1e-3,
    'schedule': 'linear',
    'final_fraction': 0.0,
    'warmup_steps': 20,
  }
  config.train = {
    'num_steps': 200,
    'batch_size': 32,
    'eval_every': 100,
    'eval_batches': 0,
    'checkpoint_every': 100,
  }
  config.data = {
    'source': 'trec',
    'path': f'{DATA}/trec',
    'tokenizer': 'bpe',
    'seq_len': 32,
  }
  config.task = {'name': 'classification'}
  return config
