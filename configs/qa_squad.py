"""SQuAD 1.1 by ALBERT-base, fine-tuned as published (1909.11942, table 14).

Expected: with the paper's own pre-trained weights, EM 82.3 and F1 89.3 on the
  validation split (its table 2). It has not been run here: it needs weights
  that were pre-trained, --config.train.init_from=RUN, such as a run of
  configs/albert_base.py.
Cost: describe, a second. Training: an accelerator's work, 3,649 updates of 48
  windows.
Command: python -m shared_tfm prepare squad, once, and then
  python -m shared_tfm train --config=configs/qa_squad.py \
  --workdir=runs/qa_squad --config.train.init_from=runs/albert_base
  python -m shared_tfm evaluate --workdir=runs/qa_squad \
  --predictions=runs/qa_squad

The last command writes what SQuAD's script reads, references.json and
predictions.json. SQuAD
2.0 is --config.data.source=tfds:squad/v2.0, by the same table with
--config.optimizer.learning_rate=3e-5 --config.train.num_steps=8144
--config.optimizer.warmup_steps=814 --config.data.seq_len=512.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The encoder of ALBERT Table 1, base, with a head for spans."""
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
    'learning_rate': 5e-5,
    'schedule': 'linear',
    'final_fraction': 0.0,
    'warmup_steps': 365,
    'b2': 0.999,
    'eps': 1e-6,
    'weight_decay': 0.01,
  }
  config.train = {
    'num_steps': 3_649,
    'batch_size': 48,
    'accumulate': 4,
    'eval_every': 1_000,
    'eval_batches': 0,
    'checkpoint_every': 1_000,
    'log_every': 50,
  }
  config.data = {
    'source': 'tfds:squad',
    'tokenizer': 'bpe',
    'seq_len': 384,
    'question_len': 64,
    'stride': 128,
  }
  config.task = {'name': 'question_answering', 'max_answer': 30}
  return config
