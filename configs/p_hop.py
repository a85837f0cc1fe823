"""p-hop induction by one layer looped six times (2502.17416, section 2.1).

Expected: one hop is solved: validation accuracy 0.985 after 500 updates and
  1.000 from 1,000 on (of answers and the tokens that end them), with 68,480
  stored parameters.
Cost: 5 minutes on 2 CPU cores that had other work too.
Command: python -m shared_tfm train --config=configs/p_hop.py \
  --workdir=runs/p_hop
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """A decoder that answers with the letter two induction hops back."""
  config = ml_collections.ConfigDict()
  config.model = {
    'num_layers': 6,
    'd_model': 64,
    'num_heads': 4,
    'max_len': 32,
    'norm': 'rmsnorm',
    'sharing': {'layer': 'all'},
  }
  config.optimizer = {
    'learning_rate': 2e-3,
    'warmup_steps': 100,
    'weight_decay': 0.0,
  }
  config.train = {
    'num_steps': 1500,
    'batch_size': 64,
    'eval_every': 250,
    'eval_batches': 8,
    'checkpoint_every': 500,
    'log_every': 50,
  }
  config.data = {'source': 'p_hop', 'difficulty': 1}
  return config
