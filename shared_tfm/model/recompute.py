"""What the backward pass recomputes of a visit, `model.remat`.

    none  what costs next to nothing: data movement, and arithmetic on elements;
          kept are products (of XLA's attention the scores, too), sums, what
          fused attention leaves behind, and masks of dropout
    dots  what is cheap: results of matrix products are kept, but of attention
          only the mixed values, whose size is linear in the length
    full  the whole layer: only its input is kept
    auto  as dots; a training run takes what fits, see train/remat.py

No policy ever keeps a picked weight: the pick happens inside what is
recomputed, and a copy of it per layer would undo what sharing saves.
"""

from collections.abc import Callable
from typing import Any

import jax

from shared_tfm.layers import dot, grouped
from shared_tfm.sharing import opaque

# Primitives that move, convert or combine what is stored. A picked weight
# reaches the layer's products through these alone, so a policy that recomputes
# them never keeps one.
_MOVES = (
  'bitcast_convert_type',
  'broadcast_in_dim',
  'concatenate',
  'convert_element_type',
  'copy',
  'dynamic_slice',
  'gather',
  'pad',
  'reshape',
  'slice',
  'split',
  'squeeze',
  opaque.NAME,  # what combines stored weights
  'transpose',
)
# Primitives that work on each element by itself, which a compiler fuses with
# what reads them; to be kept, each would be stored for every visit. Among them
# is what ReLU consists of. A mask of dropout is made by 'lt', and costly.
_ARITHMETIC = (
  *('abs', 'add', 'add_any', 'clamp', 'cos', 'custom_jvp_call', 'div', 'erf'),
  *('erfc', 'exp', 'exp2', 'expm1', 'gt', 'integer_pow', 'iota', 'log'),
  *('log1p', 'logistic', 'max', 'min', 'mul', 'neg', 'pow', 'reduce_precision'),
  *('rsqrt', 'select_n', 'sign', 'sin', 'sqrt', 'square', 'sub', 'tanh'),
)
_CHEAP = frozenset((*_MOVES, *_ARITHMETIC))

INPUT = 'input'  # what a policy knows a layer's input by
NOTHING = jax.checkpoint_policies.nothing_saveable


def _costly(primitive: Any, *_: Any, **__: Any) -> bool:
  return primitive.name not in _CHEAP


POLICIES: dict[str, Callable[..., bool]] = {
  'none': _costly,
  'dots': jax.checkpoint_policies.save_only_these_names(
    dot.PRODUCTS, grouped.PRODUCTS, INPUT
  ),
  'full': jax.checkpoint_policies.save_only_these_names(INPUT),
}
POLICIES['auto'] = POLICIES['dots']


def remat(body: Any, policy: Callable[..., bool]) -> Any:
  """`body`, of which the backward pass keeps what the policy says."""
  return jax.checkpoint(body, policy=policy, prevent_cse=False)
