"""Files of Hugging Face's, read and written: the golden ones, and the script.

Each lies in tests/golden/hf/NAME as `save_pretrained` wrote it, of a tiny model
with random weights, and beside it what the model says of some input. So
test_hugging_face.py can read them where there is no torch. With the extra
`peers` installed:

    python tests/hf_peers.py            compares both ways
    python tests/hf_peers.py --write    makes the golden files anew

The first prints two differences of logits: 'read', of ours with the weights of
theirs, and 'written', of theirs with the weights that we wrote, from those. It
fails if one is above TOLERANCE.
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from shared_tfm.compress.hugging_face import reading, writing
from shared_tfm.model import build

Arrays = dict[str, np.ndarray]

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'hf'
TOLERANCE = 1e-4
VOCAB, MAX_LEN = 48, 16
_BERT: dict[str, Any] = {
  'vocab_size': VOCAB,
  'hidden_size': 16,
  'num_hidden_layers': 4,
  'num_attention_heads': 2,
  'intermediate_size': 32,
  'max_position_embeddings': MAX_LEN,
  'type_vocab_size': 2,
}
_ALBERT = {**_BERT, 'embedding_size': 8}
_LLAMA: dict[str, Any] = {
  'vocab_size': VOCAB,
  'hidden_size': 16,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'intermediate_size': 32,
  'max_position_embeddings': MAX_LEN,
  'rms_norm_eps': 0.01,
  'rope_parameters': {'rope_type': 'default', 'rope_theta': 100.0},
}
_GPT2: dict[str, Any] = {
  'vocab_size': VOCAB,
  'n_embd': 16,
  'n_layer': 3,
  'n_head': 2,
  'n_positions': MAX_LEN,
  'bos_token_id': 0,
  'eos_token_id': 0,
}
_T5: dict[str, Any] = {
  'vocab_size': VOCAB,
  'd_model': 16,
  'd_kv': 4,
  'd_ff': 32,
  'num_layers': 4,
  'num_decoder_layers': 2,
  'num_heads': 2,
  'relative_attention_num_buckets': 8,
  'relative_attention_max_distance': 10,
  'n_positions': MAX_LEN,
}
# Theirs by class and settings. `stored` of some is the class that wrote the
# file, where it is the base model or has a head more.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
  'albert': ('AlbertForMaskedLM', _ALBERT),
  'albert_pretraining': (
    'AlbertForPreTraining',
    {**_ALBERT, 'num_hidden_groups': 2, 'inner_group_num': 2},
  ),
  'albert_spans': ('AlbertForQuestionAnswering', _ALBERT),
  'bert': ('BertForMaskedLM', _BERT),
  'bert_pretraining': ('BertForPreTraining', {**_BERT, 'layer_norm_eps': 0.01}),
  'bert_classes': (
    'BertForSequenceClassification',
    {**_BERT, 'num_labels': 3},
  ),
  'gpt2': ('GPT2LMHeadModel', _GPT2),
  'llama': ('LlamaForCausalLM', _LLAMA),
  'llama_tied': (
    'LlamaForCausalLM',
    {
      **_LLAMA,
      'tie_word_embeddings': True,
      'attention_bias': True,
      'mlp_bias': True,
      'hidden_act': 'gelu_pytorch_tanh',
    },
  ),
  't5': ('T5ForConditionalGeneration', _T5),
  't5_v1_1': (
    'T5ForConditionalGeneration',
    {
      **_T5,
      'feed_forward_proj': 'gated-gelu',
      'tie_word_embeddings': False,
    },
  ),
  'mistral': ('MistralForCausalLM', {**_LLAMA, 'sliding_window': None}),
}


def inputs(family: str) -> Arrays:
  """Three sequences: a full one, one padded behind, one with a hole.

  By the names of our arguments.
  """
  rng = np.random.default_rng(0)
  tokens_BL = rng.integers(VOCAB, size=(3, 12), dtype=np.int32)
  mask_BL = np.ones(tokens_BL.shape, bool)
  mask_BL[1, 9:] = False
  mask_BL[2, 3:5] = False
  made = {'tokens_BL': tokens_BL, 'mask_BL': mask_BL}
  if family == 'encoder':
    made['types_BL'] = rng.integers(2, size=tokens_BL.shape, dtype=np.int32)
  if family == 'encoder_decoder':
    source_BS = rng.integers(VOCAB, size=(3, 15), dtype=np.int32)
    made['source_BS'] = source_BS
    made['source_mask_BS'] = np.arange(15)[None] < np.array([[15], [11], [6]])
  return made


def ours(config: Any, params: Any) -> Arrays:
  """What our model says: logits by name."""
  given = inputs(config.model.family)
  call = jax.jit(build(config).apply)
  with jax.default_matmul_precision('highest'):
    said = call({'params': params}, **given)
  said = said if isinstance(said, tuple) else (said,)
  return {f'logits_{i}': np.asarray(x) for i, x in enumerate(said)}


def difference(said: Arrays, golden: Arrays) -> float:
  """The largest one, where there is no padding."""
  seen, largest = inputs('decoder')['mask_BL'], 0.0
  for name, there in golden.items():
    off = np.abs(said[name] - there)
    per_token = there.ndim == 3
    largest = max(largest, float((off[seen] if per_token else off).max()))
  return largest


def golden(name: str) -> Arrays:
  """What theirs said of `inputs`."""
  with np.load(GOLDEN / name / 'outputs.npz', allow_pickle=False) as file:
    return dict(file)


def greedy(name: str) -> np.ndarray:
  """What theirs wrote of the source, the token 0 in front."""
  path = GOLDEN / name / 'greedy.npy'
  return np.load(path, allow_pickle=False)


# --- The script, with torch --------------------------------------------------


def _theirs(name: str) -> Any:
  """A model of theirs, every parameter drawn."""
  import torch
  import transformers

  kind, settings = MODELS[name]
  made = getattr(transformers, kind)
  torch.manual_seed(0)
  model = made(made.config_class(**settings)).eval()
  if name == 't5_v1_1':  # they tie it at first, and not what they read
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
  rng = np.random.default_rng(1)
  for path, leaf in sorted(dict(model.named_parameters()).items()):
    scale = leaf.ndim == 1 and path.endswith('weight')
    # T5's scores are divided by nothing: larger ones would magnify rounding.
    size = 0.1 if path.endswith('.q.weight') else 0.3
    drawn = rng.normal(float(scale), size, leaf.shape).astype(np.float32)
    leaf.data.copy_(torch.from_numpy(drawn))
  return model


_NAMES = {  # ours to theirs
  'decoder': ('input_ids', 'attention_mask'),
  'encoder': ('input_ids', 'attention_mask', 'token_type_ids'),
  'encoder_decoder': (
    'decoder_input_ids',
    'decoder_attention_mask',
    'input_ids',
    'attention_mask',
  ),
}


def _given(model: Any) -> Any:
  """The inputs as theirs takes them."""
  import torch

  kinds = {'albert': 'encoder', 'bert': 'encoder', 't5': 'encoder_decoder'}
  family = kinds.get(model.config.model_type, 'decoder')
  pairs = zip(_NAMES[family], inputs(family).values(), strict=True)
  return {n: torch.from_numpy(array.astype(np.int64)) for n, array in pairs}


def _wrote(model: Any) -> np.ndarray:
  """What an encoder-decoder of theirs writes of the source."""
  given = _given(model)
  return model.generate(
    given['input_ids'],
    attention_mask=given['attention_mask'],
    decoder_start_token_id=0,
    eos_token_id=None,
    max_new_tokens=8,
    do_sample=False,
  ).numpy()


def _said(model: Any) -> Arrays:
  """What a model of theirs says: logits by name."""
  import torch

  given = _given(model)
  with torch.no_grad():
    out = model(**given)
  if hasattr(out, 'start_logits'):
    both = torch.stack([out.start_logits, out.end_logits], -1)
    return {'logits_0': both.numpy()}
  if hasattr(out, 'prediction_logits'):
    further = getattr(out, 'sop_logits', None)
    if further is None:
      further = out.seq_relationship_logits
    return {
      'logits_0': out.prediction_logits.numpy(),
      'logits_1': further.numpy(),
    }
  return {'logits_0': out.logits.numpy()}


def write() -> None:
  """Makes the golden files anew."""
  for name in MODELS:
    model, folder = _theirs(name), GOLDEN / name
    model.save_pretrained(folder)
    (folder / 'generation_config.json').unlink(missing_ok=True)
    np.savez_compressed(folder / 'outputs.npz', **_said(model))
    if model.config.is_encoder_decoder:
      np.save(folder / 'greedy.npy', _wrote(model))
    print(name, sum(f.stat().st_size for f in folder.iterdir()), 'bytes')


def check() -> Iterator[bool]:
  """Reads what they write, and has them read what we write."""
  import transformers

  print(f'{"files of":<20}{"read":>10}{"written":>10}')
  for name in MODELS:
    model = _theirs(name)
    said = _said(model)
    with tempfile.TemporaryDirectory() as home:
      there, here = pathlib.Path(home, 'theirs'), pathlib.Path(home, 'ours')
      model.save_pretrained(there)
      config, params = reading.read(there)
      read = difference(ours(config, params), said)
      told = writing.write(config, params, {}, here)
      kind = getattr(transformers, told['class'])
      back, info = kind.from_pretrained(here, output_loading_info=True)
      written = difference(_said(back.eval()), said)
      left = {k: v for k, v in info.items() if v}
    print(f'{name:<20}{read:>10.1e}{written:>10.1e}  {left or ""}')
    yield max(read, written) <= TOLERANCE and not left


def main() -> int:
  """Parses the one flag; the exit status."""
  parser = argparse.ArgumentParser(description='Files both ways.')
  parser.add_argument('--write', action='store_true', help='the golden files')
  if parser.parse_args().write:
    write()
    return 0
  return 0 if all(list(check())) else 1


if __name__ == '__main__':
  sys.exit(main())
