"""WikiText-2 by its 33,278 words: a decoder of six layers.

Expected: a split of 217,646 (validation) or 245,569 words (test) scored to the
  last one; a perplexity of 285 per word of the test split, which is where
  experiments/language_modelling compares schemes.
Cost: 600 steps of 2,048 words, some 1.5 seconds each on one CPU core, most of
  them for the softmax over all words.
Command: python -m shared_tfm train --config=configs/lm_wikitext2.py \
  --workdir=runs/lm_wikitext2
  python -m shared_tfm evaluate --workdir=runs/lm_wikitext2 --split=test

Perplexity is per word of the text, whatever the tokens are; pieces of words are
--config.data.tokenizer=bpe --config.model.vocab_size=4096. The text is read
from the folder that SHARED_TFM_DATA names, else from data/: wikitext2/ with
files that are called train, valid and test, plain, gzipped or in a zip file.
"""

import os

import ml_collections

DATA = os.environ.get('SHARED_TFM_DATA', 'data')


def get_config() -> ml_collections.ConfigDict:
  """A decoder over words, scored with at least 64 words before each."""
  config = ml_collections.ConfigDict()
  config.model = {
    'num_layers': 6,
    'd_model': 128,
    'num_heads': 4,
    'vocab_size': 33_280,  # the words, the end of a document, the mask
    'embed_dim': 64,
    'max_len': 128,
    'activation': 'swiglu',
    'd_ff': 344,
    'position': 'rotary',
    'norm': 'rmsnorm',
    'use_bias': False,
  }
  config.optimizer = {
    'learning_rate': 4e-3,
    'warmup_steps': 50,
    'weight_decay': 0.1,
  }
  config.train = {
    'num_steps': 600,
    'batch_size': 16,
    'eval_every': 200,
    'eval_batches': 16,
    'checkpoint_every': 200,
  }
  config.data = {
    'source': 'text',
    'path': f'{DATA}/wikitext2',
    'tokenizer': 'words',
  }
  config.task = {'stride': 64}
  return config
