"""ALBERT-base: one layer, twelve visits, factorised embeddings (1909.11942).

Expected: `describe` counts 11,813,810 parameters: the paper's 12M and the heads
  of its two losses. The encoder with its pooler has 11,683,584, of them 590,592
  the pooler; masked tokens are told by 128,688 more, the order of sentences by
  1,538. Its published recipe (LAMB, 125k steps of 4,096 sequences, n-gram masks
  up to 3, sentence-order prediction) is set below, over a text of your own; it
  has not been run here.
Cost: describe, a second. Training: an accelerator's work.
Command: python -m shared_tfm describe --config=configs/albert_base.py
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The encoder of ALBERT Table 1, base, and how it was pre-trained."""
  config = ml_collections.ConfigDict()
  config.model = {
    'family': 'encoder',
    'num_layers': 12,
    'd_model': 768,
    'num_heads': 12,
    'embed_dim': 128,
    'vocab_size': 30_000,
    'max_len': 512,
    'type_vocab_size': 2,
    'activation': 'gelu_tanh',
    'norm_eps': 1e-12,
    'norm_position': 'post',
    'embed_norm': True,
    'dtype': 'bfloat16',
    'sharing': {'layer': 'all'},
  }
  config.optimizer = {
    'name': 'lamb',
    'learning_rate': 1.76e-3,
    'schedule': 'linear',
    'final_fraction': 0.0,
    'warmup_steps': 3_125,
  }
  config.train = {
    'num_steps': 125_000,
    'batch_size': 4_096,
    'accumulate': 64,
    'eval_every': 5_000,
    'checkpoint_every': 5_000,
    'log_every': 100,
  }
  config.data = {
    'source': 'text',
    'path': 'corpus/',
    'tokenizer': 'bpe',
    'mask_ngram': 3,
    'whole_word': True,
  }
  config.task = {'name': 'masked_lm', 'sentence_order': True}
  return config
