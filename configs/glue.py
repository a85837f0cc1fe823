"""A task of GLUE, fine-tuned: configs/glue.py:mrpc, :sst2, :cola and so on.

Expected: 73 % of sst2's validation split after 1,000 steps; a correlation of
  0.13 with stsb's after 300. See experiments/classification.
Cost: minutes on 2 CPU cores.
Command: python -m shared_tfm train --config=configs/glue.py:sst2 \
  --workdir=runs/sst2 --config.train.init_from=runs/albert_small \
  --config.train.num_steps=1000

Without init_from it learns from nothing, which takes more steps. The tasks are
cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte and wnli, each a folder of .tsv
files as GLUE distributes them (CoLA, SST-2, MRPC, QQP, STS-B, MNLI, QNLI, RTE,
WNLI) in glue/ of the folder that SHARED_TFM_DATA names, else of data/.
  python -m shared_tfm evaluate --workdir=runs/sst2 --split=test \
    --predictions=runs/sst2/predictions
writes what GLUE's site takes.
"""

import os

import ml_collections

DATA = os.environ.get('SHARED_TFM_DATA', 'data')
SINGLE = ('cola', 'sst2')  # of one sentence, and not of a pair
CLASSES = {'stsb': 1, 'mnli': 3}  # 1: a number; else 2


def get_config(task: str = 'sst2') -> ml_collections.ConfigDict:
  """The network of configs/albert_small.py, with a head for a task."""
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
    'num_classes': CLASSES.get(task, 2),
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
    'source': f'glue:{task}',
    'path': f'{DATA}/glue',
    'tokenizer': 'bpe',
    'seq_len': 48 if task in SINGLE else 128,
  }
  config.task = {'name': 'classification'}
  return config
