"""ALBERT-base fine-tuned on a task of GLUE through TFDS: :mnli, :sst2, ...

Expected: ALBERT-base reports 81.6 accuracy on MNLI and 90.3 on SST-2
  (1909.11942, table 2); this has not been run here.
Cost: describe, a second. Training: minutes to hours of an accelerator.
Command: python -m shared_tfm train --config=configs/glue_albert_base.py:sst2 \
  --workdir=runs/sst2 --config.train.init_from=runs/albert_base

The published recipe of each task (table 14) on the network of
configs/albert_base.py, whose run init_from names; the paper's dropout of 0.1 on
what the classifier alone reads is left out, since there is one dropout here.
What is read has been made by
  python -m shared_tfm prepare glue/sst2
"""

import ml_collections

# Learning rate, batch size, dropout, training steps, warm-up steps.
RECIPES = {
  'cola': (1e-5, 16, 0.0, 5_336, 320),
  'stsb': (2e-5, 16, 0.0, 3_598, 214),
  'sst2': (1e-5, 32, 0.0, 20_935, 1_256),
  'mnli': (3e-5, 128, 0.0, 10_000, 1_000),
  'qnli': (1e-5, 32, 0.0, 33_112, 1_986),
  'qqp': (5e-5, 128, 0.1, 14_000, 1_000),
  'rte': (3e-5, 32, 0.1, 800, 200),
  'mrpc': (2e-5, 32, 0.0, 800, 200),
  'wnli': (2e-5, 16, 0.1, 2_000, 250),
}
CLASSES = {'stsb': 1, 'mnli': 3}  # 1: a number; else 2


def get_config(task: str = 'sst2') -> ml_collections.ConfigDict:
  """ALBERT-base with a head for a task."""
  known = RECIPES.get(task, RECIPES['mnli'])  # the data will say what is not
  rate, batch, dropout, steps, warmup = known
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
    'dropout': dropout,
    'num_classes': CLASSES.get(task, 2),
    'sharing': {'layer': 'all'},
  }
  config.optimizer = {
    'learning_rate': rate,
    'schedule': 'linear',
    'final_fraction': 0.0,
    'warmup_steps': warmup,
    'b2': 0.999,
    'eps': 1e-6,
  }
  config.train = {
    'num_steps': steps,
    'batch_size': batch,
    'eval_every': steps // 4,
    'eval_batches': 0,
    'checkpoint_every': steps // 4,
    'log_every': 100,
  }
  config.data = {'source': f'tfds:glue/{task}', 'tokenizer': 'bpe'}
  config.task = {'name': 'classification'}
  return config
