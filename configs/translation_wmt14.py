"""WMT 2014 English to German: Takase and Kiyono, and Universal Transformers.

translation_wmt14.py (2104.06022, layers in turns and back), or
translation_wmt14.py:universal (1807.03819, the base of its released code).

Expected: `describe` counts 60,915,712 parameters for 12 + 12 layers, 61M in the
  paper, and a sharing ratio of 2. Width, depth, dropout and learning rate
  follow the authors' README; the size of a batch is our conversion of theirs,
  gradients are clipped, which theirs are not, and layers begin as ours do.
  The Universal Transformer has 62,947,328, of the width and depth of its code,
  and 63M in 2104.06022, table 1; it is trained as the other here. Neither has
  been run.
Cost: describe, a second. Training: days of an accelerator.
Data: python -m shared_tfm prepare wmt14_translate/de-en, or any folder of
  parallel text: --config.data.source=parallel --config.data.path=...
Command: python -m shared_tfm train --config=configs/translation_wmt14.py \
  --workdir=runs/translation_wmt14
"""

import ml_collections

SIZES = {  # preset, layers, width, heads, feed-forward width
  'takase': ('takase_cycle_rev:6', 12, 512, 8, 2048),  # M 6, N 12 of Table 1
  'universal': ('universal', 6, 1024, 16, 4096),
}


def get_config(system: str = 'takase') -> ml_collections.ConfigDict:
  """A published encoder-decoder; see SIZES."""
  preset, layers, width, heads, d_ff = SIZES[system]
  config = ml_collections.ConfigDict()
  config.preset = preset
  config.model = {
    'family': 'encoder_decoder',
    'num_layers': layers,
    'd_model': width,
    'num_heads': heads,
    'd_ff': d_ff,
    'vocab_size': 32_768,
    'max_len': 256,
    'activation': 'relu',
    'position': 'sinusoidal',
    'embed_scale': 'width',
    'norm_position': 'post',
    'dropout': 0.3,
    'dtype': 'bfloat16',
  }
  config.optimizer = {
    'learning_rate': 2e-3,
    'schedule': 'rsqrt',
    'warmup_steps': 8_000,
    'weight_decay': 0.0,
  }
  config.train = {
    'num_steps': 50_000,
    'batch_size': 1_792,  # of 256 tokens on each side: 459k of each
    'accumulate': 128,
    'eval_every': 1_000,
    'eval_batches': 0,
    'checkpoint_every': 1_000,
    'log_every': 100,
  }
  config.data = {
    'source': 'tfds:wmt14_translate/de-en',
    'source_field': 'en',
    'target_field': 'de',
    'tokenizer': 'bpe',
    'buckets': '16,32,48,64,96,128',
  }
  config.task = {'name': 'translation', 'label_smoothing': 0.1}
  return config
