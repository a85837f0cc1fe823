"""MobileLLM-LS-125M: thirty stored layers, each run twice (2402.14905).

Expected: `describe` counts 124,635,456 parameters, as the paper's 124.6M, and
  a sharing ratio of 2. Training at this size has not been run here.
Cost: describe, a second. Training: an accelerator's work.
Command: python -m shared_tfm describe --config=configs/mobilellm_ls_125m.py
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The decoder of MobileLLM Table 3, with immediate block-wise sharing."""
  config = ml_collections.ConfigDict()
  config.model = {
    'num_layers': 60,
    'd_model': 576,
    'num_heads': 9,
    'num_kv_heads': 3,
    'd_ff': 1536,
    'vocab_size': 32_000,
    'max_len': 2048,
    'activation': 'swiglu',
    'norm': 'rmsnorm',
    'position': 'rotary',
    'use_bias': False,
    'dtype': 'bfloat16',
    'sharing': {'layer': 'sequence:30'},
  }
  config.optimizer = {
    'learning_rate': 2e-3,
    'weight_decay': 0.1,
    'b2': 0.95,
    'warmup_steps': 2_000,
  }
  config.train = {
    'num_steps': 120_000,
    'batch_size': 256,
    'accumulate': 8,
    'eval_every': 5_000,
    'checkpoint_every': 5_000,
    'log_every': 100,
  }
  config.data = {'source': 'text', 'path': 'corpus/', 'tokenizer': 'bpe'}
  return config
