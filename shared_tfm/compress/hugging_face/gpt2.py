"""GPT-2 (Radford et al., 2019), as `transformers` has it."""

from shared_tfm.compress.hugging_face.family import PLAIN, Family

GPT2 = Family(
  kind='gpt2',
  heads={'tokens': ('GPT2LMHeadModel', {})},
  base='transformer.',
  sizes={
    'vocab_size': ('vocab_size', 50257),
    'n_embd': ('d_model', 768),
    'n_layer': ('num_layers', 12),
    'n_head': ('num_heads', 12),
    'n_inner': ('d_ff', None),
    'n_positions': ('max_len', 1024),
    'layer_norm_epsilon': ('norm_eps', 1e-5),
    'resid_pdrop': ('dropout', 0.1),
    'tie_word_embeddings': ('tie_embeddings', True),
  },
  activation=(
    'activation_function',
    {'gelu_new': 'gelu_tanh', **PLAIN},
    'gelu_new',
  ),
  fixed={
    'scale_attn_weights': (True, (True,)),
    'scale_attn_by_inverse_layer_idx': (False, (False,)),
    'reorder_and_upcast_attn': (False, (False, True)),
    'add_cross_attention': (False, (False,)),
  },
  ours={'family': 'decoder'},
  outside={
    'embedding.token': 'transformer.wte',
    'embedding.position': 'transformer.wpe',
    'norm': 'transformer.ln_f',
    'head.table': 'lm_head',
  },
  layers='transformer.h.{}.',
  inside={
    'attention.query': 'attn.c_attn:0/3',
    'attention.key': 'attn.c_attn:1/3',
    'attention.value': 'attn.c_attn:2/3',
    'attention.out': 'attn.c_proj',
    'feed_forward.up': 'mlp.c_fc',
    'feed_forward.down': 'mlp.c_proj',
    'norm.attention': 'ln_1',
    'norm.feed_forward': 'ln_2',
  },
  turned=False,
  left=(
    r'transformer\.h\.\d+\.attn\.(masked_)?bias',
    r'lm_head\.weight',
  ),
)
