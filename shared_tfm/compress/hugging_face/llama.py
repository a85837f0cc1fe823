"""Llama (2302.13971) and what is built as it is, as `transformers` has it."""

import dataclasses

from shared_tfm.compress.hugging_face.family import GATED, Family

LLAMA = Family(
  kind='llama',
  heads={'tokens': ('LlamaForCausalLM', {})},
  base='model.',
  sizes={
    'vocab_size': ('vocab_size', 32000),
    'hidden_size': ('d_model', 4096),
    'num_hidden_layers': ('num_layers', 32),
    'num_attention_heads': ('num_heads', 32),
    'num_key_value_heads': ('num_kv_heads', None),
    'head_dim': ('head_dim', None),
    'intermediate_size': ('d_ff', 11008),
    'max_position_embeddings': ('max_len', 2048),
    'rms_norm_eps': ('norm_eps', 1e-6),
    'rope_theta': ('rope_theta', 10000.0),
    'attention_bias': ('use_bias', False),
    'mlp_bias': ('use_bias', False),
    'tie_word_embeddings': ('tie_embeddings', False),
  },
  activation=('hidden_act', GATED, 'silu'),
  fixed={
    'rope_type': ('default', ('default',)),
    'partial_rotary_factor': (1.0, (1.0,)),
  },
  ours={'family': 'decoder', 'norm': 'rmsnorm', 'position': 'rotary'},
  outside={
    'embedding.token': 'model.embed_tokens',
    'norm': 'model.norm',
    'head.table': 'lm_head',
  },
  layers='model.layers.{}.',
  inside={
    'attention.query': 'self_attn.q_proj',
    'attention.key': 'self_attn.k_proj',
    'attention.value': 'self_attn.v_proj',
    'attention.out': 'self_attn.o_proj',
    'feed_forward.up': 'mlp.up_proj',
    'feed_forward.gate': 'mlp.gate_proj',
    'feed_forward.down': 'mlp.down_proj',
    'norm.attention': 'input_layernorm',
    'norm.feed_forward': 'post_attention_layernorm',
  },
  left=(
    r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq',
    r'lm_head\.weight',
  ),
)

_BIASES = ('attention_bias', 'mlp_bias')
MISTRAL = dataclasses.replace(
  LLAMA,
  kind='mistral',
  heads={'tokens': ('MistralForCausalLM', {})},
  sizes={
    **{n: size for n, size in LLAMA.sizes.items() if n not in _BIASES},
    'num_key_value_heads': ('num_kv_heads', 8),
    'intermediate_size': ('d_ff', 14336),
    'max_position_embeddings': ('max_len', 4096 * 32),
  },
  fixed={**LLAMA.fixed, 'sliding_window': (4096, (None,))},
  ours={**LLAMA.ours, 'use_bias': False},
)
