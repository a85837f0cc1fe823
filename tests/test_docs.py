"""The pages: what they show runs, links lead somewhere, the site builds."""

import re
import subprocess
import sys

import pages
import pytest
from pages import PAGES, TOP

from shared_tfm import config as configs
from shared_tfm import config_file
from shared_tfm.__main__ import parser

MARK = re.compile(r'needs: .+|run by: (?P<test>tests/test_\w+\.py)')


def understood(line):
  """Whether flags, fields and schemes are known; nothing is run."""
  args, overrides = parser().parse_known_args(line)
  schemes, shared = [], []
  if getattr(args, 'config', None):
    config = config_file.load(args.config, overrides)
    schemes = args.sharing.split(';') if args.verb == 'compare' else []
    shared = [configs.with_sharing(config, scheme) for scheme in schemes]
  fields = all('config.' in word for word in overrides)
  return fields and len({each.model for each in shared}) == len(schemes)


@pytest.mark.parametrize('page', PAGES)
def test_its_commands_are_understood(page, monkeypatch):
  monkeypatch.chdir(TOP)
  for line in pages.lines(page):
    assert understood(line), line


def test_commands_of_measurements_are_understood(monkeypatch):
  """They took minutes to hours, and stand as they were run."""
  monkeypatch.chdir(TOP)
  count = 0
  for path in TOP.glob('experiments/*/README.md'):
    for line in pages.indented(path.read_text()):
      assert understood(line), line
      count += 1
  assert count > 20


@pytest.mark.slow
def test_their_commands_run(tmp_path, monkeypatch):
  """In the order of the site, in one folder that begins as a clone does."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'configs').symlink_to(TOP / 'configs')
  (tmp_path / 'my_texts').mkdir()
  (tmp_path / 'my_texts' / 'README.md').symlink_to(TOP / 'README.md')
  assert pages.run('README.md') == 9  # make's recipe is one of them
  for page in PAGES[1:]:
    shown = [b for b in pages.blocks(page) if b.kind in pages.RUN]
    assert pages.run(page) or all(block.mark for block in shown), page


@pytest.mark.parametrize('page', PAGES)
def test_every_fence_says_what_it_is(page):
  for block in pages.blocks(page):
    assert block.kind in pages.RUN + pages.SHOWN, block
    if block.mark:
      found = MARK.fullmatch(block.mark)
      assert found, block.mark
      assert not found['test'] or (TOP / found['test']).is_file()
  # What is indented looks like code, and nobody would run it.
  assert not re.search(r'\n\n {4}(?![*-])\S', pages.prose(page))


@pytest.mark.parametrize('page', PAGES)
def test_what_it_links_to_is_there(page):
  """In a clone, where people read pages without the site."""
  for link in re.findall(r'\]\(([^)#\s]+)', pages.prose(page)):
    if not link.startswith('https://'):
      assert ((TOP / page).parent / link).exists(), link


def test_every_page_is_in_the_menu():
  found = {f'docs/{path.name}' for path in (TOP / 'docs').glob('*.md')}
  assert found == {*PAGES[1:]} and len(PAGES) == len(found) + 1
  assert len((TOP / 'README.md').read_text().splitlines()) < 200


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
  """Warnings are errors, as in `make docs`."""
  flags = '--quiet', '--fail-on-warning', '--keep-going'
  command = sys.executable, '-m', 'sphinx', *flags, '-c', 'docs', '.', tmp_path
  subprocess.run(command, cwd=TOP, check=True, timeout=300)
  for page in PAGES[1:]:
    assert (tmp_path / page).with_suffix('.html').is_file()
  loaded = r'<(?:script|img|link rel="(?:stylesheet|preconnect|icon)")[^>]*?'
  for path in tmp_path.rglob('*.html'):
    text = path.read_text()
    assert not re.search(rf'{loaded}(?:src|href)="(?:https?:)?//', text)
    assert '<!-- README' not in text and '&lt;!--' not in text
  start = (tmp_path / 'docs' / 'index.html').read_text()
  assert 'cycle_rev:3' in start and 'quickstart' in start
  api = (tmp_path / 'docs' / 'api.html').read_text()
  assert 'id="shared_tfm.sharing.owners"' in api and 'kv_source' in api
