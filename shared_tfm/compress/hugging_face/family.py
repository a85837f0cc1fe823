"""What is known of a family of their models."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Their names of activations, the one that is written first.
PLAIN = {
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'relu': 'relu',
}
GATED = {
  'silu': 'swiglu',
  'swish': 'swiglu',
  'gelu_pytorch_tanh': 'geglu',
  'gelu_new': 'geglu',
}


@dataclasses.dataclass(frozen=True)
class Family:
  """A `model_type` of theirs.

  Modules are named without what our leaves are called: a kernel is a `weight`,
  an embedding and a norm's scale are, a bias is a `bias`. A tensor that is no
  module's own, such as 'head.bias', has its whole name.

  Attributes:
    kind: their `model_type`.
    heads: their class for each of our heads, and what it names otherwise.
    base: what their base model's tensors begin with; a file may leave it out.
    sizes: their setting to (our field of `model`, their default).
    activation: their setting to what it may say, by our names; and its default.
    fixed: their settings that we have in one form only: to their default, and
      to the values that mean this form, the first of which is written.
    ours: our fields that every such model has; others have our defaults.
    outside: our modules to theirs.
    layers: what the names of a row's modules begin with, {} for its number.
    inside: our modules of a layer to theirs; 'name:i/n' is the i-th of n that
      lie side by side in one.
    encoder: the same two of an encoder-decoder's encoder.
    turned: whether their linear maps store (out, in), as torch.nn.Linear does.
    left: patterns of tensors that are copies, constants or of other heads.
  """

  kind: str
  heads: Mapping[str, tuple[str, Mapping[str, str]]]
  base: str
  sizes: Mapping[str, tuple[str, Any]]
  activation: tuple[str, Mapping[str, str], str]
  fixed: Mapping[str, tuple[Any, tuple[Any, ...]]]
  ours: Mapping[str, Any]
  outside: Mapping[str, str]
  layers: str
  inside: Mapping[str, str]
  encoder: tuple[str, Mapping[str, str]] = ('', {})
  turned: bool = True
  left: tuple[str, ...] = ()
