"""Numbers equal to Hugging Face's: the peers, and the script that checks them.

A peer is a tiny model of `transformers` with random weights. Its weights and
outputs lie in tests/golden/peers_NAME.npz, so that test_peers.py can compare
ours with them where there is no torch. With the extra `peers` installed:

    python tests/peers.py            makes every peer anew and compares
    python tests/peers.py --write    makes the golden files anew

The first prints two differences for every peer, and fails if one of them is
above TOLERANCE: 'golden', of the peer from its file, and 'ours', of our model
from the peer.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.core.meta as meta
import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.model import build

Arrays = dict[str, np.ndarray]
Tree = dict[str, Any]

GOLDEN = pathlib.Path(__file__).parent / 'golden'
TOLERANCE = 1e-4
WEIGHTS = 'weights/'  # a golden file's prefix for the peer's own parameters


@dataclasses.dataclass(frozen=True)
class Peer:
  """A model of theirs, the config that makes it ours, and the way across."""

  theirs: str  # a class of `transformers`
  their_config: dict[str, Any]
  config: dict[str, Any]
  convert: Callable[[Arrays], Tree]  # their parameters to our tree


# --- Their parameters to ours ------------------------------------------------


def _dense(weights: Arrays, name: str) -> Tree:
  """A torch Linear, which stores (out, in)."""
  return _conv1d(weights, name) | {'kernel': weights[f'{name}.weight'].T}


def _conv1d(weights: Arrays, name: str) -> Tree:
  """GPT-2's Conv1D, which stores (in, out) as we do."""
  ours = {'kernel': weights[f'{name}.weight']}
  if f'{name}.bias' in weights:
    ours['bias'] = weights[f'{name}.bias']
  return ours


def _norm(weights: Arrays, name: str) -> Tree:
  ours = {'scale': weights[f'{name}.weight']}
  if f'{name}.bias' in weights:
    ours['bias'] = weights[f'{name}.bias']
  return ours


def _table(weights: Arrays, name: str) -> Tree:
  return {'embedding': weights[f'{name}.weight']}


def _rows(
  weights: Arrays, name: str, layer: Callable[[Arrays], Tree]
) -> dict[str, Tree]:
  """The bank: `name`.0, `name`.1, ... stacked on the owner axis."""
  rows: list[Tree] = []
  while inside := _inside(weights, f'{name}.{len(rows)}.'):
    rows.append(layer(inside))
  return {'rows': jax.tree.map(lambda *leaves: np.stack(leaves), *rows)}


def _inside(weights: Arrays, prefix: str) -> Arrays:
  return {
    name.removeprefix(prefix): leaf
    for name, leaf in weights.items()
    if name.startswith(prefix)
  }


def _bert_embedding(weights: Arrays, name: str) -> Tree:
  return {
    'token': _table(weights, f'{name}.word_embeddings'),
    'position': _table(weights, f'{name}.position_embeddings'),
    'type': _table(weights, f'{name}.token_type_embeddings'),
    'norm': _norm(weights, f'{name}.LayerNorm'),
  }


def _bert_head(weights: Arrays, bias: str, transform: str) -> Tree:
  return {
    'project': _dense(weights, f'{transform}dense'),
    'norm': _norm(weights, f'{transform}LayerNorm'),
    'bias': weights[bias],
  }


def _bert(weights: Arrays) -> Tree:
  return {
    'embedding': _bert_embedding(weights, 'bert.embeddings'),
    'stack': _rows(weights, 'bert.encoder.layer', _bert_layer),
    'head': _bert_head(
      weights, 'cls.predictions.bias', 'cls.predictions.transform.'
    ),
  }


def _bert_layer(weights: Arrays) -> Tree:
  return {
    'attention': {
      'query': _dense(weights, 'attention.self.query'),
      'key': _dense(weights, 'attention.self.key'),
      'value': _dense(weights, 'attention.self.value'),
      'out': _dense(weights, 'attention.output.dense'),
    },
    'feed_forward': {
      'up': _dense(weights, 'intermediate.dense'),
      'down': _dense(weights, 'output.dense'),
    },
    'norm': {
      'attention': _norm(weights, 'attention.output.LayerNorm'),
      'feed_forward': _norm(weights, 'output.LayerNorm'),
    },
  }


def _albert(weights: Arrays) -> Tree:
  embedding = _bert_embedding(weights, 'albert.embeddings')
  widen = _dense(weights, 'albert.encoder.embedding_hidden_mapping_in')
  groups = 'albert.encoder.albert_layer_groups'
  return {
    'embedding': embedding | {'project': widen},
    'stack': _rows(weights, groups, _albert_layer),
    'head': _bert_head(weights, 'predictions.bias', 'predictions.'),
  }


def _albert_layer(group: Arrays) -> Tree:
  """A group of one layer; row g of our bank is their group g."""
  weights = _inside(group, 'albert_layers.0.')
  return {
    'attention': {
      'query': _dense(weights, 'attention.query'),
      'key': _dense(weights, 'attention.key'),
      'value': _dense(weights, 'attention.value'),
      'out': _dense(weights, 'attention.dense'),
    },
    'feed_forward': {
      'up': _dense(weights, 'ffn'),
      'down': _dense(weights, 'ffn_output'),
    },
    'norm': {
      'attention': _norm(weights, 'attention.LayerNorm'),
      'feed_forward': _norm(weights, 'full_layer_layer_norm'),
    },
  }


def _gpt2(weights: Arrays) -> Tree:
  return {
    'embedding': {
      'token': _table(weights, 'transformer.wte'),
      'position': _table(weights, 'transformer.wpe'),
    },
    'stack': _rows(weights, 'transformer.h', _gpt2_layer),
    'norm': _norm(weights, 'transformer.ln_f'),
  }


def _gpt2_layer(weights: Arrays) -> Tree:
  fused = _conv1d(weights, 'attn.c_attn')  # query, key, value side by side
  thirds = {name: np.split(leaf, 3, axis=-1) for name, leaf in fused.items()}
  query, key, value = (
    {name: parts[i] for name, parts in thirds.items()} for i in range(3)
  )
  return {
    'attention': {
      'query': query,
      'key': key,
      'value': value,
      'out': _conv1d(weights, 'attn.c_proj'),
    },
    'feed_forward': {
      'up': _conv1d(weights, 'mlp.c_fc'),
      'down': _conv1d(weights, 'mlp.c_proj'),
    },
    'norm': {
      'attention': _norm(weights, 'ln_1'),
      'feed_forward': _norm(weights, 'ln_2'),
    },
  }


def _llama(weights: Arrays) -> Tree:
  return {
    'embedding': {'token': _table(weights, 'model.embed_tokens')},
    'stack': _rows(weights, 'model.layers', _llama_layer),
    'norm': _norm(weights, 'model.norm'),
    'head': {'table': _dense(weights, 'lm_head')},
  }


def _llama_layer(weights: Arrays) -> Tree:
  return {
    'attention': {
      'query': _dense(weights, 'self_attn.q_proj'),
      'key': _dense(weights, 'self_attn.k_proj'),
      'value': _dense(weights, 'self_attn.v_proj'),
      'out': _dense(weights, 'self_attn.o_proj'),
    },
    'feed_forward': {
      'up': _dense(weights, 'mlp.up_proj'),
      'gate': _dense(weights, 'mlp.gate_proj'),
      'down': _dense(weights, 'mlp.down_proj'),
    },
    'norm': {
      'attention': _norm(weights, 'input_layernorm'),
      'feed_forward': _norm(weights, 'post_attention_layernorm'),
    },
  }


# --- The peers ---------------------------------------------------------------

VOCAB, MAX_LEN = 48, 16


def _albert_peer(groups: int, spec: str, eps: float) -> Peer:
  return Peer(
    theirs='AlbertForMaskedLM',
    their_config={
      'vocab_size': VOCAB,
      'embedding_size': 8,
      'hidden_size': 16,
      'num_hidden_layers': 4,
      'num_hidden_groups': groups,
      'num_attention_heads': 2,
      'intermediate_size': 32,
      'max_position_embeddings': MAX_LEN,
      'type_vocab_size': 2,
      'hidden_act': 'gelu_new',
      'layer_norm_eps': eps,
    },
    config={
      'family': 'encoder',
      'num_layers': 4,
      'd_model': 16,
      'num_heads': 2,
      'd_ff': 32,
      'vocab_size': VOCAB,
      'embed_dim': 8,
      'max_len': MAX_LEN,
      'type_vocab_size': 2,
      'activation': 'gelu_tanh',
      'norm_eps': eps,
      'norm_position': 'post',
      'embed_norm': True,
      'sharing': {'layer': spec},
    },
    convert=_albert,
  )


# Some settings are not the published ones: an eps or a theta large enough for
# its place to be seen, and heads that are wider than their share of d_model.
PEERS = {
  'albert': _albert_peer(groups=1, spec='all', eps=1e-12),
  'albert_groups': _albert_peer(groups=2, spec='sequence:2', eps=0.01),
  'bert': Peer(
    theirs='BertForMaskedLM',
    their_config={
      'vocab_size': VOCAB,
      'hidden_size': 16,
      'num_hidden_layers': 3,
      'num_attention_heads': 2,
      'intermediate_size': 32,
      'max_position_embeddings': MAX_LEN,
      'type_vocab_size': 2,
      'hidden_act': 'gelu',
      'layer_norm_eps': 1e-12,
    },
    config={
      'family': 'encoder',
      'num_layers': 3,
      'd_model': 16,
      'num_heads': 2,
      'd_ff': 32,
      'vocab_size': VOCAB,
      'max_len': MAX_LEN,
      'type_vocab_size': 2,
      'activation': 'gelu',
      'norm_eps': 1e-12,
      'norm_position': 'post',
      'embed_norm': True,
    },
    convert=_bert,
  ),
  'gpt2': Peer(
    theirs='GPT2LMHeadModel',
    their_config={
      'vocab_size': VOCAB,
      'n_embd': 16,
      'n_layer': 3,
      'n_head': 2,
      'n_inner': 32,
      'n_positions': MAX_LEN,
      'activation_function': 'gelu_new',
      'layer_norm_epsilon': 1e-5,
      'bos_token_id': 0,
      'eos_token_id': 0,
    },
    config={
      'family': 'decoder',
      'num_layers': 3,
      'd_model': 16,
      'num_heads': 2,
      'd_ff': 32,
      'vocab_size': VOCAB,
      'max_len': MAX_LEN,
      'activation': 'gelu_tanh',
      'norm_eps': 1e-5,
    },
    convert=_gpt2,
  ),
  'llama': Peer(
    theirs='LlamaForCausalLM',
    their_config={
      'vocab_size': VOCAB,
      'hidden_size': 16,
      'num_hidden_layers': 3,
      'num_attention_heads': 4,
      'num_key_value_heads': 2,
      'head_dim': 8,
      'intermediate_size': 32,
      'max_position_embeddings': MAX_LEN,
      'hidden_act': 'silu',
      'rms_norm_eps': 0.01,
      'rope_parameters': {'rope_type': 'default', 'rope_theta': 100.0},
      'tie_word_embeddings': False,
    },
    config={
      'family': 'decoder',
      'num_layers': 3,
      'd_model': 16,
      'num_heads': 4,
      'num_kv_heads': 2,
      'head_dim': 8,
      'd_ff': 32,
      'vocab_size': VOCAB,
      'max_len': MAX_LEN,
      'activation': 'swiglu',
      'norm': 'rmsnorm',
      'norm_eps': 0.01,
      'position': 'rotary',
      'rope_theta': 100.0,
      'use_bias': False,
      'tie_embeddings': False,
    },
    convert=_llama,
  ),
}


# --- Running both ------------------------------------------------------------


def inputs(encoder: bool) -> Arrays:
  """Three sequences: a full one, one padded behind, one with a hole.

  The hole hides positions that a decoder would otherwise see.
  """
  rng = np.random.default_rng(0)
  tokens_BL = rng.integers(VOCAB, size=(3, 12), dtype=np.int32)
  mask_BL = np.ones(tokens_BL.shape, bool)
  mask_BL[1, 9:] = False
  mask_BL[2, 3:5] = False
  made = {'tokens': tokens_BL, 'mask': mask_BL}
  if encoder:
    made['types'] = rng.integers(2, size=tokens_BL.shape, dtype=np.int32)
  return made


def run_theirs(peer: Peer) -> Arrays:
  """The peer with random weights: a golden file's content. Needs torch.

  Every parameter is drawn anew, since theirs start with biases of zero and
  scales of one, which may be swapped unseen.
  """
  import torch
  import transformers

  kind = getattr(transformers, peer.theirs)
  model = kind(kind.config_class(**peer.their_config)).eval()
  rng = np.random.default_rng(1)
  weights = dict(sorted(model.named_parameters()))
  for name, leaf in weights.items():
    scale = leaf.ndim == 1 and name.endswith('weight')
    drawn = rng.normal(float(scale), 0.3, leaf.shape).astype(np.float32)
    leaf.data.copy_(torch.from_numpy(drawn))
  given = inputs(peer.config['family'] == 'encoder')
  names = {
    'tokens': 'input_ids',
    'mask': 'attention_mask',
    'types': 'token_type_ids',
  }
  theirs = {
    names[name]: torch.from_numpy(array.astype(np.int64))
    for name, array in given.items()
  }
  with torch.no_grad():
    outputs = {
      'hidden': model.base_model(**theirs).last_hidden_state.numpy(),
      'logits': model(**theirs).logits.numpy(),
    }
  copies = {WEIGHTS + n: w.detach().numpy() for n, w in weights.items()}
  return copies | given | outputs


def our_run(config: dict[str, Any]) -> Callable[[Tree, Arrays], Arrays]:
  """Our model: from parameters and a golden file's inputs to its outputs."""
  model = build({'model': config})

  @jax.jit
  def outputs(params: Tree, *given: Any) -> Any:
    return {
      'hidden': model.apply({'params': params}, *given, method='hidden'),
      'logits': model.apply({'params': params}, *given),
    }

  def run(params: Tree, golden: Arrays) -> Arrays:
    given = [golden.get(name) for name in ('tokens', 'mask', 'types')]
    with jax.default_matmul_precision('highest'):
      return jax.tree.map(np.asarray, outputs(params, *given))

  return run


def init_shapes(config: dict[str, Any]) -> Tree:
  """Our own parameters, as shapes: what `convert` must produce."""
  init = build({'model': config}).init
  tokens = jnp.zeros((1, MAX_LEN), jnp.int32)
  boxes = jax.eval_shape(init, jax.random.key(0), tokens)['params']
  return jax.tree.map(lambda leaf: leaf.shape, meta.unbox(boxes))


def converted(peer: Peer, golden: Arrays) -> Tree:
  """A golden file's weights as our parameters."""
  return peer.convert(_inside(golden, WEIGHTS))


def difference(outputs: Arrays, golden: Arrays) -> float:
  """The largest one of any output, where there is no padding; NaN if any is."""
  seen = golden['mask']
  return _largest(
    (outputs[name][seen], golden[name][seen]) for name in ('hidden', 'logits')
  )


def _largest(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
  return float(np.max([np.abs(a - 1.0 * b).max() for a, b in pairs]))


def load(name: str) -> Arrays:
  """The golden file of a peer."""
  with np.load(GOLDEN / f'peers_{name}.npz', allow_pickle=False) as file:
    return dict(file)


# --- The script --------------------------------------------------------------


def write() -> None:
  """Makes the golden files anew."""
  GOLDEN.mkdir(exist_ok=True)
  for name, peer in PEERS.items():
    path = GOLDEN / f'peers_{name}.npz'
    np.savez_compressed(path, allow_pickle=False, **run_theirs(peer))
    print(f'{path.name:<26}{path.stat().st_size:>8} bytes')


def check() -> Iterator[bool]:
  """Makes every peer anew; whether it, and ours, are what they should be."""
  print(f'{"peer":<16}{"golden":>10}{"ours":>10}')
  for name, peer in PEERS.items():
    fresh = run_theirs(peer)
    golden = _changed(fresh, load(name))
    outputs = our_run(peer.config)(converted(peer, fresh), fresh)
    ours = difference(outputs, fresh)
    print(f'{name:<16}{golden:>10.1e}{ours:>10.1e}')
    yield golden <= TOLERANCE and ours <= TOLERANCE


def _changed(fresh: Arrays, golden: Arrays) -> float:
  """The largest difference of any array; infinite if one has another shape."""
  shapes = [{n: a.shape for n, a in d.items()} for d in (fresh, golden)]
  if shapes[0] != shapes[1]:
    return float('inf')
  return _largest((fresh[name], array) for name, array in golden.items())


def main() -> int:
  """Parses the one flag; the exit status."""
  parser = argparse.ArgumentParser(description='Our numbers and theirs.')
  parser.add_argument('--write', action='store_true', help='the golden files')
  if parser.parse_args().write:
    write()
    return 0
  return 0 if all(list(check())) else 1


if __name__ == '__main__':
  sys.exit(main())
