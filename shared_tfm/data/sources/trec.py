"""TREC's question classification (Li & Roth, 2002), as it is distributed.

Every line is a label, such as 'NUM:dist', and a question. There are 6 coarse
classes, and 50 fine ones: a name such as 'other' is of several coarse classes,
and stands for one fine class in each.
"""

import pathlib
from collections.abc import Callable, Sequence

from shared_tfm.data.sources.items import Item
from shared_tfm.errors import BadInput, need

FIELDS = ('label-coarse', 'label-fine')  # of TFDS
FILES = {'train': 'train_5500.label', 'test': 'TREC_10.label'}
ODD = '\xf0'  # one byte of the training file, which TFDS reads as a space
_FINE = {
  'ABBR': 'abb exp',
  'DESC': 'def desc manner reason',
  'ENTY': 'animal body color cremat currency dismed event food instru lang'
  ' letter other plant product religion sport substance symbol techmeth termeq'
  ' veh word',
  'HUM': 'desc gr ind title',
  'LOC': 'city country mount other state',
  'NUM': 'code count date dist money ord other perc period speed temp volsize'
  ' weight',
}
COARSE = tuple(_FINE)
FINE = tuple(
  f'{coarse}:{name}'
  for coarse, names in _FINE.items()
  for name in names.split()
)


def classes(count: int) -> tuple[str, ...]:
  """The 6 coarse or the 50 fine classes.

  Raises:
    BadInput: another number of classes.
  """
  need(
    count in (len(COARSE), len(FINE)),
    f'trec has {len(COARSE)} coarse or {len(FINE)} fine classes: model.'
    f'num_classes must be one of them, got {count}',
  )
  return COARSE if count == len(COARSE) else FINE


def label(given: str, names: Sequence[str]) -> int:
  """The number of a label's class among the coarse or the fine names.

  Raises:
    BadInput: no label of TREC.
  """
  need(given in FINE, f'{given!r} is no label of TREC, such as NUM:dist')
  return names.index(given if names == FINE else given.partition(':')[0])


def reader(path: str, names: Sequence[str]) -> Callable[[str], Sequence[Item]]:
  """What reads the files of the two splits, train and test.

  Args:
    path: the folder that has them.
    names: of the classes.
  """
  need(bool(path), "data.source 'trec' needs data.path, a folder")
  folder = pathlib.Path(path).expanduser()

  def read(split: str) -> Sequence[Item]:
    need(split in FILES, f'trec has no {split} split, but train and test')
    file = folder / FILES[split]
    need(file.is_file(), f'data.path {path} has no {file.name}')
    lines = file.read_bytes().decode('latin-1').replace(ODD, ' ').split('\n')
    items = []
    for number, line in enumerate(lines[: -1 if not lines[-1] else None], 1):
      given, _, question = line.strip().partition(' ')
      need(
        bool(question), f'{file}, line {number}: needs a label and a question'
      )
      try:
        items.append(Item((question,), label(given, names)))
      except BadInput as error:
        raise BadInput(f'{file}, line {number}: {error}') from None
    need(bool(items), f'{file} holds no questions')
    return items

  return read
