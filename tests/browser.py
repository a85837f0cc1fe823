"""A real browser that opens a report, and pictures of what it shows.

    python tests/browser.py runs/quickstart/report.html docs

writes the README's pictures: report.png, report_dark.png, report_phone.png.
"""

import contextlib
import io
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from PIL import Image

NAMES = 'chromium', 'chromium-browser', 'google-chrome', 'chrome'
OURS = pathlib.Path(sys.prefix) / 'browser'  # where setup.sh puts one
WIDE = {'width': 1200, 'height': 800}
PHONE = {'width': 390, 'height': 844}


def found() -> str | None:
  """The program: SHARED_TFM_BROWSER, that of setup.sh, or the machine's."""
  named = os.environ.get('SHARED_TFM_BROWSER')
  ours = str(OURS / 'chromium')
  return named or next(filter(None, map(shutil.which, (ours, *NAMES))), None)


@contextlib.contextmanager
def started(program: str) -> Iterator[Any]:
  """Playwright's browser; it ends with the block."""
  from playwright.sync_api import sync_playwright

  environment = dict(os.environ)
  if pathlib.Path(program).parent == OURS:  # with what a bare machine lacks
    libraries = OURS / 'al2023' / 'lib'
    environment['LD_LIBRARY_PATH'] = str(libraries)
    if not pathlib.Path('/etc/fonts').exists():
      environment['FONTCONFIG_PATH'] = str(OURS / 'fonts')
  with sync_playwright() as driver:
    browser = driver.chromium.launch(
      executable_path=program, env=environment, args=['--no-zygote']
    )
    try:
      yield browser
    finally:
      browser.close()


def pictures(report: pathlib.Path, folder: pathlib.Path) -> None:
  """The page as one sees it first, by day, by night, and on a phone."""
  program = found()
  if not program:
    sys.exit('error: there is no browser; ./setup.sh browser brings one')
  with started(program) as browser:
    for name, size, scheme, top, pointed in (
      ('report', (1240, 1500), 'light', 'h1', 'loss'),
      ('report_dark', (1240, 1150), 'dark', '[data-chart=front]', 'front'),
      ('report_phone', (390, 844), 'light', '[data-chart=loss]', 'loss'),
    ):
      view = {'width': size[0], 'height': size[1]}
      page = browser.new_page(viewport=view, color_scheme=scheme)
      page.goto(report.absolute().as_uri())
      page.locator(top).evaluate('e => scrollTo(0, e.offsetTop - 20)')
      marks = page.locator(f'[data-chart={pointed}] .series .mark')
      marks.last.hover()  # early losses may lie above what is shown
      picture = Image.open(io.BytesIO(page.screenshot())).convert('RGB')
      picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(
        folder / f'{name}.png', optimize=True
      )
      page.close()


if __name__ == '__main__':
  pictures(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
