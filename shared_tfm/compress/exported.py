"""A network as StableHLO, which runs where this project is not.

`jax.export` keeps the program, with the batch's size and length open, and one
safetensors file keeps the weights, stored as they are shared:

    data = open('program.bin', 'rb').read()
    program = jax.export.deserialize(bytearray(data))
    weights = safetensors.numpy.load_file('weights.safetensors')
    logits = program.call(weights, {'tokens_BL': tokens})
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
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
  weights, inputs = named(tree), inputs_of(config.model)
  program = jax.export.export(
    jax.jit(run_of(config, tree)), platforms=platforms
  )(
    jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), weights
    ),
    inputs,
  )
  about = {
    **told(inputs, program.out_avals, params),
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


def named(tree: Any) -> dict[str, np.ndarray]:
  """All that a network has learned, a tree of collections, by dotted path."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def run_of(config: Config, tree: Any) -> Callable[..., Any]:
  """The network as a function of `named(tree)`, or the like, and its inputs."""
  names, structure = list(named(tree)), jax.tree.structure(tree)
  model = dataclasses.replace(config.model, attention_kernel='xla')
  config = dataclasses.replace(config, model=model)  # for every machine

  def run(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
    variables = jax.tree.unflatten(structure, [weights[n] for n in names])
    return build(config).apply(variables, **inputs)

  return run


def told(
  inputs: Mapping[str, Any], outputs: Any, params: Any
) -> dict[str, Any]:
  """What about.json says of every format."""
  return {
    'inputs': {name: _said(leaf) for name, leaf in inputs.items()},
    'outputs': [_said(leaf) for leaf in outputs],
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
  }


def inputs_of(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
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
