"""GLUE's tasks as they are distributed: folders of tab-separated files.

Fields are not quoted. `dev` is the validation split; test files have no labels.
The order of classes is that of TFDS, so that both sources agree.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence

from shared_tfm.data.sources import texts
from shared_tfm.data.sources.items import Item
from shared_tfm.errors import need, unknown

INDICES = ('index', 'id')  # the first column of files without labels
BOM = '\ufeff'  # stands before MRPC's files


@dataclasses.dataclass(frozen=True)
class Format:
  """How a task is laid out.

  Attributes:
    folder: of its files.
    fields: TFDS's names of its one text or two.
    classes: as labels are written; none: a number is.
    columns: of the texts.
    label: the column of the label.
    bare: the columns of training and dev files that have no header.
    broken: lines of too few columns are known, and left out by everybody.
    matched: whether its held-out splits are in two halves.
  """

  folder: str
  fields: tuple[str, ...]
  classes: tuple[str, ...] = ('0', '1')
  columns: tuple[str, ...] = ('sentence1', 'sentence2')
  label: str = 'label'
  bare: tuple[str, ...] = ()
  broken: bool = False
  matched: bool = False


_PAIR = ('sentence1', 'sentence2')
_ENTAILED = ('entailment', 'not_entailment')
TASKS = {
  'cola': Format(
    'CoLA',
    ('sentence',),
    columns=('sentence',),
    bare=('source', 'label', 'mark', 'sentence'),
  ),
  'sst2': Format('SST-2', ('sentence',), columns=('sentence',)),
  'mrpc': Format(
    'MRPC', _PAIR, columns=('#1 String', '#2 String'), label='Quality'
  ),
  'qqp': Format(
    'QQP',
    ('question1', 'question2'),
    columns=('question1', 'question2'),
    label='is_duplicate',
    broken=True,
  ),
  'stsb': Format('STS-B', _PAIR, (), label='score'),
  'mnli': Format(
    'MNLI',
    ('premise', 'hypothesis'),
    ('entailment', 'neutral', 'contradiction'),
    label='gold_label',
    matched=True,
  ),
  'qnli': Format(
    'QNLI',
    ('question', 'sentence'),
    _ENTAILED,
    columns=('question', 'sentence'),
  ),
  'rte': Format('RTE', _PAIR, _ENTAILED),
  'wnli': Format('WNLI', _PAIR),
}


def classes(task: str) -> tuple[str, ...]:
  """A task's classes; none where a number is told.

  Raises:
    BadInput: no such task.
  """
  if task not in TASKS:
    raise unknown('task of GLUE', task, TASKS)
  return TASKS[task].classes


def reader(task: str, path: str) -> Callable[[str], Sequence[Item]]:
  """What reads a task's splits.

  Args:
    task: a key of TASKS.
    path: the folder of all tasks' folders.

  Raises:
    BadInput: there is no such folder.
  """
  form = TASKS[task]
  need(bool(path), f'data.source glue:{task} needs data.path, a folder')
  folder = pathlib.Path(path).expanduser() / form.folder
  need(folder.is_dir(), f'data.path {path} has no folder {form.folder}')

  def read(split: str) -> Sequence[Item]:
    part, _, half = split.partition('_')
    name = 'dev' if part == 'validation' else part
    if form.matched and part != 'train':
      name = f'{name}_{half or "matched"}'
    paths = [folder / f'{name}.tsv', folder / f'{name}.tsv.gz']
    found = [each for each in paths if each.is_file()]
    held = ', '.join(sorted(each.name for each in folder.iterdir()))
    need(bool(found), f'{folder} has no {name}.tsv; it holds {held}')
    return list(_items(form, texts.File(found[0]), part))

  return read


def _items(form: Format, file: texts.File, part: str) -> Iterator[Item]:
  lines = file.read().removeprefix(BOM).split('\n')
  lines = lines[: -1 if not lines[-1] else None]
  first = 0 if form.bare and part != 'test' else 1
  header = lines[0].rstrip('\r').split('\t') if first and lines else form.bare
  wanted = form.columns if part == 'test' else (*form.columns, form.label)
  for column in wanted:
    need(
      column in header,
      f'{file}, line 1: there is no column {column}, but {", ".join(header)}',
    )
  places = [header.index(column) for column in wanted]
  need(len(lines) > first, f'{file} holds no examples')
  for number, line in enumerate(lines[first:], first + 1):
    row = line.rstrip('\r').split('\t')
    if len(row) < len(header) and form.broken:
      continue
    need(
      len(row) >= len(header),
      f'{file}, line {number}: needs {len(header)} columns, got {len(row)}',
    )
    found = [row[place] for place in places]
    count = len(form.columns)
    given = found[count:]
    where = f'{file}, line {number}'
    label = _label(form, given[0], where) if given else None
    named = None
    if part == 'test' and header[0] in INDICES:
      need(row[0].isdigit(), f'{where}: {header[0]} {row[0]!r} is no number')
      named = int(row[0])
    yield Item(tuple(found[:count]), label, named)


def _label(form: Format, given: str, where: str) -> float | int:
  if form.classes:
    need(
      given in form.classes,
      f'{where}: the label must be {" or ".join(form.classes)}, got {given!r}',
    )
    return form.classes.index(given)
  try:
    return float(given)
  except ValueError:
    need(False, f'{where}: the {form.label} must be a number, got {given!r}')
    raise


def submission(task: str, split: str) -> str:
  """What a file of predictions is called where GLUE is scored."""
  if task not in TASKS:
    return 'predictions.tsv'
  half = {'': '-m', '_matched': '-m', '_mismatched': '-mm'}
  part = split.removeprefix('test').removeprefix('validation')
  mark = half.get(part, '') if TASKS[task].matched else ''
  return f'{TASKS[task].folder}{mark}.tsv'
