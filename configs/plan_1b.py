"""A decoder of a billion stored parameters, for machines not at hand.

Expected: `describe` counts 988,350,464 stored parameters and twice the layers
  applied, and with --mesh says what a training step takes on 256 devices.
  Training at this size has not been run here.
Cost: describe, a second; with a mesh of 256 devices, under a minute on two
  CPU cores.
Command: python -m shared_tfm describe --config=configs/plan_1b.py
  --mesh=data:16,fsdp:16 --profile=h100
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Sixteen stored layers, run through twice; 2,048 tokens, bfloat16."""
  config = ml_collections.ConfigDict()
  config.model = {
    'num_layers': 32,
    'd_model': 2048,
    'num_heads': 16,
    'd_ff': 6656,
    'vocab_size': 32_000,
    'max_len': 2048,
    'activation': 'swiglu',
    'norm': 'rmsnorm',
    'position': 'rotary',
    'use_bias': False,
    'dtype': 'bfloat16',
    'remat': 'full',
    'sharing': {'layer': 'cycle:16'},
  }
  config.optimizer = {
    'learning_rate': 1e-3,
    'weight_decay': 0.1,
    'b2': 0.95,
    'warmup_steps': 2_000,
  }
  config.train = {
    'num_steps': 50_000,
    'batch_size': 512,
    'eval_every': 5_000,
    'checkpoint_every': 5_000,
    'log_every': 100,
  }
  config.data = {'source': 'text', 'path': 'corpus/', 'tokenizer': 'bpe'}
  return config
