"""Compiled programs are kept from one start to the next.

They are in `shared_tfm/compiled` of the user's cache folder, `$XDG_CACHE_HOME`
or `~/.cache`. JAX's own variables have the last word: JAX_COMPILATION_CACHE_DIR
is another place, and JAX_ENABLE_COMPILATION_CACHE=false none at all.
"""

from collections.abc import MutableMapping
from pathlib import Path

MOST = 4 * 2**30  # bytes; what was used longest ago goes first
WORTH = '0.1'  # seconds; what compiles in less is not kept


def turn_on(environ: MutableMapping[str, str]) -> None:
  """Says so in the environment, which JAX reads when it is first imported."""
  try:
    cache = Path(environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
  except RuntimeError:  # nobody's home
    return
  for name, value in {
    'JAX_COMPILATION_CACHE_DIR': str(cache / 'shared_tfm' / 'compiled'),
    'JAX_COMPILATION_CACHE_MAX_SIZE': str(MOST),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': WORTH,
  }.items():
    environ.setdefault(name, value)
