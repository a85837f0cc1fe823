"""The One Billion Word Benchmark (1312.3005), through TFDS.

Expected: `describe` counts 49,635,328 parameters, of which layers 18.9M. The
  network is that of the lm1b example of Flax: 6 layers of width 512, 30,000
  pieces, 128 tokens, 500,000 updates of 256 sequences. It has not been run
  here.
Cost: describe, a second. Training: an accelerator's work.
Command: python -m shared_tfm prepare lm1b
  python -m shared_tfm train --config=configs/lm_lm1b.py --workdir=runs/lm_lm1b

Perplexity is per word, which is what has white space around it. The ends of
sentences, which published perplexities count as words, are no text in TFDS's
records and do not count here.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """A decoder over a BPE, on sentences that are read one after the other."""
  config = ml_collections.ConfigDict()
  config.model = {
    'num_layers': 6,
    'd_model': 512,
    'num_heads': 8,
    'd_ff': 2048,
    'vocab_size': 30_000,
    'max_len': 128,
    'activation': 'relu',
    'position': 'sinusoidal',
    'tie_embeddings': False,
    'dropout': 0.1,
    'dtype': 'bfloat16',
  }
  config.optimizer = {
    'learning_rate': 1.6e-3,
    'schedule': 'rsqrt',
    'warmup_steps': 1_000,
    'weight_decay': 0.1,
  }
  config.train = {
    'num_steps': 500_000,
    'batch_size': 256,
    'eval_every': 1_000,
    'eval_batches': 64,
    'checkpoint_every': 10_000,
    'log_every': 100,
  }
  config.data = {
    'source': 'tfds:lm1b',
    'tokenizer': 'bpe',
    'parts': '99/1',  # of the training split; the test split is its own
  }
  config.task = {'stride': 64}
  return config
