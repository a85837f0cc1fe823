"""A model of ours as a folder that `transformers` loads.

Groups of layers that share all weights are ALBERT's, and stored once. Whatever
else is shared is written unrolled, every layer's weights its own.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (makes bfloat16 a name that NumPy knows)
import numpy as np
from safetensors.numpy import save_file

from shared_tfm import files
from shared_tfm.compress.hugging_face import reading, settings, tensors
from shared_tfm.compress.hugging_face.bert import ALBERT
from shared_tfm.compress.hugging_face.family import Family
from shared_tfm.config import Config, Depth, Model
from shared_tfm.config.loops import is_plain
from shared_tfm.config.shapes import components
from shared_tfm.data.tokenizers import FILE
from shared_tfm.errors import BadInput
from shared_tfm.model.storage import layout
from shared_tfm.model.untied import spread, untied

DTYPES = ('float32', 'bfloat16', 'float16')


def write(
  config: Config,
  params: Any,
  variables: Any,
  folder: Path,
  dtype: str = 'float32',
  tokenizer: Path | None = None,
) -> dict[str, Any]:
  """Writes config.json and model.safetensors.

  Args:
    config: of the model.
    params: its parameters, unboxed.
    variables: its other collections.
    folder: new or empty.
    dtype: of what is stored, one of DTYPES.
    tokenizer: a folder that may have a tokenizer.json, to be copied.

  Returns:
    'class', theirs; 'rows' stored of 'layers'; 'parameters', and 'bytes'.

  Raises:
    BadInput: no class of theirs computes what the model does, and why.
  """
  model, params = _with_types(config.model, params)
  count = _groups(model)
  if not count:
    params = spread(model, params, variables)
    model, count = untied(model), model.num_layers
  if is_plain(model):  # the loops are visits like others
    model = dataclasses.replace(model, depth=Depth())
  family = _family(model, count)
  own = dataclasses.replace(config, model=model)
  made = settings.written(family, model, count) | {'torch_dtype': dtype}
  scales = settings.scales_of(family, model, made)
  links = tensors.links(family, own, scales=scales)
  found = tensors.scattered(links, params)
  if family is ALBERT and model.embed_dim == model.d_model:
    found |= reading.widening(model.d_model)
  found = {name: leaf.astype(dtype) for name, leaf in found.items()}
  with files.made(folder) as part:
    save_file(found, part / reading.WEIGHTS, metadata={'format': 'pt'})
    text = json.dumps(made, indent=2) + '\n'
    files.replace(part / reading.CONFIG, text)
    if tokenizer and (tokenizer / FILE).exists():
      shutil.copyfile(tokenizer / FILE, part / FILE)
  return {
    'class': made['architectures'][0],
    'rows': count,
    'layers': model.num_layers,
    'parameters': sum(leaf.size for leaf in found.values()),
    'bytes': (folder / reading.WEIGHTS).stat().st_size,
  }


def _with_types(model: Model, params: Any) -> tuple[Model, Any]:
  """The same function with segment types, which theirs always have."""
  if model.family == 'encoder' and not model.type_vocab_size:
    model = dataclasses.replace(model, type_vocab_size=1)
    none = {'embedding': np.zeros((1, model.embed_dim), np.float32)}
    params = {**params, 'embedding': {**params['embedding'], 'type': none}}
  return model, params


def _groups(model: Model) -> int:
  """The number of ALBERT's groups that share as the model does; 0: none do."""
  if model.family != 'encoder' or model.tables != 'fixed':
    return 0
  if model.quantise.weights != 'none':  # what is read is not what is stored
    return 0
  found = components(model)
  used = {found[leaf.name] for leaf in layout(model).values()}
  specs = [component.spec for component in used]
  whole = all(
    len(spec.levels) == 1 and spec.levels[0].full and not spec.within
    for spec in specs
  )
  tables = {component.owners[0] for component in used if component.owners}
  if not whole or len(tables) != 1:
    return 0
  (table,) = tables
  count = max(table) + 1
  alike = table == settings.groups(model.num_layers, count)
  return count if alike and count < model.num_layers else 0


def _family(model: Model, count: int) -> Family:
  """The family that computes what the model does.

  Raises:
    BadInput: there is none; what the nearest one lacks.
  """
  lacking = []
  for family in settings.FAMILIES:
    shares = count < model.num_layers or model.embed_dim != model.d_model
    if family.ours['family'] == model.family and (
      model.family != 'encoder' or (family is ALBERT) == shares
    ):
      lacking.append((family.kind, settings.misfits(family, model)))
      if not lacking[-1][1]:
        return family
  if not lacking:
    raise BadInput(
      f'no model of theirs is known for model.family {model.family}'
    )
  kind, fields = min(lacking, key=lambda pair: len(pair[1]))
  raise BadInput(
    f'no model of theirs computes this; {kind} has no {", ".join(fields)}'
  )
