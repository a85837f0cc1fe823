"""How fast the devices at hand multiply matrices."""

import dataclasses
import time

import jax
import jax.numpy as jnp

from shared_tfm.config.precision import PRECISIONS
from shared_tfm.layers import float8

SIZES = (512, 1024, 2048, 4096, 8192)
ENOUGH = 0.02  # seconds of one product, after which none is larger


@dataclasses.dataclass
class Best:
  """The best rate so far.

  Attributes:
    size: of the square matrices that reached it.
    flops_per_second: of all devices together.
  """

  size: int = 0
  flops_per_second: float = 0.0


class Products:
  """Square products, one on every device of a mesh at the same time.

  Operands have the compute dtype of a model's policy, and what is narrower than
  float32 is added up in float32. Where layers multiply float8, products of that
  take their turns, too: the best is theirs on a device that has any.

  Attributes:
    best: of all that were run.
  """

  def __init__(self, mesh: jax.sharding.Mesh, dtype: str):
    """Makes operands, each pair larger, until a product takes long enough."""
    precision = PRECISIONS[dtype]
    kinds = dict.fromkeys((precision.operand, precision.compute))
    self.best, self._devices = Best(), mesh.size
    self._operands: list[jax.Array] = []
    where = jax.NamedSharding(mesh, jax.P(mesh.axis_names))

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=where.spec, out_specs=where.spec)
    def multiply(a_1NN: jax.Array, b_1NN: jax.Array) -> jax.Array:
      a_NN, b_NN = a_1NN[0], b_1NN[0]
      if a_NN.dtype.itemsize > 1:
        product = jnp.matmul(a_NN, b_NN, preferred_element_type=jnp.float32)
      else:
        a, b = (float8.Scaled(x, jnp.ones(())) for x in (a_NN, b_NN))
        out = jnp.dtype(jnp.float32)
        product = float8.product('ij,jk->ik', a, b, precision.compute, out)
      return product[None]

    self._multiply = multiply
    random = jax.jit(
      jax.random.normal, static_argnums=(1, 2), out_shardings=where
    )
    for size in SIZES:
      shape = (self._devices, size, size)
      wide = random(jax.random.key(size), shape, jnp.dtype(precision.compute))
      for kind in kinds:
        operands = wide.astype(kind)
        jax.block_until_ready(multiply(operands, operands))  # compiled
        self._operands.append(operands)
        taken = self._timed(operands)
      if taken >= ENOUGH:  # in the compute dtype
        break

  def run(self) -> None:
    """Runs each of them once more."""
    for operands in self._operands:
      self._timed(operands)

  def _timed(self, operands: jax.Array) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(self._multiply(operands, operands))
    taken = time.perf_counter() - begin
    size = operands.shape[-1]
    reached = self._devices * 2 * size**3 / taken
    if reached > self.best.flops_per_second:
      self.best = Best(size, reached)
    return taken
