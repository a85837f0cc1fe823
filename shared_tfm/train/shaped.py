"""A function compiled for every kind of batch that it will see."""

import time
from collections.abc import Mapping
from typing import Any

import jax


class Shaped:
  """One program for each kind of batch.

  Attributes:
    compiled: the programs.
    began: when they began to be compiled, by `time.perf_counter`.
    seconds: that it took.
  """

  def __init__(self, function: Any, shapes: Any, batches: Any, **options: Any):
    """Compiles.

    Args:
      function: (state, batch) -> anything.
      shapes: of the state.
      batches: the shapes of each kind.
      **options: of `jax.jit`.
    """
    self.began = time.perf_counter()
    jitted = jax.jit(function, **options)
    self.compiled = {
      _kind(batch): jitted.lower(shapes, batch).compile() for batch in batches
    }
    self.seconds = time.perf_counter() - self.began

  def __call__(self, state: Any, batch: Any) -> Any:
    """Runs the program that fits the batch."""
    return self.of(batch)(state, batch)

  def of(self, batch: Any) -> Any:
    """The compiled program that fits a batch."""
    return self.compiled[_kind(batch)]

  @property
  def peak_bytes(self) -> int:
    """Of a device, by the largest of the programs."""
    return max(map(peak, self.compiled.values()))


def _kind(batch: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
  return tuple(batch[name].shape for name in sorted(batch))


def peak(compiled: Any) -> int:
  """Bytes of a device that one program takes at most."""
  memory = compiled.memory_analysis()
  held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  new = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return int(held + new)
