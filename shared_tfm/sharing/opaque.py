"""Functions whose inside no recomputation policy sees.

A policy of `jax.checkpoint` is asked about every primitive, and looks for them
inside whatever has an inside: a call, a loop, a function with a gradient rule
of its own. Were the products and sums that make a weight out of stored parts
visible, a policy that keeps products would keep a copy of the weight for every
layer. So they are one primitive of their own, which the policies in
model/recompute.py count among the movements.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

NAME = 'combine'  # the primitive's

_combine = core.Primitive(NAME)


def opaque(function: Callable[..., jax.Array], *operands: Any) -> jax.Array:
  """`function(*operands)`, one primitive to whoever looks at the program.

  Args:
    function: of arrays, pure, with one array as its result.
    operands: trees of arrays, which gradients flow to.
  """
  jaxpr = jax.make_jaxpr(function)(*operands)
  made: jax.Array = _combine.bind(*jax.tree.leaves(operands), jaxpr=jaxpr)
  return made


def _run(*operands: Any, jaxpr: Any) -> Any:
  return core.jaxpr_as_fun(jaxpr)(*operands)[0]


def _jvp(primals: Any, tangents: Any, *, jaxpr: Any) -> Any:
  """What is differentiated shows its inside, but needs the operands alone."""
  function = functools.partial(_run, jaxpr=jaxpr)
  tangents = tuple(map(ad.instantiate_zeros, tangents))
  _, tangent = jax.jvp(function, tuple(primals), tangents)
  return opaque(function, *primals), tangent


def _batched(operands: Any, axes: Any, *, jaxpr: Any) -> Any:
  function = jax.vmap(functools.partial(_run, jaxpr=jaxpr), axes)
  return opaque(function, *operands), 0


_combine.def_impl(_run)
_combine.def_abstract_eval(lambda *_, jaxpr: jaxpr.out_avals[0])
mlir.register_lowering(_combine, mlir.lower_fun(_run, multiple_results=False))
batching.primitive_batchers[_combine] = _batched
ad.primitive_jvps[_combine] = _jvp
