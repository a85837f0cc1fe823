"""WikiText-103 by words: six stored layers, each run twice (2104.06022).

Expected: `describe` counts 120M parameters; the paper's table 5 has about 121M
  and 19.69 perplexity per word on the test split where 12 layers share 6 by
  'sequence:6' or 'cycle:6', 20.24 by 'cycle_rev:6', 21.13 for 6 layers that
  share nothing, and 23.84 for one layer run six times. Its embeddings and
  softmax are adaptive (1809.10853); here one narrow table of the same size
  stands for them, so its numbers are near, not equal. The 50,000 updates are
  the paper's, batches and rates are not. It has not been run here.
Cost: describe, a second. Training: an accelerator's work.
Command: python -m shared_tfm train --config=configs/lm_wikitext103.py \
  --workdir=runs/lm_wikitext103
  python -m shared_tfm evaluate --workdir=runs/lm_wikitext103 --split=test

The folder that SHARED_TFM_DATA names, else data/, has to hold wikitext103/ with
the published wiki.{train,valid,test}.tokens, or the zip file of them.
"""

import os

import ml_collections

DATA = os.environ.get('SHARED_TFM_DATA', 'data')


def get_config() -> ml_collections.ConfigDict:
  """The decoder of table 5, SEQUENCE with M = 6 and N = 12."""
  config = ml_collections.ConfigDict()
  config.model = {
    'num_layers': 12,
    'd_model': 1024,
    'num_heads': 8,
    'd_ff': 4096,
    'vocab_size': 267_737,  # 267,735 words, the end of a document, the mask
    'embed_dim': 164,
    'max_len': 512,
    'activation': 'relu',
    'position': 'sinusoidal',
    'dropout': 0.3,
    'dtype': 'bfloat16',
    'sharing': {'layer': 'sequence:6'},
  }
  config.optimizer = {
    'learning_rate': 1e-3,
    'schedule': 'rsqrt',
    'warmup_steps': 8_000,
    'clip_norm': 0.1,
  }
  config.train = {
    'num_steps': 50_000,
    'batch_size': 128,
    'accumulate': 32,
    'eval_every': 2_000,
    'eval_batches': 0,
    'checkpoint_every': 2_000,
    'log_every': 100,
  }
  config.data = {
    'source': 'text',
    'path': f'{DATA}/wikitext103',
    'tokenizer': 'words',
  }
  config.task = {'stride': 112}  # at least 400 words before every word
  return config
