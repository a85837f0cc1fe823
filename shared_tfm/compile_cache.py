"""Compiled programs are kept from one start to the next.

They are in `shared_tfm/compiled` of the user's cache folder, `$XDG_CACHE_HOME`
or `~/.cache`. JAX's own variables have the last word: with
JAX_COMPILATION_CACHE_DIR set everything is as JAX has it, and
JAX_ENABLE_COMPILATION_CACHE=false keeps none at all.
"""

from collections.abc import MutableMapping
from pathlib import Path

PLACE = 'JAX_COMPILATION_CACHE_DIR'
MOST = 4 * 2**30  # bytes; what was used longest ago goes first
WORTH = '0.1'  # seconds; what compiles in less is not kept


def turn_on(environ: MutableMapping[str, str]) -> None:
  """Says so in the environment, which JAX reads when it is first imported."""
  if PLACE in environ:
    return  # maybe without a limit: JAX cannot read one folder both ways
  try:
    cache = Path(environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
  except RuntimeError:  # nobody's home
    return
  for name, value in {
    PLACE: str(cache / 'shared_tfm' / 'compiled'),
    'JAX_COMPILATION_CACHE_MAX_SIZE': str(MOST),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': WORTH,
  }.items():
    environ.setdefault(name, value)
