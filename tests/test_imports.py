"""Rooms import downwards only."""

import ast
import pathlib

import pytest

TOP = pathlib.Path(__file__).parents[1] / 'shared_tfm'

# From the ground up. What shares a level may not import its neighbour, but for
# the config, whose specs are checked against the tables.
LEVELS = (
  {'errors', 'files'},
  {'sharing.table', 'config'},  # and what room() puts beside the tables
  {'sharing', 'layers', 'accounting', 'config_file', 'compile_cache', 'heap'},
  {'model'},
  {'data'},
  {'infer'},
  {'serve'},
  {'tasks'},
  {'train'},
  {'compress'},
  {'report'},
  {'verbs'},
  {'__main__'},
)
TABLES = tuple(
  f'sharing.{name}'
  for name in (
    'checks',
    'component',
    'drawing',
    'levels',
    'presets',
    'reuse',
    'rounding',
    'table',
  )
)
NEIGHBOURS = {('config', 'sharing.table')}
NOT_FOR_DATA = {'sharing', 'layers', 'model', 'accounting', 'sharing.table'}
FILES = sorted(TOP.rglob('*.py'))


def room(module):
  """The room of a dotted module inside the package."""
  if module.startswith(TABLES):
    return 'sharing.table'
  return module.partition('.')[0]


def level(name):
  return next(i for i, names in enumerate(LEVELS) if name in names)


def imported(path):
  """The project's own modules that a file imports, dotted."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      for name in node.names:
        if name.name.startswith('shared_tfm.'):
          yield name.name.removeprefix('shared_tfm.')
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: a relative import'
      module = (node.module or '') + '.'
      if module.startswith('shared_tfm.'):
        inside = module.removeprefix('shared_tfm.')
        for name in node.names:
          yield (inside + name.name).strip('.')
      assert not module.startswith(('configs.', 'experiments.', 'benchmarks.'))


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(TOP)))
def test_imports_go_downwards(path):
  own = '.'.join(path.relative_to(TOP).with_suffix('').parts)
  if own == '__init__':
    return  # the package's face shows what lies below it
  own = room(own)
  for module in imported(path):
    other = room(module)
    if other == own or (own, other) in NEIGHBOURS:
      continue
    if {own, other} == {'sharing', 'sharing.table'}:
      continue
    assert level(other) < level(own), f'{own} imports {module}'
    assert own != 'data' or other not in NOT_FOR_DATA, f'data imports {module}'


def test_sharing_and_layers_do_not_know_each_other():
  for path in FILES:
    first = path.relative_to(TOP).parts[0]
    others = {room(module) for module in imported(path)}
    if first == 'sharing':
      assert not others & {'layers', 'model', 'config'}
    if first == 'layers':
      assert not others & {'sharing', 'sharing.table', 'model'}


def test_only_the_model_knows_both():
  both = {
    path.relative_to(TOP).parts[0]
    for path in FILES
    if {'sharing', 'layers'} <= {room(module) for module in imported(path)}
  }
  assert both == {'model'}
