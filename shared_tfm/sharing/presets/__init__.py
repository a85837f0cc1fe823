"""Presets: what published systems share, as fields of a config.

`albert:4` stands for the fields that make a model share as ALBERT does in four
groups; `--config.preset=albert:4` lays them under a config's own, and
`--sharing='none;@albert:4'` compares them. A preset says how weights and
activations are shared, and how depth, experts or tables behave where a system
is nothing without that. Sizes, and the rest of a recipe, are the config's own.

To add a system, write one function in the file of its kind. Its decorator gives
the source and an example for the docs and the tests; the function gets the
number of layers (visits) and its integers, and returns dotted fields of a
config. Its docstring says what is shared.
"""

# Importing a file registers its presets, in the order of the docs.
from shared_tfm.sharing.presets import whole  # isort: skip
from shared_tfm.sharing.presets import loops  # isort: skip
from shared_tfm.sharing.presets import experts  # isort: skip
from shared_tfm.sharing.presets import sums  # isort: skip
from shared_tfm.sharing.presets import components  # isort: skip
from shared_tfm.sharing.presets import activations  # isort: skip
from shared_tfm.sharing.presets import changing  # isort: skip
from shared_tfm.sharing.presets.registry import PRESETS, Preset, fields

__all__ = [
  'PRESETS',
  'Preset',
  'activations',
  'changing',
  'components',
  'experts',
  'fields',
  'loops',
  'sums',
  'whole',
]
