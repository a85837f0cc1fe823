"""The report in a real browser: what it draws, and what one can do with it."""

import dataclasses
import math
import re

import browser
import matplotlib.image
import numpy as np
import pytest
from test_colours import contrast

from shared_tfm.report import html, plots
from shared_tfm.report.plots import Point
from shared_tfm.report.results_file import Result

EVIL = '</script><img src=x onerror=alert(1)><svg onload=alert(2)>'
LOST = 'all'  # a run of it diverged
SCHEMES = {  # stored parameters, and the loss of its first seed
  'none': (1_234_567, 1.7),
  'cycle:12': (345_678, 1.8),
  'cycle:3': (56_789, 1.9),
  EVIL: (700_000, 1.95),  # behind the front
  LOST: (20_000, math.nan),
}
STEPS = range(0, 210, 10)
RESULTS = [
  Result(
    scheme=scheme,
    seed=seed,
    stored_params=stored,
    applied_params=1_234_567,
    non_embedding_params=stored,
    sharing_ratio=1_234_567 / stored,
    flops_per_token=6 * stored,
    train_loss=loss,
    validation_loss=loss + 0.05 * seed,
    steps=200,
    tokens=102_400,
    tokens_per_second=1e9 / stored * (1 + 0.1 * seed),
    peak_memory_bytes=stored * 20,
    scores={'bits_per_byte': loss / 0.7},
  )
  for scheme, (stored, loss) in SCHEMES.items()
  for seed in range(2)
]
CURVES, TRAINING = (
  {
    (run.scheme, run.seed): [
      Point(step, 512 * step, run.validation_loss + off + 3 / (step + 1))
      for step in steps
    ]
    for run in RESULTS
  }
  for off, steps in ((0, STEPS), (0.5, STEPS[1:]))
)


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  folder = tmp_path_factory.mktemp('report')
  pictures = {name: folder / f'{name}.png' for name in plots.CAPTIONS}
  for picture in pictures.values():
    matplotlib.image.imsave(picture, np.zeros((90, 1300, 3)))
  owners = {
    scheme: {'attention': (0, 1, 2, 0, 1, 2), EVIL: (None,) * 6}
    for scheme in SCHEMES
  }
  path = folder / 'report.html'
  config = {'data': {'path': EVIL, 'long': 'x' * 400}}
  versions = {EVIL: EVIL}
  html.write(
    path, RESULTS, CURVES, TRAINING, owners, pictures, config, versions
  )
  return path.as_uri()


@pytest.fixture(scope='module')
def chromium():
  pytest.importorskip('playwright', reason='./setup.sh browser brings it')
  program = browser.found()
  if not program:
    pytest.skip('there is no browser; ./setup.sh browser brings one')
  with browser.started(program) as started:
    yield started


@pytest.fixture
def opened(chromium, report):
  """Opens the report; at the end nothing may have gone wrong in it."""
  told, asked, contexts, addresses = [], [], [], set()

  def open_page(size=browser.WIDE, address=report, **options):
    addresses.add(address)
    context = chromium.new_context(viewport=size, **options)
    contexts.append(context)
    page = context.new_page()
    page.on('console', lambda message: told.append(message.text))
    page.on('pageerror', lambda error: told.append(str(error)))
    page.on('dialog', lambda dialog: told.append(dialog.message))
    page.on('request', lambda request: asked.append(request.url))
    page.goto(address)
    return page

  yield open_page
  for context in contexts:
    context.close()
  assert told == []
  assert {url for url in asked if not url.startswith('data:')} == addresses


def chart(page, name):
  return page.locator(f'figure[data-chart={name}]')


def ticks(figure, axis='x'):
  return figure.locator(f'.grid text.{axis}').all_text_contents()


def numbers(path):
  """The spots of an SVG path, shape (spots, 2)."""
  return np.array(re.findall(r'-?[\d.]+', path), float).reshape(-1, 2)


def drag(page, figure, start, end):
  """From one share of the chart's width and height to another."""
  box = figure.locator('.plot > svg').bounding_box()
  spots = [
    (box['x'] + x * box['width'], box['y'] + y * box['height'])
    for x, y in (start, end)
  ]
  page.mouse.move(*spots[0])
  page.mouse.down()
  page.mouse.move(*spots[1], steps=3)
  page.mouse.up()


def column(page, name):
  """The head of a column of the summary, and its cells from top to bottom."""
  table = page.locator('#summary')
  heads = table.locator('thead th').all()
  (place,) = (
    i for i, head in enumerate(heads) if head.inner_text().strip() == name
  )
  cells = table.locator(f'tbody tr > :nth-child({place + 1})')
  return heads[place], cells.all_inner_texts


def test_charts_have_every_line_and_point(opened):
  page = opened()
  loss, front = chart(page, 'loss'), chart(page, 'front')
  lines = [
    path.get_attribute('d') for path in loss.locator('.series .line').all()
  ]
  assert [len(numbers(path)) if path else 0 for path in lines] == [21] * 4 + [0]
  # Later losses are lower, which is further down; `none` ends as the lowest.
  ends = [numbers(path)[-1] for path in lines[:4]]
  assert (np.diff(numbers(lines[0])[:, 1]) > 0).all()
  assert [end[1] for end in ends] == sorted([e[1] for e in ends], reverse=True)
  assert front.locator('.series .mark').count() == 4  # the lost one has no loss
  assert not any(image.is_visible() for image in page.locator('img').all())
  cells = page.locator('.strips .cell')
  assert cells.count() == 12 * len(SCHEMES)
  assert cells.nth(1).get_attribute('fill') == plots.row_colour(1)
  told = page.locator('.strips svg').first.get_attribute('aria-label')
  assert told == (
    f'Owner tables of none; attention: 0 1 2 0 1 2; {EVIL}: ~ ~ ~ ~ ~ ~'
  )


def test_the_front_is_that_of_the_pictures(opened):
  page = opened()
  random = np.random.default_rng(0)
  points = np.round(random.uniform(0, 5, (40, 2)), 1).tolist()
  ours = page.evaluate(
    'points => front(points.map(([x, y]) => ({x, y}))).map(({x, y}) => [x, y])',
    points,
  )
  assert ours == plots.front(points)
  assert 3 <= len(ours) < 20
  # Three schemes trade loss for parameters, and the fourth is behind them.
  path = chart(page, 'front').locator('path.front').get_attribute('d')
  assert path.count('V') == 3
  for scheme, place in (('none', 0), (EVIL, 3)):
    chart(page, 'front').locator('.series .mark').nth(place).hover()
    tip = chart(page, 'front').locator('.tip').inner_text()
    assert tip.startswith(scheme)
    assert ('on the front' in tip) == (scheme == 'none')


def test_hovering_tells_what_was_measured(opened):
  page = opened()
  loss = chart(page, 'loss')
  svg = loss.locator('.plot > svg')
  svg.scroll_into_view_if_needed()
  path = loss.locator('.series .line').nth(0).get_attribute('d')
  box = svg.bounding_box()
  x, y = numbers(path)[12]
  page.mouse.move(box['x'] + x + 3, box['y'] + y)
  tip = loss.locator('.tip').inner_text()
  assert tip.startswith(f'{STEPS[12]} optimizer steps')
  for scheme, (_, first) in SCHEMES.items():
    values = [first + 0.05 * seed + 3 / (STEPS[12] + 1) for seed in range(2)]
    told = f'{np.mean(values):.4f}\t{values[0]:.4f} to {values[1]:.4f}'
    assert (f'{scheme}\t{told}' in tip) == (scheme != LOST)
  page.mouse.move(0, 0)
  assert not loss.locator('.tip').is_visible()

  chart(page, 'front').locator('.series .mark').nth(1).hover()
  tip = chart(page, 'front').locator('.tip').inner_text()
  assert '1.8250 ± 0.0354' in tip and '346k' in tip and '6.59 MiB' in tip


def test_numbers_of_any_size_have_short_texts(opened):
  page = opened()
  for value, unit, text in (
    (0, '', '0'),
    (3e-7, '', '3e-7'),
    (12345, '', '12.3k'),
    (7e9, '', '7B'),
    (1.5e12, '', '1.5T'),
    (1e30, '', '1e30'),
    (1.3e18, 'FLOP', '1.3 EFLOP'),
    (3 * 2**40, 'B', '3 TiB'),
    (7200, 's', '2 h'),
    (None, 's', '–'),
  ):
    assert page.evaluate('a => human(...a)', [value, unit]) == text
  texts = 'a => ticks(...a).map(([value, text]) => text)'
  assert page.evaluate(texts, [0, 1e30, 4]) == ['0', '0.5e30', '1.0e30']
  assert page.evaluate(texts, [-1e-6, 1e-6, 2]) == ['-1e-6', '0', '1e-6']


ODD = {
  'none has a loss': [(math.nan, 0)],
  'all is zero': [(0.0, 0), (0.0, 0)],
  'one is huge': [(2.0, 2**30), (1e30, 2**60)],
  'one alone': [(2.0, 1)],
}


@pytest.mark.parametrize('odd', ODD)
def test_odd_numbers_are_drawn_or_left_out(opened, tmp_path, odd):
  results = [
    dataclasses.replace(
      RESULTS[0],
      scheme=str(place),
      validation_loss=loss,
      stored_params=max(size, 1),
      flops_per_token=size,
      tokens_per_second=size,
      peak_memory_bytes=size,
    )
    for place, (loss, size) in enumerate(ODD[odd])
  ]
  curves = {
    (run.scheme, 0): [Point(s, s, run.validation_loss) for s in (1, 2)]
    for run in results
  }
  path = tmp_path / 'report.html'
  html.write(path, results, curves, {}, {}, {}, {}, {})
  page = opened(address=path.as_uri())
  for choice in page.locator('fieldset input').all():
    choice.evaluate('e => e.click()')
    for name in ('loss', 'front'):
      chart(page, name).locator('.plot > svg').press('ArrowRight')
      assert len(ticks(chart(page, name))) >= 1
      drawn = chart(page, name).locator('.plot').inner_html()
      assert not re.search('NaN|Infinity|undefined|null', drawn)
  empty = chart(page, 'front').get_by_text('nothing to show').count()
  assert empty == (odd in ('none has a loss', 'all is zero'))  # of memory


def test_keys_read_and_zoom(opened):
  page = opened()
  loss = chart(page, 'loss')
  before, heights = ticks(loss), ticks(loss, 'y')
  loss.locator('.plot > svg').focus()
  for _ in range(3):
    page.keyboard.press('ArrowRight')
  assert loss.locator('.tip').inner_text().startswith('20 optimizer')
  assert '20 optimizer' in loss.locator('[aria-live]').inner_text()
  page.keyboard.press('+')
  assert ticks(loss) != before
  page.keyboard.press('0')
  assert ticks(loss) == before
  page.keyboard.press('Shift+ArrowRight')
  assert (ticks(loss)[0], ticks(loss, 'y')) == ('50', heights)
  page.keyboard.press('Shift+ArrowUp')
  assert ticks(loss, 'y')[-1] > heights[-1]
  page.keyboard.press('Shift+ArrowLeft')
  page.keyboard.press('Shift+ArrowDown')
  assert (ticks(loss), ticks(loss, 'y')) == (before, heights)


def test_zoom_by_drag_wheel_and_buttons(opened):
  page = opened()
  for name in ('loss', 'front'):
    figure = chart(page, name)
    figure.scroll_into_view_if_needed()
    before = ticks(figure), ticks(figure, 'y')
    drag(page, figure, (0.5, 0.4), (0.9, 0.6))
    assert ticks(figure) != before[0] and ticks(figure, 'y') != before[1]
    if name == 'loss':
      assert all(80 < int(tick) < 200 for tick in ticks(figure))
    figure.locator('.plot > svg').dblclick()
    assert (ticks(figure), ticks(figure, 'y')) == before
    page.keyboard.down('Control')
    page.mouse.wheel(0, -100)
    page.keyboard.up('Control')
    page.wait_for_timeout(50)
    assert ticks(figure) != before[0]
    figure.get_by_role('button', name='Reset the zoom').click()
    assert (ticks(figure), ticks(figure, 'y')) == before
  # Without Control the wheel moves the page.
  top = page.evaluate('scrollY')
  page.mouse.wheel(0, -100)
  page.wait_for_timeout(200)
  assert page.evaluate('scrollY') < top


@pytest.mark.slow
def test_what_is_left_of_a_chart_has_room(opened):
  for size in (browser.WIDE, browser.PHONE):
    page = opened(size)
    for name in ('loss', 'front'):
      figure, lengths = chart(page, name), set()
      for _ in range(14):
        title = figure.locator('.title').nth(1).bounding_box()
        boxes = [t.bounding_box() for t in figure.locator('.grid .y').all()]
        assert min(box['x'] for box in boxes) > title['x'] + title['width']
        lengths.add(max(map(len, ticks(figure, 'y'))))
        figure.get_by_role('button', name='Zoom in').click()
      assert len(lengths) >= 3


def test_two_fingers_zoom(opened):
  page = opened(browser.PHONE, has_touch=True, is_mobile=True)
  loss = chart(page, 'loss')
  loss.locator('.plot > svg').scroll_into_view_if_needed()
  before = ticks(loss)
  box = loss.locator('.plot > svg').bounding_box()
  middle = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2
  session = page.context.new_cdp_session(page)

  def touch(kind, *aparts):
    points = [
      {'x': middle[0] + apart, 'y': middle[1], 'id': place}
      for place, apart in enumerate(aparts)
    ]
    event = {'type': kind, 'touchPoints': points}
    session.send('Input.dispatchTouchEvent', event)

  touch('touchStart', -30)
  assert loss.locator('.tip').is_visible()
  touch('touchStart', -30, 30)
  touch('touchMove', -50, 50)
  touch('touchMove', -90, 90)
  touch('touchEnd')
  assert ticks(loss) != before
  loss.get_by_role('button', name='Reset the zoom').tap()
  assert ticks(loss) == before


def test_what_is_drawn_can_be_chosen(opened):
  page = opened()
  loss, front = chart(page, 'loss'), chart(page, 'front')
  loss.get_by_text('every run', exact=True).click()
  assert loss.locator('.series .line').count() == 10
  loss.get_by_text('FLOPs', exact=True).click()
  assert 'GFLOP' in ' '.join(ticks(loss))  # 102,400 tokens, 7.4 MFLOP each
  assert loss.locator('.title').first.text_content() == 'training compute'
  front.get_by_text('memory', exact=True).click()
  assert any('MiB' in tick for tick in ticks(front))
  # A scheme that is hidden is hidden in both, and the front is that of others.
  button = loss.locator('.legend button').nth(1)
  assert button.get_attribute('aria-pressed') == 'true'
  button.click()
  assert button.get_attribute('aria-pressed') == 'false'
  assert loss.locator('.series .line').count() == 8
  assert front.locator('.series .mark').count() == 3
  assert front.locator('path.front').get_attribute('d').count('V') == 2
  button.dblclick()
  assert loss.locator('.series .line').count() == 2
  assert loss.get_by_text('nothing to show').count() == 0
  button.click()
  assert loss.get_by_text('nothing to show').is_visible()


def test_training_losses_are_a_second_choice(opened):
  page = opened()
  loss = chart(page, 'loss')
  titles = loss.locator('.title')
  assert titles.nth(1).text_content() == 'validation loss (nats per target)'
  loss.get_by_text('training', exact=True).click()
  assert titles.nth(1).text_content() == 'training loss (nats per target)'
  lines = [
    path.get_attribute('d') for path in loss.locator('.series .line').all()
  ]
  assert [len(numbers(path)) if path else 0 for path in lines] == [20] * 4 + [0]
  loss.locator('.plot > svg').focus()
  page.keyboard.press('ArrowLeft')
  tip = loss.locator('.tip').inner_text()
  low, high = (1.7 + 0.5 + 0.05 * seed + 3 / 201 for seed in range(2))
  told = f'{(low + high) / 2:.4f}\t{low:.4f} to {high:.4f}'
  assert tip.startswith('200 optimizer steps') and f'none\t{told}' in tip
  loss.get_by_text('validation', exact=True).click()
  assert (
    len(numbers(loss.locator('.series .line').first.get_attribute('d'))) == 21
  )


def test_a_mean_lies_at_the_mean_of_its_seeds(opened):
  page = opened()
  lines = [
    {'scheme': 0, 'steps': [1, 2], 'tokens': [10, 20], 'loss': [3, 2]},
    {'scheme': 0, 'steps': [2, 3], 'tokens': [30, 40], 'loss': [4, None]},
  ]
  averaged = page.evaluate('lines => averaged(lines, "tokens")[0]', lines)
  point = {'step': 2, 'x': 25, 'y': 3, 'low': 2, 'high': 4}
  assert averaged['points'] == [point]


def test_a_head_sorts_by_numbers_both_ways(opened):
  page = opened()
  head, cells = column(page, 'stored')
  assert head.get_attribute('aria-sort') == 'none'
  head.get_by_role('button').click()
  up = ['20.0k', '56.8k', '346k', '700k', '1.23M']
  assert (head.get_attribute('aria-sort'), cells()) == ('ascending', up)
  head.get_by_role('button').press('Enter')
  assert (head.get_attribute('aria-sort'), cells()) == ('descending', up[::-1])
  loss, losses = column(page, 'validation loss')
  for _ in range(2):  # what has no loss comes last, either way
    loss.get_by_role('button').click()
    assert losses()[-1].startswith('nan')
  assert losses()[0].startswith('1.975')
  assert head.get_attribute('aria-sort') == 'none'
  versus, apart = column(page, 'vs none')
  for first in ('+0.100', '+0.250'):
    versus.get_by_role('button').click()
    assert apart()[0].startswith(first)
    assert apart()[3:] == ['-', 'cannot tell']
  scheme, names = column(page, 'scheme')
  scheme.get_by_role('button').click()
  assert names()[2:4] == ['cycle:3', 'cycle:12']

  page.get_by_text('Results of each seed').click()
  seeds = page.locator('#results tbody td:nth-child(2)')
  page.locator('#results thead').get_by_role('button', name='seed').click()
  assert seeds.all_inner_texts() == ['0'] * 5 + ['1'] * 5


def test_light_and_dark(opened):
  page = opened(color_scheme='dark')

  def brightness():
    colour = page.evaluate('getComputedStyle(document.body).backgroundColor')
    return np.mean([int(part) for part in re.findall(r'\d+', colour)[:3]])

  assert brightness() < 60
  page.get_by_role('button', name='light theme').click()
  assert brightness() > 200
  page.emulate_media(color_scheme='light')
  page.get_by_role('button', name='dark theme').click()
  assert brightness() < 60


# Of all texts that are shown: what they say, their colour and what is behind.
# Row numbers stand on colours of their own, see test_colours.py.
TEXTS = """() => {
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].filter((n) => n.nodeType === 3);
    const text = own.map((n) => n.data).join('').trim();
    const shown = element.checkVisibility() && !element.closest('.row, script');
    if (!text || !shown) continue;
    let opacity = 1, behind = null;
    for (let e = element; e; e = e.parentElement) {
      const style = getComputedStyle(e);
      if (!behind) opacity *= Number(style.opacity);
      if (style.backgroundColor !== 'rgba(0, 0, 0, 0)') {
        behind ||= style.backgroundColor;
      }
    }
    const { color, fill } = getComputedStyle(element);
    const drawn = element instanceof SVGElement;
    found.push([text, drawn ? fill : color, behind, opacity]);
  }
  return found;
}"""


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_every_text_can_be_read(opened, scheme):
  page = opened(color_scheme=scheme)
  for summary in page.locator('summary').all():
    summary.click()
  chart(page, 'loss').locator('.legend button').nth(1).click()
  chart(page, 'loss').locator('.plot > svg').focus()
  page.keyboard.press('ArrowRight')
  texts = page.evaluate(TEXTS)
  said = [text for text, *_ in texts]
  assert {'Summary', 'stored', '20.0k', 'steps', 'every run', '50'} <= {*said}
  assert any('optimizer steps' in text for text in said)
  for text, colour, behind, opacity in texts:
    assert opacity == 1, text
    front, back = (
      [int(part) for part in re.findall(r'\d+', c)[:3]]
      for c in (colour, behind)
    )
    assert contrast(front, back) >= 4.5, (text, colour, behind)


def test_what_is_printed(opened):
  page = opened(color_scheme='dark')
  page.emulate_media(media='print')
  for shown in ('#summary', 'figure .plot > svg', '.legend', '.strips svg'):
    assert page.locator(shown).first.is_visible()
  for hidden in ('#theme', 'fieldset', '.hint', '.buttons', 'details'):
    assert not page.locator(hidden).first.is_visible()
  assert not page.get_by_role('heading', name='Details').is_visible()
  ink, paper = (
    [int(part) for part in re.findall(r'\d+', colour)]
    for colour in page.evaluate(
      '(({color, backgroundColor}) => [color, backgroundColor])'
      '(getComputedStyle(document.body))'
    )
  )
  assert np.mean(paper) > 240 and contrast(ink, paper) > 12
  page.emulate_media(media='screen')
  page.get_by_text('Versions').click()
  page.emulate_media(media='print')
  assert page.get_by_role('heading', name='Details').is_visible()
  assert page.locator('details').last.is_visible()
  assert not page.locator('details').first.is_visible()


def test_a_phone_scrolls_tables_and_not_the_page(opened):
  page = opened(browser.PHONE, has_touch=True, is_mobile=True)
  for summary in page.locator('summary').all():
    summary.click()
  assert page.evaluate('document.scrollingElement.scrollWidth') <= 390
  widths = page.locator('.scroll').first.evaluate(
    'e => [e.scrollWidth, e.clientWidth]'
  )
  assert widths[0] > widths[1]
  assert len(ticks(chart(page, 'loss'))) >= 3


def test_hostile_names_are_only_read(opened):
  page = opened()
  texts = [page.locator('#summary tbody th').nth(3).inner_text()]
  texts += chart(page, 'loss').locator('.legend button').all_inner_texts()
  assert texts.count(EVIL) == 2
  assert page.locator('img').count() == len(plots.CAPTIONS)
  assert page.locator('script').count() == 2
  attributes = '[...document.querySelectorAll("*")].flatMap(e => '
  attributes += '[...e.attributes].map(a => a.name))'
  names = page.evaluate(attributes)
  assert not any(name.startswith('on') for name in names)


def test_the_policy_stops_what_is_not_ours(chromium, report):
  """A script that did come in would neither run nor reach anybody."""
  page = chromium.new_page()
  told = []
  page.on('console', lambda message: told.append(message.text))
  page.goto(report)
  page.evaluate(
    '() => { const s = document.createElement("script");'
    ' s.textContent = "document.title = 1"; document.body.append(s) }'
  )
  assert page.title() == 'Sharing schemes compared'
  assert any('Content Security Policy' in text for text in told)
  reached = 'fetch("http://127.0.0.1:9").then(() => 1, e => e.message)'
  assert page.evaluate(reached) == 'Failed to fetch'
  assert any('connect' in text or 'Fetch API' in text for text in told[1:])
  page.close()


def test_without_scripts_pictures_and_tables_are_there(opened):
  page = opened(java_script_enabled=False)
  assert page.locator('img').first.is_visible()
  assert page.locator('#summary tbody tr').count() == len(SCHEMES)
  assert page.locator('.strips .cell').first.is_visible()
  assert not any(b.is_visible() for b in page.locator('button').all())
