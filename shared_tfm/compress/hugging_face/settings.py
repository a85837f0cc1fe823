"""Their config.json as a config of ours, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from shared_tfm import config as configs
from shared_tfm.compress.hugging_face import t5
from shared_tfm.compress.hugging_face.bert import ALBERT, BERT
from shared_tfm.compress.hugging_face.family import Family
from shared_tfm.compress.hugging_face.gpt2 import GPT2
from shared_tfm.compress.hugging_face.llama import LLAMA, MISTRAL
from shared_tfm.compress.hugging_face.t5 import GATED, T5
from shared_tfm.config import Config, Model, ranges
from shared_tfm.errors import BadInput, need, unknown

FAMILIES = (ALBERT, BERT, GPT2, LLAMA, MISTRAL, T5, GATED)
_ROPE = 'rope_parameters'
# Which no config of ours knows.
_TOKENS = ('bos_token_id', 'eos_token_id', 'pad_token_id')
# What a model of theirs that is trained on reads, unless told otherwise.
_DATA: dict[str, dict[str, Any]] = {
  'decoder': {},
  'encoder': {},
  'encoder_decoder': {
    'task': {'name': 'translation'},
    'data': {'source': 'parallel'},
  },
}
# Fields of a model that change nothing where it has not what they are about.
_IDLE = (
  'core_ff',
  'core_dropout',
  'image_size',
  'patch_size',
  'channels',
)


def family_of(given: Mapping[str, Any], where: str) -> Family:
  """The family of a config.json.

  Raises:
    BadInput: it is none of those that are known, or its activation.
  """
  kind = given['model_type']
  kind = kind if isinstance(kind, str) else repr(kind)
  found = [family for family in FAMILIES if family.kind == kind]
  if not found:
    kinds = dict.fromkeys(family.kind for family in FAMILIES)
    raise unknown(f'model_type in {where}', kind, kinds)
  names = {n: family for family in found for n in family.activation[1]}
  key, _, default = found[0].activation
  name = given.get(key, default)
  if name not in names:
    raise unknown(f'{key} in {where}', name, names)
  return names[name]


def config_of(given: Mapping[str, Any], where: str) -> Config:
  """The config of a model of theirs.

  Args:
    given: the content of its config.json.
    where: that file, to be named.

  Raises:
    BadInput: it is of no known kind, or a setting means what no config says.
  """
  try:
    family = family_of(given, where)
    fields = _fields(family, _flat(given), where)
    return configs.cross({**_DATA[family.ours['family']], 'model': fields})
  except (TypeError, AttributeError, ZeroDivisionError) as error:
    raise BadInput(f'{where} has a setting of a wrong kind: {error}') from None


def _fields(
  family: Family, given: Mapping[str, Any], where: str
) -> dict[str, Any]:
  """What the settings say, as fields of a model."""
  fields: dict[str, Any] = {
    **family.ours,
    'head': _head(family, given, where),
  }
  for theirs, (default, accepted) in family.fixed.items():
    value = given.get(theirs, default)
    need(
      value in accepted,
      f'{where} has {theirs} {value!r}, and only {accepted[0]!r} can be read',
    )
  for theirs, (ours, default) in family.sizes.items():
    value = given.get(theirs, default)
    if isinstance(default, float) and isinstance(value, int):
      value = float(value)
    if value is None:
      value = 0  # derived, as it is there
    need(
      fields.setdefault(ours, value) == value,
      f'{where} has {theirs} {value!r}, and another setting model.{ours}'
      f' {fields[ours]!r}: there is one for both',
    )
  key, names, default = family.activation
  fields['activation'] = names[given.get(key, default)]
  if 'classes' in fields['head']:
    fields['num_classes'] = _classes(fields['head'], given)
  if family.kind == 'albert':
    fields |= _groups(given)
  return fields


def _flat(given: Mapping[str, Any]) -> dict[str, Any]:
  """Without the group of rotary settings, whatever its version."""
  flat = {**given}
  for group in ('rope_scaling', _ROPE):
    inside = flat.pop(group, None) or {}
    flat |= {'rope_type': inside['type']} if 'type' in inside else {}
    flat |= {n: value for n, value in inside.items() if n != 'type'}
  return flat


def _head(family: Family, given: Mapping[str, Any], where: str) -> str:
  """Which of our heads their class has."""
  names = {name: head for head, (name, _) in family.heads.items()}
  classes = given.get('architectures') or [family.heads['tokens'][0]]
  if classes[0] not in names:
    raise unknown(f'architecture in {where}', classes[0], names)
  return names[classes[0]]


def _classes(head: str, given: Mapping[str, Any]) -> int:
  if head == 'tokens_classes':
    return 2
  return len(given.get('id2label') or {}) or given.get('num_labels', 2)


def groups(layers: int, count: int) -> tuple[int, ...]:
  """The owner table of ALBERT's groups: by their formula, in their floats."""
  return tuple(int(i / (layers / count)) for i in range(layers))


def _groups(given: Mapping[str, Any]) -> dict[str, Any]:
  """ALBERT's number of visits, and which row each reads."""
  layers, inner = given.get('num_hidden_layers', 12), inner_of(given)
  table = tuple(
    group * inner + i
    for group in groups(layers, given.get('num_hidden_groups', 1))
    for i in range(inner)
  )
  spec = ','.join(map(str, table))
  if not any(table):
    spec = 'all'
  elif table == tuple(range(len(table))):
    spec = 'none'
  return {'num_layers': len(table), 'sharing': {'layer': spec}}


def scales_of(
  family: Family, model: Model, given: Mapping[str, Any]
) -> dict[str, float]:
  """By what weights of our modules are theirs multiplied, where they are."""
  return t5.scales(model, given) if family.kind == T5.kind else {}


def inner_of(given: Mapping[str, Any]) -> int:
  """How many layers a group of ALBERT's has."""
  return int(given.get('inner_group_num', 1))


def written(family: Family, model: Model, count: int) -> dict[str, Any]:
  """The config.json of a model.

  Args:
    family: that the model is to be of.
    model: ours.
    count: of stored rows.
  """
  made: dict[str, Any] = {
    'model_type': family.kind,
    'architectures': [family.heads[model.head][0]],
    **dict.fromkeys(_TOKENS),
  }
  made |= {n: getattr(model, ours) for n, (ours, _) in family.sizes.items()}
  key, known, _ = family.activation
  made[key] = next(n for n, ours in known.items() if ours == model.activation)
  made |= {n: accepted[0] for n, (_, accepted) in family.fixed.items()}
  if 'rope_theta' in made:
    inside = {n: made.pop(n) for n in ('rope_type', 'rope_theta')}
    made[_ROPE] = inside
    made['rope_theta'] = inside['rope_theta']  # as versions before 5 read it
  if family.kind == 'albert':
    made |= {'num_hidden_groups': count, 'inner_group_num': 1}
  if family.kind == 't5':
    made['scale_decoder_outputs'] = model.tie_embeddings
  if 'classes' in model.head:
    names = {str(i): f'LABEL_{i}' for i in range(model.num_classes)}
    made |= {
      'id2label': names,
      'label2id': {name: int(i) for i, name in names.items()},
    }
  return made


def misfits(family: Family, model: Model) -> list[str]:
  """What a family has no setting for: our fields, with their values.

  Args:
    family: of theirs.
    model: ours, its weights not shared.
  """
  if model.head not in family.heads:
    return [f'model.head {model.head!r}']
  reused = [
    f'model.{group}.{name} {spec!r}'
    for group in ('sharing', 'sharing_decoder')
    for name in ('kv_source', 'map_source')
    if (spec := getattr(getattr(model, group), name))
  ]
  if reused:
    return reused
  if model.d_ff < 0:
    return [f'model.d_ff {model.d_ff}']
  said, known = model, family.activation[1].values()
  if model.activation not in known:
    said = dataclasses.replace(model, activation=next(iter(known)))
  back = config_of(written(family, said, said.num_layers), '').model
  theirs = dict(ranges.leaves(dataclasses.asdict(plain(back)), 'model.'))
  return [
    f'{name} {value!r}'
    for name, value in ranges.leaves(dataclasses.asdict(plain(model)), 'model.')
    if value != theirs[name]
  ]


def plain(model: Model) -> Model:
  """The model without what changes no function of its weights."""
  blank = Model()
  drop = [
    'sharing',
    'sharing_decoder',
    'shared_gradient',
    'tables',
    'dropout',
    'dtype',
    'remat',
    'remat_group',
    'logits_mb',
    *_IDLE,
  ]
  if model.position != 'rotary':
    drop += ['rope_theta', 'rotary_fraction']
  if model.position != 'relative':
    drop += ['relative_buckets', 'relative_distance']
  if model.family != 'encoder_decoder':
    drop += ['tie_source']
  if 'classes' not in model.head:
    drop += ['num_classes', 'pool', 'pooler']
  if model.family == 'encoder':
    drop += ['head_bias']
  if not (model.experts.num_ff or model.experts.num_attention):
    drop += ['experts']
  kept = {name: getattr(blank, name) for name in drop}
  return dataclasses.replace(model, **kept)
