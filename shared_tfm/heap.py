"""Memory that a step on a CPU has freed is kept for the next one (glibc).

A step's temporaries are one piece of memory of hundreds of MB. Glibc takes it
from the system and gives it back at the step's end, so that every page of it is
handed out anew, full of zeros, in every step: 1 to 4 % of its time where layers
share, and a fifth where none do (benchmarks/NOTES.md).
"""

import ctypes
import os
import sys

import jax

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt(3)
NEVER = -1


def keep() -> None:
  """Has glibc keep what is freed; does nothing on other systems.

  To be called before JAX is first asked for its devices: it is told to run
  a CPU's programs in the thread that calls them. Only the main thread's heap
  may have pieces that large, and one heap for all threads made small steps
  slower. JAX does so where the arguments are there already, and on one device
  of a CPU; several, and GPUs and TPUs, gain nothing. Where a variable of
  glibc's own is set, such as MALLOC_TRIM_THRESHOLD_, all is left as it is.
  """
  if sys.platform != 'linux':
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # not in musl
  if mallopt is None or any(name.startswith('MALLOC_') for name in os.environ):
    return
  mallopt(MMAP_MAX, 0)
  mallopt(TRIM_THRESHOLD, NEVER)
  jax.config.update('jax_cpu_enable_async_dispatch', False)
