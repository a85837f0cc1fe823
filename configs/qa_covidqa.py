"""Questions about papers on the coronavirus: COVID-QA (deepset, 2020).

Expected: EM 1.0 and F1 5.1, where spans at random have F1 3.3: 1,276 questions
  and a pre-training of minutes do not teach an encoder to read. See
  experiments/question_answering/.
Cost: 5 minutes on one CPU core, of which 2 are for 104 questions on 10 papers.
Command: python -m shared_tfm train --config=configs/qa_covidqa.py \
  --workdir=runs/qa_covidqa --config.train.init_from=runs/albert_small
  python -m shared_tfm evaluate --workdir=runs/qa_covidqa \
  --predictions=runs/qa_covidqa

The last command writes what SQuAD's script reads, references.json and
predictions.json. The data
are read from the folder that SHARED_TFM_DATA names, else from data/.
"""

import os

import ml_collections

DATA = os.environ.get('SHARED_TFM_DATA', 'data')


def get_config() -> ml_collections.ConfigDict:
  """The network of configs/albert_small.py, over windows of 128 tokens."""
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
  config.optimizer = {'learning_rate': 1e-3, 'warmup_steps': 50}
  config.train = {
    'num_steps': 600,
    'batch_size': 16,
    'eval_every': 600,
    'eval_batches': 0,
    'checkpoint_every': 600,
  }
  config.data = {
    'source': 'squad',
    'path': f'{DATA}/covidqa/200423_covidQA.json.gz',
    'tokenizer': 'bpe',
    'question_len': 24,
    'stride': 80,
    'negatives': 0.03,
  }
  config.task = {'name': 'question_answering', 'max_answer': 60}
  return config
