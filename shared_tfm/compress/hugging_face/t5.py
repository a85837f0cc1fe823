"""T5 (1910.10683), also in version 1.1 and as Flan has it, of `transformers`.

Theirs divides no score by the root of the head's width, which is in our query
weights; and where the output table is the input's, the residual stream by the
root of its own, which is in our last norm.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from shared_tfm.compress.hugging_face.family import Family
from shared_tfm.config import Model

_AT = 'layer.0.SelfAttention'
_CROSS = 'layer.1.EncDecAttention'
_BIAS = f'{_AT}.relative_attention_bias.weight'
_PLAIN = {'up': 'wi', 'down': 'wo'}
_GATED = {'gate': 'wi_0', 'up': 'wi_1', 'down': 'wo'}
HEAD, TABLE = 'lm_head.weight', 'shared.weight'


def _layer(last: int, maps: Mapping[str, str]) -> dict[str, str]:
  """A layer whose feed-forward network is its sublayer `last`."""
  letters = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
  found = {f'attention.{ours}': f'{_AT}.{q}' for ours, q in letters.items()}
  if last == 2:
    for ours, q in letters.items():
      found[f'cross_attention.{ours}'] = f'{_CROSS}.{q}'
    found['norm.cross_attention'] = 'layer.1.layer_norm'
  for ours, theirs in maps.items():
    found[f'feed_forward.{ours}'] = f'layer.{last}.DenseReluDense.{theirs}'
  return found | {
    'norm.attention': 'layer.0.layer_norm',
    'norm.feed_forward': f'layer.{last}.layer_norm',
  }


T5 = Family(
  kind='t5',
  heads={'tokens': ('T5ForConditionalGeneration', {})},
  base='',
  sizes={
    'vocab_size': ('vocab_size', 32128),
    'd_model': ('d_model', 512),
    'd_kv': ('head_dim', 64),
    'd_ff': ('d_ff', 2048),
    'num_layers': ('num_layers', 6),
    'num_decoder_layers': ('num_decoder_layers', None),
    'num_heads': ('num_heads', 8),
    'relative_attention_num_buckets': ('relative_buckets', 32),
    'relative_attention_max_distance': ('relative_distance', 128),
    'n_positions': ('max_len', 512),
    'layer_norm_epsilon': ('norm_eps', 1e-6),
    'dropout_rate': ('dropout', 0.1),
    'tie_word_embeddings': ('tie_embeddings', True),
  },
  activation=(
    'feed_forward_proj',
    {'relu': 'relu', 'gelu': 'gelu', 'gelu_new': 'gelu_tanh'},
    'relu',
  ),
  fixed={
    'is_encoder_decoder': (True, (True,)),
    'is_decoder': (False, (False,)),
  },
  ours={
    'family': 'encoder_decoder',
    'norm': 'rmsnorm',
    'position': 'relative',
    'use_bias': False,
  },
  outside={
    'embedding.token': 'shared',
    'relative.table': f'decoder.block.0.{_BIAS}',
    'encoder_relative.table': f'encoder.block.0.{_BIAS}',
    'norm': 'decoder.final_layer_norm',
    'encoder_norm': 'encoder.final_layer_norm',
    'head.table': 'lm_head',
  },
  layers='decoder.block.{}.',
  inside=_layer(2, _PLAIN),
  encoder=('encoder.block.{}.', _layer(1, _PLAIN)),
  left=(
    r'(en|de)coder\.embed_tokens\.weight',
    r'lm_head\.weight',
    # Of the first releases, which read it nowhere.
    r'decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\..*',
  ),
)

GATED = dataclasses.replace(
  T5,
  activation=(
    'feed_forward_proj',
    {'gated-gelu': 'geglu', 'gated-silu': 'swiglu'},
    'gated-gelu',
  ),
  inside=_layer(2, _GATED),
  encoder=('encoder.block.{}.', _layer(1, _GATED)),
)


def scales(model: Model, given: Mapping[str, Any]) -> dict[str, float]:
  """By what our modules' weights are theirs multiplied.

  Args:
    model: ours.
    given: their settings.
  """
  root = model.head_dim**0.5
  found = {'attention.query': root, 'cross_attention.query': root}
  if given['scale_decoder_outputs']:
    found['norm'] = model.d_model**-0.5
  return found


def told(given: Mapping[str, Any], own_head: bool) -> dict[str, Any]:
  """Their settings, and what they leave to the weights to say.

  Whether the residual stream is divided is a setting of its own where they have
  it, and else that of one table; whether there is one table is what the file
  shows, for `transformers` 5 no longer says so.

  Args:
    given: the content of config.json.
    own_head: whether there is an output table besides the input's.
  """
  divides = given.get('tie_word_embeddings') is not False
  return {
    **given,
    'scale_decoder_outputs': given.get('scale_decoder_outputs', divides),
    'tie_word_embeddings': not own_head,
  }
