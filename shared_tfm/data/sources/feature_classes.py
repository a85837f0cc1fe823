"""The classes that a prepared dataset names, which TFDS would import.

A dataset is data, but its features.json names Python classes, and TFDS imports
whatever module one is said to be in. So they are looked at first: TFDS's own
are known to be harmless, and of others only those are taken whose module the
program has imported itself.
"""

import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from shared_tfm.errors import need

FILE = 'features.json'
OWN = 'tensorflow_datasets.core.features.'
KEYS = ('pythonClassName', 'python_class_name', 'type')


def check(folder: pathlib.Path) -> None:
  """Checks the classes that are named by what is prepared in a folder.

  Raises:
    BadInput: a module would be imported that is not TFDS's own.
  """
  for path in sorted(folder.rglob(FILE)):
    for name in _named(_content(path.read_bytes())):
      need(
        name.startswith(OWN) or name.rpartition('.')[0] in sys.modules,
        f'{path} names the class {name!r}, whose module is not imported for it',
      )


def _named(content: Any) -> Iterator[str]:
  """The names of classes, however deep they lie."""
  if isinstance(content, list):
    for part in content:
      yield from _named(part)
  elif isinstance(content, dict):
    for key, value in content.items():
      if key in KEYS and isinstance(value, str) and '.' in value:
        yield value
      inside = key == 'json' and isinstance(value, str)
      yield from _named(_content(value) if inside else value)


def _content(text: str | bytes) -> Any:
  """JSON; None where it is not, which TFDS says in its own words."""
  try:
    return json.loads(text)
  except ValueError:
    return None
