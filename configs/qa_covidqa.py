"""Questions about papers on the coronavirus: COVID-QA (deepset, 2020).

Expected: EM 1.0 and F1 1.0, which is no better than spans at random (F1 2.5):
  1,276 questions do not teach an encoder to read from scratch. Weights of a
  pre-trained run, --config.train.init_from=RUN, are what it lacks; see
  experiments/question_answering/.
Cost: 8 minutes on 2 CPU cores that much other work shared, 2 of CPU time.
Command: python -m shared_tfm train --config=configs/qa_covidqa.py \
  --workdir=runs/qa_covidqa
  python -m shared_tfm evaluate --workdir=runs/qa_covidqa \
  --predictions=runs/qa_covidqa

The last command writes the predictions.json that SQuAD's script reads. The data
are read from the folder that SHARED_TFM_DATA names, else from data/.
"""

import os

import ml_collections

DATA = os.environ.get('SHARED_TFM_DATA', 'data')


def get_config() -> ml_collections.ConfigDict:
  """A small encoder that reads papers of 4,000 words window by window."""
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
    'remat': 'full',
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
