"""A network as StableHLO, which runs where this project is not.

`jax.export` keeps the program, with the batch's size and length open, and one
safetensors file keeps the weights, stored as they are shared:

    data = open('program.bin', 'rb').read()
    program = jax.export.deserialize(bytearray(data))
    weights = safetensors.numpy.load_file('weights.safetensors')
    logits = program.call(weights, {'tokens_BL': tokens})
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from shared_tfm import files
from shared_tfm.config import Config, Model
from shared_tfm.model import build

PROGRAM, WEIGHTS, ABOUT = 'program.bin', 'weights.safetensors', 'about.json'
PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(
  config: Config,
  params: Any,
  variables: Any,
  folder: Path,
  platforms: Sequence[str] = PLATFORMS,
) -> dict[str, Any]:
  """Writes the program, the weights, and what they take and give.

  Args:
    config: of the model.
    params: its parameters, unboxed.
    variables: its other collections.
    folder: new or empty.
    platforms: that the program is lowered for.

  Returns:
    What about.json says: 'inputs' and 'outputs' with shapes and dtypes,
    'parameters', 'platforms' and 'bytes' of each file.
  """
  tree = {'params': params, **variables}
  weights = {
    jax.tree_util.keystr(path, simple=True, separator='.'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  names, structure = list(weights), jax.tree.structure(tree)
  inputs = _inputs(config.model)

  def run(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
    variables = jax.tree.unflatten(structure, [weights[n] for n in names])
    return build(config).apply(variables, **inputs)

  shapes = {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    for name, leaf in weights.items()
  }
  program = jax.export.export(jax.jit(run), platforms=platforms)(shapes, inputs)
  about = {
    'inputs': {name: _said(leaf) for name, leaf in inputs.items()},
    'outputs': [_said(leaf) for leaf in program.out_avals],
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'platforms': list(platforms),
  }
  with files.made(folder) as part:
    files.replace(part / PROGRAM, bytes(program.serialize()))
    save_file(weights, part / WEIGHTS)
    about['bytes'] = {
      name: (part / name).stat().st_size for name in (PROGRAM, WEIGHTS)
    }
    files.replace(part / ABOUT, json.dumps(about, indent=2) + '\n')
  return about


def _inputs(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
  """What the model reads, by the names of its arguments; sizes are open."""
  shape = jax.export.symbolic_shape
  if model.family == 'vision':
    size = model.image_size
    images = shape(f'B, {size}, {size}, {model.channels}')
    return {'tokens_BL': jax.ShapeDtypeStruct(images, jnp.float32)}
  names = 'LS' if model.family == 'encoder_decoder' else 'L'
  scope = jax.export.SymbolicScope([f'{n} <= {model.max_len}' for n in names])
  read = shape('B, L', scope=scope)
  found = {'tokens_BL': jax.ShapeDtypeStruct(read, jnp.int32)}
  if model.family == 'encoder':
    found['mask_BL'] = jax.ShapeDtypeStruct(read, jnp.bool_)
    if model.type_vocab_size:
      found['types_BL'] = jax.ShapeDtypeStruct(read, jnp.int32)
  if model.family == 'encoder_decoder':
    source = shape('B, S', scope=scope)
    found['source_BS'] = jax.ShapeDtypeStruct(source, jnp.int32)
    found['source_mask_BS'] = jax.ShapeDtypeStruct(source, jnp.bool_)
  return found


def _said(leaf: Any) -> dict[str, Any]:
  return {'shape': [str(n) for n in leaf.shape], 'dtype': leaf.dtype.name}
