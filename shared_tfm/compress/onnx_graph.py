"""A network as ONNX, for runtimes that know nothing of JAX.

jax2onnx turns the program into a graph: the scan over depth is one Loop, which
picks rows from the stored weights, so that these lie in the file as they are
shared. Batch and length stay open. The graph is run before it is handed out,
and must say what the network says:

    session = onnxruntime.InferenceSession('model.onnx')
    (logits,) = session.run(None, {'tokens_BL': tokens})
"""

import dataclasses
import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from shared_tfm import files
from shared_tfm.compress import exported
from shared_tfm.config import Config, Model
from shared_tfm.errors import BadInput, need
from shared_tfm.sharing import opaque

GRAPH, WEIGHTS = 'model.onnx', 'weights.bin'
NEEDS = ('jax2onnx', 'onnx', 'onnxruntime')
TOLERANCE = 1e-4  # of the largest number that the network says


def write(
  config: Config, params: Any, variables: Any, folder: Path
) -> dict[str, Any]:
  """Writes the graph, its weights beside it, and what it takes and gives.

  It computes in float32, whatever the model's dtype.

  Args:
    config: of the model.
    params: its parameters, unboxed.
    variables: its other collections.
    folder: new or empty.

  Returns:
    What about.json says: as of `exported.write`, and the largest 'difference'
    of what the graph said to what the network did.

  Raises:
    BadInput: a library is missing, the converter has no form for this network,
      or what it made says something else.
  """
  missing = [name for name in NEEDS if not _is_there(name)]
  need(
    not missing,
    f'export --to=onnx needs {", ".join(missing)}: ./setup.sh onnx installs it',
  )
  import onnx

  model = dataclasses.replace(config.model, dtype='float32')
  config = dataclasses.replace(config, model=model)
  tree = {'params': params, **variables}
  inputs = exported.inputs_of(model)
  graph, outputs = _converted(config, tree, inputs)
  with files.made(folder) as part:
    onnx.save_model(
      graph, part / GRAPH, save_as_external_data=True, location=WEIGHTS
    )
    difference = _difference(config, tree, inputs, part / GRAPH)
    about = exported.told(inputs, outputs, params)
    about['difference'] = difference
    about['bytes'] = {
      name: (part / name).stat().st_size for name in (GRAPH, WEIGHTS)
    }
    files.replace(part / exported.ABOUT, json.dumps(about, indent=2) + '\n')
  return about


def _is_there(name: str) -> bool:
  return importlib.util.find_spec(name) is not None


def _converted(
  config: Config, variables: Any, inputs: Mapping[str, Any]
) -> tuple[Any, list[Any]]:
  """The graph with its weights, and the shapes of what it gives.

  The converter sees the traced program alone, and no module of Flax's, for
  which it has forms of its own.
  """
  import jax2onnx
  from jax2onnx.plugins import plugin_system as forms

  weights = exported.named(variables)
  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), weights
  )
  given = shapes, dict(inputs)
  leaves, tree = jax.tree.leaves(given), jax.tree.structure(given)

  def run(*leaves: Any) -> Any:
    return jax.tree.leaves(
      exported.run_of(config, variables)(*jax.tree.unflatten(tree, leaves))
    )

  closed = jax.make_jaxpr(run)(*leaves)
  program = jax.extend.core.jaxpr_as_fun(closed)
  outputs = closed.out_avals
  for name in ('jax2onnx', 'onnx_ir'):  # they warn of what is no matter here
    logging.getLogger(name).setLevel(logging.ERROR)
  try:
    forms.import_all_plugins()
    known = forms.PLUGIN_REGISTRY
    known[opaque.NAME] = known['remat2']  # both are what is inside
    graph = jax2onnx.to_onnx(
      lambda *leaves: tuple(program(*leaves)),
      leaves,
      model_name='shared_tfm',
      input_names=[*sorted(weights), *sorted(inputs)],
      output_names=[f'output_{i}' for i in range(len(outputs))],
    )
  except Exception as error:  # of many kinds
    first = str(error).partition('\n')[0]
    raise BadInput(
      f'jax2onnx has no ONNX for this network: {type(error).__name__}: {first}'
    ) from error
  _store(graph.graph, weights)
  _without_bool_choices(graph.graph)
  return graph, outputs


def _store(graph: Any, weights: Mapping[str, np.ndarray]) -> None:
  """Turns inputs that are weights into tensors that the graph holds."""
  from onnx import numpy_helper

  read = [given for given in graph.input if given.name not in weights]
  del graph.input[:]
  graph.input.extend(read)
  graph.initializer.extend(
    numpy_helper.from_array(leaf, name) for name, leaf in weights.items()
  )


def _without_bool_choices(graph: Any) -> None:
  """Says `Where` of booleans by And, Or and Not, and drops what nobody reads.

  ONNX has it for booleans, onnxruntime (1.32) has no kernel for that.
  """
  from onnx import TensorProto, helper

  known = {
    value.name: value.type.tensor_type.elem_type
    for value in (*graph.value_info, *graph.output)
  }
  nodes = []
  for node in graph.node:
    for attribute in node.attribute:
      if attribute.HasField('g'):
        _without_bool_choices(attribute.g)
    (out, *_) = node.output
    if node.op_type != 'Where' or known.get(out) != TensorProto.BOOL:
      nodes.append(node)
      continue
    holds, yes, no = node.input
    nodes += [
      helper.make_node('Not', [holds], [f'{out}_not']),
      helper.make_node('And', [holds, yes], [f'{out}_yes']),
      helper.make_node('And', [f'{out}_not', no], [f'{out}_no']),
      helper.make_node('Or', [f'{out}_yes', f'{out}_no'], [out]),
    ]
  del graph.node[:]
  graph.node.extend(nodes)
  read = _read(graph)
  kept = [tensor for tensor in graph.initializer if tensor.name in read]
  del graph.initializer[:]
  graph.initializer.extend(kept)


def _read(graph: Any) -> set[str]:
  """All names that a graph, or one inside it, reads."""
  found = {value.name for value in graph.output}
  for node in graph.node:
    found.update(node.input)
    for attribute in node.attribute:
      if attribute.HasField('g'):
        found |= _read(attribute.g)
  return found


def _difference(
  config: Config,
  variables: Any,
  inputs: Mapping[str, Any],
  path: Path,
) -> float:
  """How far what the graph says is from what the network does.

  Raises:
    BadInput: too far.
  """
  import onnxruntime

  given = example(config.model, inputs)
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 4  # what is fatal; the rest is raised
  try:
    session = onnxruntime.InferenceSession(str(path), options)
    said = session.run(None, given)
  except Exception as error:  # its own, which are no common class's
    raise BadInput(
      f'onnxruntime does not run what jax2onnx made: {error}'.replace('\n', ' ')
    ) from error
  with jax.default_matmul_precision('highest'):
    run = jax.jit(exported.run_of(config, variables))
    expected = jax.tree.leaves(run(exported.named(variables), given))
  pairs = list(zip(said, map(np.asarray, expected), strict=True))
  off = max(float(np.abs(a - b).max()) for a, b in pairs)
  most = max(float(np.abs(b).max()) for _, b in pairs)
  need(
    off <= TOLERANCE * max(1.0, most),
    f'what jax2onnx made says something else: it is off by {off:.3g} of'
    f' {most:.3g}',
  )
  return off


def example(model: Model, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Inputs of a small batch, drawn; the last places are padding.

  Args:
    model: that reads them.
    inputs: see `exported.inputs_of`.
  """
  rng, made = np.random.default_rng(0), {}
  length = min(7, model.max_len)
  for name, leaf in inputs.items():
    sizes = zip(leaf.shape, (3, length), strict=False)
    shape = [n if isinstance(n, int) else small for n, small in sizes]
    shape += leaf.shape[2:]
    if leaf.dtype == jnp.bool_:
      mask = np.ones(shape, bool)
      mask[:, 1 + length // 2 :] = False
      made[name] = mask
    elif leaf.dtype == jnp.int32:
      rows = model.type_vocab_size if name == 'types_BL' else model.vocab_size
      made[name] = rng.integers(rows, size=shape, dtype=np.int32)
    else:
      made[name] = rng.normal(size=shape).astype(np.float32)
  return made
