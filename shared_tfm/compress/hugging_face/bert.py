"""BERT (1810.04805) and ALBERT (1909.11942), as `transformers` has them."""

from shared_tfm.compress.hugging_face.family import PLAIN, Family

_SIZES = {
  'vocab_size': ('vocab_size', 30522),
  'hidden_size': ('d_model', 768),
  'num_hidden_layers': ('num_layers', 12),
  'num_attention_heads': ('num_heads', 12),
  'intermediate_size': ('d_ff', 3072),
  'max_position_embeddings': ('max_len', 512),
  'type_vocab_size': ('type_vocab_size', 2),
  'layer_norm_eps': ('norm_eps', 1e-12),
  'hidden_dropout_prob': ('dropout', 0.1),
}
_FIXED = {
  'position_embedding_type': ('absolute', ('absolute',)),
  'is_decoder': (False, (False,)),
  'add_cross_attention': (False, (False,)),
  'tie_word_embeddings': (True, (True,)),
}
_CLASSIFIER = {'classes.score': 'classifier'}
_OURS = {'family': 'encoder', 'norm_position': 'post', 'embed_norm': True}


def _embedding(at: str) -> dict[str, str]:
  return {
    'embedding.token': f'{at}.embeddings.word_embeddings',
    'embedding.position': f'{at}.embeddings.position_embeddings',
    'embedding.type': f'{at}.embeddings.token_type_embeddings',
    'embedding.norm': f'{at}.embeddings.LayerNorm',
    'spans.score': 'qa_outputs',
  }


BERT = Family(
  kind='bert',
  heads={
    'tokens': ('BertForMaskedLM', {}),
    'tokens_classes': ('BertForPreTraining', {}),
    'classes': ('BertForSequenceClassification', _CLASSIFIER),
    'spans': ('BertForQuestionAnswering', {}),
  },
  base='bert.',
  sizes=_SIZES,
  activation=('hidden_act', PLAIN, 'gelu'),
  fixed=_FIXED,
  ours=_OURS,
  outside={
    **_embedding('bert'),
    'head.project': 'cls.predictions.transform.dense',
    'head.norm': 'cls.predictions.transform.LayerNorm',
    'head.bias': 'cls.predictions.bias',
    'classes.pool': 'bert.pooler.dense',
    'classes.score': 'cls.seq_relationship',
  },
  layers='bert.encoder.layer.{}.',
  inside={
    'attention.query': 'attention.self.query',
    'attention.key': 'attention.self.key',
    'attention.value': 'attention.self.value',
    'attention.out': 'attention.output.dense',
    'norm.attention': 'attention.output.LayerNorm',
    'feed_forward.up': 'intermediate.dense',
    'feed_forward.down': 'output.dense',
    'norm.feed_forward': 'output.LayerNorm',
  },
  left=(
    r'bert\.embeddings\.position_ids',
    r'bert\.pooler\.dense\..*',
    r'cls\.predictions\..*',
    r'cls\.seq_relationship\..*',
  ),
)

ALBERT = Family(
  kind='albert',
  heads={
    'tokens': ('AlbertForMaskedLM', {}),
    'tokens_classes': ('AlbertForPreTraining', {}),
    'classes': ('AlbertForSequenceClassification', _CLASSIFIER),
    'spans': ('AlbertForQuestionAnswering', {}),
  },
  base='albert.',
  sizes={
    **_SIZES,
    'vocab_size': ('vocab_size', 30000),
    'embedding_size': ('embed_dim', 128),
    'hidden_size': ('d_model', 4096),
    'num_attention_heads': ('num_heads', 64),
    'intermediate_size': ('d_ff', 16384),
    'hidden_dropout_prob': ('dropout', 0.0),
  },
  activation=(
    'hidden_act',
    {'gelu_new': 'gelu_tanh', **PLAIN},
    'gelu_new',
  ),
  fixed=_FIXED,
  ours=_OURS,
  outside={
    **_embedding('albert'),
    'embedding.project': 'albert.encoder.embedding_hidden_mapping_in',
    'head.project': 'predictions.dense',
    'head.norm': 'predictions.LayerNorm',
    'head.bias': 'predictions.bias',
    'classes.pool': 'albert.pooler',
    'classes.score': 'sop_classifier.classifier',
  },
  layers='albert.encoder.albert_layer_groups.{}.albert_layers.{}.',
  inside={
    'attention.query': 'attention.query',
    'attention.key': 'attention.key',
    'attention.value': 'attention.value',
    'attention.out': 'attention.dense',
    'norm.attention': 'attention.LayerNorm',
    'feed_forward.up': 'ffn',
    'feed_forward.down': 'ffn_output',
    'norm.feed_forward': 'full_layer_layer_norm',
  },
  left=(
    r'albert\.embeddings\.position_ids',
    r'albert\.encoder\.embedding_hidden_mapping_in\..*',
    r'albert\.pooler\..*',
    r'predictions\..*',
    r'sop_classifier\.classifier\..*',
  ),
)
