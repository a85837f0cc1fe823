"""Files of Hugging Face's: theirs are read, ours say what theirs said.

That `transformers` loads what is written is what hf_peers.py shows, where there
is torch; here what is written is read again.
"""

import json
import shutil

import flax.linen as nn
import hf_peers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_cli
import tokenizers
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from test_cli import refused, said

from shared_tfm import config as configs
from shared_tfm.compress import target
from shared_tfm.compress.convert import convert
from shared_tfm.compress.hugging_face import reading, settings, writing
from shared_tfm.data import tokenizers as data_tokenizers
from shared_tfm.errors import BadInput
from shared_tfm.infer.beam import beam_search
from shared_tfm.model import build

here, run, trained = test_cli.here, test_cli.run, test_cli.trained
every_model = pytest.mark.parametrize('name', hf_peers.MODELS)


@every_model
def test_what_is_read_says_what_theirs_said(name):
  config, params = reading.read(hf_peers.GOLDEN / name)
  said = hf_peers.ours(config, params)
  # Sums are in another order on other processors: 1.2e-5 has been seen.
  assert hf_peers.difference(said, hf_peers.golden(name)) < 2e-5
  assert hf_peers.difference(said, hf_peers.golden(name)) > 0  # it can differ


@every_model
def test_what_is_written_is_what_was_read(name, tmp_path):
  """The tensors that they wrote, under their names, and the same settings."""
  theirs = hf_peers.GOLDEN / name
  config, params = reading.read(theirs)
  told = writing.write(config, params, {}, tmp_path / 'out')
  kind = json.loads((theirs / 'config.json').read_text())['architectures'][0]
  assert told['class'] == kind.replace('Mistral', 'Llama')  # which it then is
  again, back = reading.read(tmp_path / 'out')
  if name == 'albert_pretraining':  # its two layers in a group are unrolled
    assert told['rows'] == 8
    return
  assert again.model == config.model
  jax.tree.map(np.testing.assert_array_equal, back, params)
  written = load_file(tmp_path / 'out' / 'model.safetensors')
  stored = load_file(theirs / 'model.safetensors')
  stored = {n: stored[n] for n in stored if n in written}
  for tensor, values in stored.items():
    np.testing.assert_array_equal(written[tensor], values)
  assert written.keys() == stored.keys()


def test_the_config_is_theirs():
  config, _ = reading.read(hf_peers.GOLDEN / 'albert_pretraining')
  model = config.model
  assert model.sharing.layer == '0,1,0,1,2,3,2,3'
  assert (model.num_layers, model.embed_dim, model.d_model) == (8, 8, 16)
  assert (model.head, model.num_classes) == ('tokens_classes', 2)
  assert model.activation == 'gelu_tanh'
  model = reading.config_of(hf_peers.GOLDEN / 'llama_tied').model
  assert (model.activation, model.use_bias) == ('geglu', True)
  assert (model.rope_theta, model.norm_eps) == (100.0, 0.01)
  assert (model.num_kv_heads, model.head_dim) == (2, 8)


def test_albert_groups_are_by_their_formula():
  """Which is none that our tables have a name for, where it comes out odd."""
  assert settings.groups(4, 2) == (0, 0, 1, 1)
  assert settings.groups(5, 2) == (0, 0, 0, 1, 1)
  given = {'model_type': 'albert', 'num_hidden_layers': 5}
  config = settings.config_of({**given, 'num_hidden_groups': 2}, '')
  assert config.model.sharing.layer == '0,0,0,1,1'


def test_t5_is_theirs_but_for_what_is_not_divided():
  """Its buckets; and its divisors, which are in our weights."""
  theirs = load_file(hf_peers.GOLDEN / 't5/model.safetensors')
  config, params = reading.read(hf_peers.GOLDEN / 't5')
  model = config.model
  assert (model.num_layers, model.num_decoder_layers) == (4, 2)
  assert (model.d_model, model.num_heads, model.head_dim) == (16, 2, 4)
  assert (model.relative_buckets, model.relative_distance) == (8, 10)
  assert (model.activation, model.tie_embeddings) == ('relu', True)
  at = 'decoder.block.0.layer.0.SelfAttention'
  query = params['stack']['rows']['attention']['query']['kernel'][0]
  np.testing.assert_array_equal(query.T, 2 * theirs[f'{at}.q.weight'])
  norm = theirs['decoder.final_layer_norm.weight']
  np.testing.assert_array_equal(params['norm']['scale'], norm / 4)
  table = theirs[f'{at}.relative_attention_bias.weight']
  np.testing.assert_array_equal(params['relative']['table'], table)

  config, params = reading.read(hf_peers.GOLDEN / 't5_v1_1')
  assert (config.model.activation, config.model.tie_embeddings) == (
    'geglu',
    False,
  )
  there = load_file(hf_peers.GOLDEN / 't5_v1_1/model.safetensors')
  norm = there['decoder.final_layer_norm.weight']
  np.testing.assert_array_equal(params['norm']['scale'], norm)


@pytest.mark.parametrize('name', ('t5', 't5_v1_1'))
def test_t5_writes_what_theirs_wrote(name):
  """Greedily, with what is kept of earlier tokens."""
  config, params = reading.read(hf_peers.GOLDEN / name)
  given = hf_peers.inputs('encoder_decoder')
  source = given['source_BS'], given['source_mask_BS']
  found, _ = beam_search(config, {'params': params}, *source, 0, -1, 8, 1, 0.0)
  theirs = hf_peers.greedy(name)
  np.testing.assert_array_equal(found[:, 0], theirs[:, 1:])
  assert name == 't5' or len(np.unique(theirs[:, 1:])) > 3


# What we have and they have not.

ENCODER = {
  'family': 'encoder',
  'norm_position': 'post',
  'embed_norm': True,
  'type_vocab_size': 2,
}


T5 = {
  'family': 'encoder_decoder',
  'position': 'relative',
  'norm': 'rmsnorm',
  'use_bias': False,
}


def made(**model):
  sizes = {'num_layers': 4, 'd_model': 16, 'num_heads': 2, 'max_len': 16}
  config = configs.cross({'model': {**sizes, 'vocab_size': 48, **model}})
  tokens = jnp.zeros((1, 16), jnp.int32)
  source = {}
  if config.model.family == 'encoder_decoder':
    source['source_BS'] = tokens
  shapes = jax.eval_shape(
    build(config).init, jax.random.key(0), tokens, **source
  )
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32),
    nn.unbox(shapes)['params'],
  )
  return config, params


@pytest.mark.slow
@pytest.mark.parametrize(
  ('model', 'kind', 'rows'),
  (
    ({**ENCODER, 'sharing': {'layer': 'all'}}, 'AlbertForMaskedLM', 1),
    (
      {**ENCODER, 'embed_dim': 8, 'sharing': {'layer': 'sequence:2'}},
      'AlbertForMaskedLM',
      2,
    ),
    ({**ENCODER, 'embed_dim': 8}, 'AlbertForMaskedLM', 4),
    ({**ENCODER, 'sharing': {'layer': 'cycle:2'}}, 'BertForMaskedLM', 4),
    (
      {**ENCODER, 'sharing': {'layer': 'all', 'norm': 'none'}},
      'BertForMaskedLM',
      4,
    ),
    ({**ENCODER, 'type_vocab_size': 0}, 'BertForMaskedLM', 4),
    ({'sharing': {'layer': 'all+none@2'}}, 'GPT2LMHeadModel', 4),
    (
      {
        **T5,
        'activation': 'swiglu',
        'tie_embeddings': False,
        'sharing': {'layer': 'all', 'across': 'attention'},
      },
      'T5ForConditionalGeneration',
      4,
    ),
    (
      {
        'position': 'rotary',
        'norm': 'rmsnorm',
        'activation': 'swiglu',
        'use_bias': False,
        'num_kv_heads': 1,
        'sharing': {'layer': 'middle_cycle:1'},
      },
      'LlamaForCausalLM',
      4,
    ),
  ),
)
def test_what_is_shared_is_stored_once_or_unrolled(model, kind, rows, tmp_path):
  config, params = made(**model)
  told = writing.write(config, params, {}, tmp_path / 'out')
  assert (told['class'], told['rows'], told['layers']) == (kind, rows, 4)
  again, back = reading.read(tmp_path / 'out')
  assert (
    hf_peers.difference(hf_peers.ours(again, back), said_by(config, params))
    < 1e-5
  )
  # A header, four bytes for each parameter, and no copy of any.
  header = told['bytes'] - 4 * told['parameters']
  assert 0 < header < 200 * len(load_file(tmp_path / 'out/model.safetensors'))


def said_by(config, params):
  given = hf_peers.inputs(config.model.family)
  if not config.model.type_vocab_size:
    given.pop('types_BL', None)
  found = build(config).apply({'params': params}, **given)
  return {'logits_0': np.asarray(found)}


@pytest.mark.parametrize(
  ('model', 'message'),
  (
    (
      {'family': 'encoder_decoder', 'embed_scale': 'width'},
      "no model of theirs computes this; t5 has no model.norm 'layernorm',"
      " model.embed_scale 'width', model.position 'learned', model.use_bias"
      ' True',
    ),
    (
      {**T5, 'sharing_decoder': {'kv_source': 'all'}},
      'no model of theirs computes this; t5 has no'
      " model.sharing_decoder.kv_source 'all'",
    ),
    (
      {**T5, 'd_ff_decoder': 8},
      'no model of theirs computes this; t5 has no model.d_ff_decoder 8',
    ),
    (
      {'d_ff': -1},
      'no model of theirs computes this; gpt2 has no model.d_ff -1',
    ),
    (
      {'norm': 'batchnorm'},
      "no model of theirs computes this; gpt2 has no model.norm 'batchnorm'",
    ),
    (
      {'sharing': {'kv_source': 'sequence:2'}},
      'no model of theirs computes this; gpt2 has no model.sharing.kv_source'
      " 'sequence:2'",
    ),
    (
      {'sharing': {'layer': 'all'}, 'depth': {'rule': 'act'}},
      "no model of theirs computes this; gpt2 has no model.depth.rule 'act',"
      ' model.depth.core 1',
    ),
    (
      ENCODER | {'norm_position': 'pre'},
      "no model of theirs computes this; bert has no model.norm_position 'pre'",
    ),
  ),
)
def test_what_they_cannot_compute(model, message, tmp_path):
  config, params = made(**model)
  with pytest.raises(BadInput) as raised:
    writing.write(config, params, {}, tmp_path / 'out')
  assert str(raised.value) == message
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('dtype', 'tolerance'), (('bfloat16', 8), ('float16', 11))
)
def test_narrow_types_take_half(dtype, tolerance, tmp_path):
  config, params = made()
  told = writing.write(config, params, {}, tmp_path / 'out', dtype)
  _, back = reading.read(tmp_path / 'out')
  for path, leaf in flatten_dict(back).items():
    there = flatten_dict(params)[path]
    assert leaf.dtype == np.float32
    assert np.abs(leaf - there).max() <= 2.0**-tolerance * np.abs(there).max()
  assert told['bytes'] < 2.5 * told['parameters']


# Files that are not what they should be.


@pytest.fixture
def theirs(tmp_path, request):
  """BERT's folder or another, its tensors, and a way to write them anew."""
  folder = tmp_path / 'theirs'
  name = getattr(request, 'param', 'bert')
  shutil.copytree(hf_peers.GOLDEN / name, folder)
  tensors = load_file(folder / 'model.safetensors')

  def write(**changed):
    content = {
      **tensors,
      **{n.replace('__', '.'): t for n, t in changed.items()},
    }
    content = {n: t for n, t in content.items() if t is not None}
    save_file(content, folder / 'model.safetensors')

  return folder, tensors, write


def error(folder):
  with pytest.raises(BadInput) as raised:
    reading.read(folder)
  text = str(raised.value)
  assert '\n' not in text
  return text.removeprefix(f'{folder}/')


def test_a_tensor_that_is_missing_or_too_many_or_of_another_shape(theirs):
  folder, tensors, write = theirs
  name = 'bert.encoder.layer.2.output.dense.bias'
  write(**{name: None})
  assert error(folder) == f'model.safetensors: no tensor {name} (1 missing)'
  write(**{name: np.zeros(7, np.float32)})
  assert error(folder) == (
    f'model.safetensors: {name} has shape (7,), and its config says (16,)'
  )
  write(**{'bert.encoder.layer.4.output.dense.bias': tensors[name]})
  assert error(folder) == (
    'model.safetensors has 1 tensors that no bert of this kind has:'
    ' bert.encoder.layer.4.output.dense.bias'
  )
  more = {
    f'bert.encoder.layer.3.{i}': np.zeros(1, np.float32) for i in range(5)
  }
  write(**more)
  assert error(folder).endswith(
    'layer.3.0, bert.encoder.layer.3.1, bert.encoder.layer.3.2, …'
  )


@pytest.mark.slow
@pytest.mark.parametrize('theirs', ('t5',), indirect=True)
def test_t5s_tensors_that_are_not_what_they_should_be(theirs):
  """Of its two stacks, and of a feed-forward network with a gate or none."""
  folder, tensors, write = theirs
  bias = 'encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
  write(**{bias: None})
  assert error(folder) == f'model.safetensors: no tensor {bias} (1 missing)'
  write(**{bias: np.zeros((8, 3), np.float32)})
  assert error(folder) == (
    f'model.safetensors: {bias} has shape (8, 3), and its config says (8, 2)'
  )
  stray = bias.replace('block.0', 'block.1')
  write(**{stray: tensors[bias]})
  assert error(folder) == (
    f'model.safetensors has 1 tensors that no t5 of this kind has: {stray}'
  )
  write()
  path = folder / 'config.json'
  there = json.loads(path.read_text())
  path.write_text(json.dumps({**there, 'feed_forward_proj': 'gated-gelu'}))
  assert error(folder).startswith(
    'model.safetensors: no tensor encoder.block.0.layer.1.DenseReluDense.wi_0'
  )
  path.write_text(json.dumps({**there, 'feed_forward_proj': 'gated-relu'}))
  assert error(folder) == (
    f"unknown feed_forward_proj in {path} 'gated-relu'; did you mean"
    " 'gated-gelu'?"
  )
  (folder / 'model.safetensors').write_bytes(b'cut')
  assert 'is no whole safetensors file' in error(folder)


@pytest.mark.parametrize('theirs', ('t5',), indirect=True)
def test_a_table_that_t5_has_twice_is_stored_once(theirs):
  """What the file says of its tables counts; see t5.py."""
  folder, tensors, write = theirs
  table = tensors['shared.weight']
  write(
    **{
      'lm_head.weight': table,
      'encoder.embed_tokens.weight': table,
      'decoder.embed_tokens.weight': table,
    }
  )
  config, params = reading.read(folder)
  assert config.model.tie_embeddings and 'head' not in params
  write(**{'lm_head.weight': table + 1})
  config, params = reading.read(folder)
  assert not config.model.tie_embeddings
  np.testing.assert_array_equal(params['head']['table']['kernel'].T, table + 1)
  np.testing.assert_array_equal(  # which is another question
    params['norm']['scale'], tensors['decoder.final_layer_norm.weight'] / 4
  )


@pytest.mark.parametrize('kept', (0, 4, 100, 20000))
def test_a_file_that_is_cut(theirs, kept):
  folder, *_ = theirs
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:kept])
  assert error(folder).startswith(
    'model.safetensors is no whole safetensors file: '
  )


def test_another_architecture(theirs):
  folder, *_ = theirs
  shutil.copy(hf_peers.GOLDEN / 'gpt2/model.safetensors', folder)
  assert error(folder) == (
    'model.safetensors is of another architecture: it has no tensor of bert,'
    ' but 40 such as transformer.h.0.attn.c_attn.bias'
  )
  save_file({}, folder / 'model.safetensors')
  assert error(folder) == 'model.safetensors has no tensors'


@pytest.mark.parametrize(
  ('given', 'message'),
  (
    (
      {'model_type': 'brt'},
      "unknown model_type in config.json 'brt'; did you mean 'bert'?",
    ),
    (
      {'architectures': ['BertModel']},
      "unknown architecture in config.json 'BertModel'; known:"
      ' BertForMaskedLM, BertForPreTraining, BertForSequenceClassification,'
      ' BertForQuestionAnswering',
    ),
    (
      {'hidden_act': 'mish'},
      "unknown hidden_act in config.json 'mish'; known: gelu, gelu_new,"
      ' gelu_pytorch_tanh, relu',
    ),
    (
      {'position_embedding_type': 'relative_key'},
      "config.json has position_embedding_type 'relative_key', and only"
      " 'absolute' can be read",
    ),
    (
      {'model_type': 'llama', 'attention_bias': True},
      'config.json has mlp_bias False, and another setting model.use_bias True:'
      ' there is one for both',
    ),
    (
      {'model_type': 'llama', 'rope_scaling': {'type': 'yarn', 'factor': 2.0}},
      "config.json has rope_type 'yarn', and only 'default' can be read",
    ),
    (
      {'model_type': 'mistral', 'sliding_window': 64},
      'config.json has sliding_window 64, and only None can be read',
    ),
    (
      {'model_type': 't5', 'architectures': ['T5EncoderModel']},
      "unknown architecture in config.json 'T5EncoderModel'; known:"
      ' T5ForConditionalGeneration',
    ),
    (
      {'model_type': 't5', 'relative_attention_num_buckets': 2},
      'relative positions need model.relative_buckets of at least 4, so that'
      ' each direction has two, got 2',
    ),
    (
      {'hidden_size': 15},
      'model.d_model must be divisible by num_heads unless head_dim is given,'
      ' got 15 and 2',
    ),
    ({'hidden_size': 'wide'}, "model.d_model is a int, got 'wide'"),
    (
      {'model_type': 'albert', 'num_hidden_groups': 0},
      'config.json has a setting of a wrong kind: division by zero',
    ),
    (
      {'model_type': ['bert']},
      "unknown model_type in config.json \"['bert']\"; did you mean 'bert'?",
    ),
    (
      {'architectures': 'BertForMaskedLM'},
      "unknown architecture in config.json 'B'; known: BertForMaskedLM,"
      ' BertForPreTraining, BertForSequenceClassification,'
      ' BertForQuestionAnswering',
    ),
  ),
)
def test_a_setting_that_is_none_of_ours(given, message):
  there = json.loads((hf_peers.GOLDEN / 'bert/config.json').read_text())
  if given.get('model_type') in ('albert', 'llama', 'mistral', 't5'):
    there = {}
  with pytest.raises(BadInput) as raised:
    settings.config_of({**there, **given}, 'config.json')
  assert str(raised.value) == message


def test_a_folder_that_lacks_a_file(theirs):
  folder, *_ = theirs
  (folder / 'model.safetensors').unlink()
  index = folder / 'model.safetensors.index.json'
  assert error(folder) == (
    f'{folder} has neither model.safetensors nor {index.name}'
  )
  index.write_text(json.dumps({'weight_map': {'a': 'part.safetensors'}}))
  assert error(folder) == (
    f'there is no {folder}/part.safetensors, which {index.name} names'
  )
  index.write_text('{')
  assert error(folder).startswith(f'{index.name} is no index: ')


def test_several_files_old_names_and_no_prefix(theirs):
  """As large checkpoints, and those of old, are stored."""
  folder, tensors, _ = theirs
  old = {
    name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
      'LayerNorm.bias', 'LayerNorm.beta'
    ): tensor
    for name, tensor in tensors.items()
  }
  names = sorted(old)
  parts = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
  for file, inside in parts.items():
    save_file({n: old[n] for n in inside}, folder / file)
  (folder / 'model.safetensors').unlink()
  listed = {name: file for file, inside in parts.items() for name in inside}
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'weight_map': listed})
  )
  expected = reading.read(hf_peers.GOLDEN / 'bert')[1]
  found = reading.read(folder)[1]
  assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))

  base = shutil.copytree(hf_peers.GOLDEN / 'gpt2', folder / 'gpt2')
  gpt2 = load_file(base / 'model.safetensors')
  bare = {n.removeprefix('transformer.'): tensor for n, tensor in gpt2.items()}
  bare['h.0.attn.bias'] = np.tril(np.ones((1, 1, 16, 16), bool))
  save_file(bare, base / 'model.safetensors')
  expected = reading.read(hf_peers.GOLDEN / 'gpt2')[1]
  found = reading.read(base)[1]
  assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


# The verbs.


@pytest.mark.slow
def test_theirs_to_a_run_and_back(here, capsys):
  """Imported under another scheme; what is exported is imported again."""
  theirs = str(hf_peers.GOLDEN / 'gpt2')
  table = said(capsys, 'convert', f'--from={theirs}', '--workdir=gpt2')
  assert 'every visit has the weights it had' in table
  told = json.loads(
    said(capsys, 'export', '--from=gpt2', '--to=huggingface', '--out=back')
  )
  assert told['class'] == 'GPT2LMHeadModel'
  expected = load_file(hf_peers.GOLDEN / 'gpt2/model.safetensors')
  written = load_file(here / 'back/model.safetensors')
  for name, tensor in written.items():
    np.testing.assert_array_equal(tensor, expected[name])
  assert written.keys() == expected.keys()

  said(capsys, 'convert', '--from=back', '--workdir=all', '--sharing=all')
  config, _ = reading.read(here / 'back')
  shared = json.loads((here / 'all/config.json').read_text())['model']
  assert shared['sharing']['layer'] == 'all'
  assert shared['d_model'] == config.model.d_model
  out = ('export', '--from=run', '--to=onnyx', '--out=new')
  assert refused(capsys, here, *out) == (
    "unknown --to 'onnyx'; did you mean 'onnx'?"
  )
  assert refused(capsys, here, *out[:2], '--to=stablehlo', '--out=back') == (
    'back must be new or empty'
  )


@pytest.mark.slow
def test_t5_shared_and_back(tmp_path):
  """At full rank its logits come back, and what is written has them, too."""
  config, params = reading.read(hf_peers.GOLDEN / 't5')
  golden = hf_peers.golden('t5')
  longer = ['--config.model.max_len=32']  # no table has rows for it
  shared = target.config_of(config, 'cycle:2+none@16 norm=none', longer)
  made = convert(config.model, params, {}, shared.model, None)
  found = hf_peers.ours(shared, made.params)
  assert hf_peers.difference(found, golden) < 1e-4
  own = target.config_of(shared, 'none', [])
  made = convert(shared.model, made.params, {}, own.model, None)
  told = writing.write(own, made.params, {}, tmp_path / 'out')
  assert told['class'] == 'T5ForConditionalGeneration'
  found = hf_peers.ours(*reading.read(tmp_path / 'out'))
  assert hf_peers.difference(found, golden) < 1e-4


@pytest.mark.slow
def test_their_tokenizer_and_what_tuning_costs(here, capsys):
  """A byte-level BPE as GPT-2 has it, whose one special is the last."""
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
  bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=['<|endoftext|>'],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  bpe.train_from_iterator([(here / 'text.txt').read_text()], trainer)
  config, params = made(vocab_size=300)
  writing.write(config, params, {}, here / 'theirs')
  bpe.save(str(here / 'theirs/tokenizer.json'))

  table = said(
    capsys,
    'convert',
    '--from=theirs',
    '--workdir=tuned',
    '--sharing=cycle:2',
    '--tune',
    '--config.data.source=text',
    '--config.data.path=text.txt',
    '--config.train.num_steps=2',
    '--config.train.batch_size=2',
  )
  known = json.loads((here / 'tuned/conversion.json').read_text())
  assert set(known['losses']) == {'donor', 'converted', 'tuned'}
  assert len({f'{loss:.6f}' for loss in known['losses'].values()}) == 3
  assert '|     tuned |' in table and 'tuned for 2 steps, 64 tokens' in table
  found = data_tokenizers.make('pretrained', [], 300, here / 'tuned')
  assert found.eos == bpe.token_to_id('<|endoftext|>') == 0
  text = 'every row\nof the bank, é'
  assert found.decode(found.encode(text)) == text
  assert found.encode('<|endoftext|>a')[0] == 0  # as theirs reads it
  with pytest.raises(BadInput, match='has no mask'):
    found.mask  # noqa: B018
  said(capsys, 'generate', '--workdir=tuned', '--prompt=a', '--tokens=2')

  (here / 'tuned/tokenizer.json').unlink()
  evaluated = 'evaluate', '--workdir=tuned'
  assert refused(capsys, here, *evaluated) == (
    'data.tokenizer pretrained needs tuned/tokenizer.json, which comes with the'
    ' weights'
  )
  (here / 'tuned/tokenizer.json').write_text('{}')
  assert 'is not a byte-level BPE' in refused(capsys, here, *evaluated)
