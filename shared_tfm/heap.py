"""Memory that a step on a CPU has freed is kept for the next one (glibc).

A step's temporaries are one piece of memory of hundreds of MB. Glibc takes it
from the system and gives it back at the step's end, so that every page of it is
handed out anew, full of zeros, in every step: 4 to 20 % of its time
(benchmarks/NOTES.md).
"""

import ctypes
import sys

import jax

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt(3)
MOST = 2**31 - 1


def keep() -> None:
  """Keeps it, where the system is Linux with glibc; elsewhere does nothing.

  To be called before JAX first asks for its devices: it is told to run
  a CPU's programs in the thread that calls them. Only the main thread's heap
  may have pieces that large, and one for all threads made small steps slower.
  """
  if sys.platform != 'linux':
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None or not mallopt(MMAP_MAX, 0):
    return
  mallopt(TRIM_THRESHOLD, MOST)
  jax.config.update('jax_cpu_enable_async_dispatch', False)
