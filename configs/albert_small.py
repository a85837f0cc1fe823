"""A small ALBERT, pre-trained on WikiText-2: n-gram masks and sentence order.

Expected: 1.94 bits per byte of the hidden tokens, where their frequencies alone
  give 2.60, and the order of 74 % of 256 pairs told. See
  experiments/classification.
Cost: half an hour on one CPU core that has other work; the text takes half a
  minute to be read.
Command: python -m shared_tfm train --config=configs/albert_small.py \
  --workdir=runs/albert_small

What it has learned is the start of configs/glue.py and configs/trec.py, whose
networks are the same. The text is read from the folder that SHARED_TFM_DATA
names, else from data/: wikitext2/ with files that are called train, valid and
test, plain, gzipped or in a zip file.
"""

import os

import ml_collections

DATA = os.environ.get('SHARED_TFM_DATA', 'data')


def get_config() -> ml_collections.ConfigDict:
  """One layer, four visits, factorised embeddings, ALBERT's two losses."""
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
    'sharing': {'layer': 'all'},
  }
  # AdamW stayed at the frequencies of tokens as long as was tried, 1,600 steps.
  config.optimizer = {
    'name': 'muon',
    'learning_rate': 1e-2,
    'warmup_steps': 50,
  }
  config.train = {
    'num_steps': 2_000,
    'batch_size': 16,
    'eval_every': 250,
    'checkpoint_every': 500,
    'log_every': 50,
  }
  config.data = {
    'source': 'text',
    'path': f'{DATA}/wikitext2',
    'tokenizer': 'bpe',
    'mask_ngram': 3,
    'whole_word': True,
  }
  config.task = {'name': 'masked_lm', 'sentence_order': True}
  return config
