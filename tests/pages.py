"""The commands that the README and the pages of docs/ show, and running them.

A fence of sh or python is run, page after page in the site's order, in one
folder: what a page made is there for the next. The comment above a fence says
what is not run here:

    <!-- needs: a TPU pod -->          other hardware, or files nobody ships
    <!-- run by: tests/test_x.py -->   that test runs it, or something like it

Whatever trains is over at once, and of what is compared the first and the last
scheme are trained. Of `make` the recipe is read.
"""

import contextlib
import pathlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

from shared_tfm import tasks
from shared_tfm.__main__ import main
from shared_tfm.config.choices import CHOICES
from shared_tfm.config.tasks import NEEDS
from shared_tfm.data import generators
from shared_tfm.report import compare
from shared_tfm.sharing.table import SCHEMES

REGISTRIES = (SCHEMES, generators.TASKS, tasks.TASKS, NEEDS, CHOICES)
TOP = pathlib.Path(__file__).parents[1]
RUN = ('sh', 'python')
SHOWN = ('text', 'json', 'toml', '{toctree}', '{eval-rst}', '{literalinclude}')
FENCE = re.compile(
  r'(?:^<!-- (?P<mark>[^\n]+?) -->\n+)?'
  r'^ *```(?P<kind>\S*)[^\n]*\n(?P<text>.*?)^ *```$',
  re.MULTILINE | re.DOTALL,
)
COMMAND = re.compile(r"python -m shared_tfm ((?:'[^']*'|[^;'])*)")
SMALL = {
  'model.d_model': 16,
  'optimizer.warmup_steps': 0,
  'train.num_steps': 2,
  'train.batch_size': 2,
  'train.eval_every': 2,
  'train.eval_batches': 1,
  'train.checkpoint_every': 2,
  'data.max_bytes': 20_000,
}


class Block(NamedTuple):
  """A fence of a page."""

  kind: str
  mark: str
  text: str


def menu() -> list[str]:
  """The pages of the site behind its first, in its order."""
  trees = [b.text for b in blocks('docs/index.md') if b.kind == '{toctree}']
  return [
    f'docs/{line}.md'
    for tree in trees
    for line in tree.splitlines()
    if line and not line.startswith(':')
  ]


def blocks(page: str) -> list[Block]:
  """The fences of a page, in their order."""
  text = (TOP / page).read_text()
  return [
    Block(found['kind'], found['mark'] or '', found['text'])
    for found in FENCE.finditer(text)
  ]


def prose(page: str) -> str:
  """A page without its fences."""
  return FENCE.sub('', (TOP / page).read_text())


def lines(page: str) -> Iterator[list[str]]:
  """The commands of `python -m shared_tfm` on a page, as words behind that."""
  for block in blocks(page):
    if block.kind == 'sh' and not block.mark.startswith('needs'):
      for words in commands(block.text):
        if not block.mark or words[0] == 'python':  # else what a test starts
          yield from ours(words)


def indented(text: str) -> Iterator[list[str]]:
  """Those of a page that shows commands as indented lines, in loops maybe."""
  rows = text.replace('\\\n', ' ').splitlines()
  for row in rows:
    if row.startswith('    '):
      for found in COMMAND.findall(row):
        # What a variable of the shell stands for is not known here.
        yield [w for w in shlex.split(found, True) if not w.startswith('$')]


def run(page: str) -> int:
  """Runs what a page shows in the working directory; returns how many."""
  count, names = 0, {'__name__': page}
  with small(), contextlib.ExitStack() as held:
    for registry in REGISTRIES:  # what a page adds is gone afterwards
      held.enter_context(mock.patch.dict(registry))
    for block in blocks(page):
      if block.kind == 'python' and not block.mark:
        exec(compile(block.text, page, 'exec'), names)
        count += 1
      elif block.kind == 'sh' and not block.mark:
        for words in commands(block.text):
          for line in ours(words):
            assert main(shrunk(line)) == 0, ' '.join(line)
            count += 1
  return count


def commands(text: str) -> list[list[str]]:
  """The commands of a block, as words."""
  rows = text.replace('\\\n', ' ').splitlines()
  return [words for row in rows if (words := shlex.split(row, True))]


def ours(words: list[str]) -> Iterator[list[str]]:
  """The words behind `python -m shared_tfm` in a command, or its recipe."""
  if words[1:3] == ['-m', 'shared_tfm'] and words[0].endswith('python'):
    yield words[3:]
    return
  assert words[0] == 'make', f'say above it what {words[0]} needs'
  recipe = subprocess.run(
    ['make', '-n', *words[1:]],
    cwd=TOP,
    check=True,
    capture_output=True,
    text=True,
  )
  for made in commands(recipe.stdout):
    if made[1:3] == ['-m', 'shared_tfm']:
      yield made[3:]


def shrunk(words: list[str]) -> list[str]:
  """A command line whose training is over at once."""
  words = [*map(_fewer, words)] if words[0] == 'compare' else words
  sizes = dict(SMALL)
  if words[0] == 'convert':  # its network is the donor's
    del sizes['model.d_model']
  fields = [f'--config.{name}={value}' for name, value in sizes.items()]
  if words[0] in ('train', 'compare', 'bench') or '--tune' in words:
    return [*words, *fields, *['--steps=2'] * (words[0] == 'bench')]
  return words


def _fewer(word: str) -> str:
  """A flag of `compare` by which two schemes are compared, from one seed."""
  flag, _, value = word.partition('=')
  if flag == '--sharing':
    first, *_, last = value.split(';')
    return f'{flag}={first};{last}'
  return '--seeds=1' if flag == '--seeds' else word


@contextlib.contextmanager
def small():
  """So are comparisons from Python."""
  whole = compare.compare

  def compared(config, schemes, seeds, workdir):
    if isinstance(config, dict):
      config = {name: dict(group) for name, group in config.items()}
      for field, value in SMALL.items():
        group, name = field.split('.')
        config.setdefault(group, {})[name] = value
    return whole(config, [schemes[0], schemes[-1]], 1, workdir)

  compare.compare = compared
  try:
    yield
  finally:
    compare.compare = whole


PAGES = ['README.md', 'docs/index.md', *menu()]
