"""Writes the pages that follow from the code: tables and presets.

Command: python docs/pages.py
"""

from pathlib import Path

from shared_tfm import files
from shared_tfm.report import gallery, published
from shared_tfm.report.published import render

DOCS = Path(__file__).parent

if __name__ == '__main__':
  tables = {name: published.make(name) for name in published.TABLES}
  files.replace(DOCS / 'tables.md', render.page(tables))
  files.replace(DOCS / 'presets.md', gallery.page())
  gallery.draw(DOCS / 'presets.png')
