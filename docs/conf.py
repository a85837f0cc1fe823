"""The site: `make docs`. Its root is the repository, whose links hold there.

`<!-- README: Start -->` on a page is that section of the README, so that
nothing is written twice.
"""

import re
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[1]
SECTION = re.compile(r'^<!-- README: (.+) -->$', re.MULTILINE)

project = 'shared_tfm'
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
html_theme = 'furo'
html_title = project
html_show_copyright = False
root_doc = 'docs/index'
include_patterns = [
  'docs/*.md',
  'experiments/README.md',
  'experiments/*/README.md',
  'LOG.md',
  'benchmarks/*.md',
  'benchmarks/results/*.md',
]
myst_heading_anchors = 3
default_role = 'code'  # docstrings are written with single backticks
autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True, 'undoc-members': False}
napoleon_use_ivar = True  # attributes are said once


def section(readme: str, title: str) -> str:
  """A section of the README without its heading; 'top' for what is above all.

  Raises:
    KeyError: there is no such section.
  """
  title_of_top, *parts = re.split(r'^## (.+)\n', readme, flags=re.MULTILINE)
  top = title_of_top.partition('\n')[2]
  sections = dict(zip(['top', *parts[::2]], [top, *parts[1::2]], strict=True))
  return sections[title].strip().replace('](docs/', '](')


def setup(app: Any) -> None:
  """Puts the README's sections where pages ask for them."""
  readme = (TOP / 'README.md').read_text()

  def read(app: Any, name: str, source: list[str]) -> None:
    source[0] = SECTION.sub(lambda found: section(readme, found[1]), source[0])

  app.connect('source-read', read)
