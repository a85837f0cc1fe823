"""The configuration: frozen dataclasses, and the one door into them.

Users write a `ml_collections.ConfigDict` with the fields they care about, the
command line changes some, and `cross` turns it into a `Config` once, checking
every value. Behind that door nobody asks whether a field is there or fits.

`fields.py` and `training.py` are the reference of what a config can say.
"""

from shared_tfm.config.choices import CHOICES, GATED
from shared_tfm.config.door import (
  Fields,
  complete,
  cross,
  default,
  given,
  replaced,
  scheme_name,
  sharing_of,
  with_exit,
  with_fields,
  with_loops,
  with_sharing,
)
from shared_tfm.config.fields import (
  SHARING_FIELDS,
  Depth,
  Experts,
  Model,
  Quantise,
  Sharing,
)
from shared_tfm.config.training import (
  Adapt,
  Config,
  Data,
  Mesh,
  Optimizer,
  Prune,
  Task,
  Train,
)

__all__ = [
  'CHOICES',
  'GATED',
  'SHARING_FIELDS',
  'Adapt',
  'Config',
  'Data',
  'Depth',
  'Experts',
  'Fields',
  'Mesh',
  'Model',
  'Optimizer',
  'Prune',
  'Quantise',
  'Sharing',
  'Task',
  'Train',
  'complete',
  'cross',
  'default',
  'given',
  'replaced',
  'scheme_name',
  'sharing_of',
  'with_exit',
  'with_fields',
  'with_loops',
  'with_sharing',
]
