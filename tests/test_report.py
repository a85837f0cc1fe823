"""The summary of a comparison against hand-made numbers, and its pictures."""

import base64
import dataclasses
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from shared_tfm import files
from shared_tfm.errors import BadInput
from shared_tfm.report import (
  charts,
  columns,
  html,
  plots,
  results_file,
  tables,
)
from shared_tfm.report.plots import Point
from shared_tfm.report.results_file import Result

ONE = Result(
  scheme='none',
  seed=0,
  stored_params=1_234_567,
  applied_params=1_234_567,
  non_embedding_params=1_200_000,
  sharing_ratio=1.0,
  flops_per_token=7_400_000,
  train_loss=1.5,
  validation_loss=1.6,
  steps=100,
  tokens=51_200,
  tokens_per_second=12_000.0,
  peak_memory_bytes=210 * 2**20,
  scores={'bits_per_byte': 2.3, 'unigram_bits_per_byte': 4.81},
)
RESULTS = [
  ONE,
  dataclasses.replace(
    ONE,
    seed=1,
    train_loss=1.6,
    validation_loss=1.8,
    scores={'bits_per_byte': 2.5, 'unigram_bits_per_byte': 4.81},
    tokens_per_second=13_000.0,
  ),
  dataclasses.replace(
    ONE,
    scheme='cycle:3',
    stored_params=345_678,
    sharing_ratio=4.0,
    validation_loss=1.75,
    scores={'bits_per_byte': 2.6, 'unigram_bits_per_byte': 4.81},
    tokens_per_second=950.0,
  ),
  dataclasses.replace(
    ONE,
    scheme='cycle:3',
    seed=1,
    stored_params=345_678,
    sharing_ratio=4.0,
    validation_loss=1.85,
    scores={'bits_per_byte': 2.7, 'unigram_bits_per_byte': 4.81},
    tokens_per_second=970.0,
  ),
]
TABLE = """\
| scheme  | stored | applied | ratio | FLOPs/token |    train loss |\
 validation loss |            vs none |     bits/byte |     tokens/s |\
 peak memory |
|:--------|-------:|--------:|------:|------------:|--------------:|\
----------------:|-------------------:|--------------:|-------------:|\
------------:|
| none    |  1.23M |   1.23M |  1.00 |  7.40 MFLOP | 1.550 ± 0.071 |\
   1.700 ± 0.141 |                  - | 2.400 ± 0.141 | 12.5k ± 0.7k |\
     210 MiB |
| cycle:3 |   346k |   1.23M |  4.00 |  7.40 MFLOP | 1.500 ± 0.000 |\
   1.800 ± 0.071 | +0.100 cannot tell | 2.650 ± 0.071 |     960 ± 14 |\
     210 MiB |

unigram entropy 4.810 bits per byte; 2 seeds for each scheme;\
 ± is the sample standard deviation over seeds; fewer than 4 seeds tell no\
 schemes apart"""
CURVES = {
  (run.scheme, run.seed): [
    Point(step, 512 * step, run.validation_loss + 3 / (step + 1))
    for step in (0, 50, 100)
  ]
  for run in RESULTS
}
OWNERS = {
  'none': {'attention': (0, 1, 2, 3, 4, 5), 'norm': (0, 1, 2, 3, 4, 5)},
  'cycle:3': {'attention': (0, 1, 2, 0, 1, 2), 'norm': (0, 0, 0, 0, 0, 0)},
}


# --- results.csv ---


def test_what_is_written_is_read_back(tmp_path):
  odd = dataclasses.replace(
    ONE, scheme='a,"b"\n=c', train_loss=0.1 + 0.2, scores={'accuracy': math.inf}
  )
  results_file.write(tmp_path / 'results.csv', [*RESULTS, odd])
  assert results_file.read(tmp_path / 'results.csv') == [*RESULTS, odd]


def test_the_columns_start_with_scheme_and_seed(tmp_path):
  results_file.write(tmp_path / 'results.csv', RESULTS)
  header, first, *_ = (tmp_path / 'results.csv').read_text().splitlines()
  assert header.startswith('scheme,seed,stored_params,applied_params,')
  assert first.startswith('none,0,1234567,1234567,')


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'results.csv'
  results_file.write(path, RESULTS)
  before = path.read_bytes()

  def full(*_):
    raise OSError('no space left')

  monkeypatch.setattr(files.os, 'replace', full)
  with pytest.raises(OSError, match='no space left'):
    results_file.write(path, RESULTS[:1])
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  [
    ('none,1', 'none,x', "line 3, column seed: needs int, got 'x'"),
    (
      ',1.75,',
      ',low,',
      "line 4, column validation_loss: needs float, got 'low'",
    ),
    (
      'none,1',
      'none,0',
      "line 3, column seed: 0 is there twice for 'none'",
    ),
    ('none,1', 'none', 'line 3: needs 15 columns, got 14'),
    ('train_loss,', 'train,', 'line 1: there is no column train_loss'),
    ('2.3,', 'low,', "line 2, column bits_per_byte: needs float, got 'low'"),
    ('cycle:3,1', '"cycle:3,1', 'line 5: unexpected end of data'),
  ],
)
def test_a_malformed_file_is_named_with_line_and_column(
  tmp_path, old, new, message
):
  path = tmp_path / 'results.csv'
  results_file.write(path, RESULTS)
  path.write_text(path.read_text().replace(old, new, 1))
  with pytest.raises(BadInput) as error:
    results_file.read(path)
  assert str(error.value) == f'{path}, {message}'


def test_files_that_hold_no_results(tmp_path):
  path = tmp_path / 'results.csv'
  with pytest.raises(BadInput, match=r'results\.csv: No such file'):
    results_file.read(path)
  results_file.write(path, [])
  with pytest.raises(BadInput, match=r'results\.csv holds no results'):
    results_file.read(path)
  path.write_bytes(b'scheme,seed\n\xff')
  with pytest.raises(BadInput, match=r'results\.csv is not text in UTF-8'):
    results_file.read(path)


def test_columns_of_a_user_are_passed_over(tmp_path):
  path = tmp_path / 'results.csv'
  results_file.write(path, RESULTS)
  lines = path.read_text().splitlines()
  path.write_text('\n'.join(f'note,{line}' for line in lines))
  assert results_file.read(path) == RESULTS


def test_what_was_adjusted_is_read_back(tmp_path):
  path = tmp_path / 'results.csv'
  told = [*RESULTS[:2], *(adjusted(run) for run in RESULTS[2:])]
  results_file.write(path, told)
  assert results_file.read(path) == told
  assert path.read_text().splitlines()[0].endswith(',adjusted')
  lines = tables.render(tables.summary(told)).splitlines()
  assert lines[0].endswith('|                 adjusted |')
  assert lines[2].endswith('|                        - |')
  assert lines[3].endswith('| width 64 -> 92, rate 0.1 |')


def adjusted(run):
  return dataclasses.replace(run, adjusted='width 64 -> 92, rate 0.1')


# --- the summary ---


def test_mean_and_sample_standard_deviation():
  none, cycle = tables.summary(RESULTS)
  assert (none.scheme, none.seeds) == ('none', 2)
  assert none.stats['validation_loss'].mean == pytest.approx(1.7)
  assert none.stats['validation_loss'].spread == pytest.approx(0.2 / 2**0.5)
  assert cycle.stats['tokens_per_second'].mean == pytest.approx(960)
  assert cycle.stats['tokens_per_second'].spread == pytest.approx(200**0.5)


def test_schemes_keep_the_order_of_first_appearance():
  mixed = [RESULTS[2], RESULTS[0], RESULTS[3], RESULTS[1]]
  assert [r.scheme for r in tables.summary(mixed)] == ['cycle:3', 'none']


def test_one_seed_has_no_spread():
  (row,) = tables.summary([ONE])
  assert row.stats['validation_loss'] == columns.Stat(1.6, None, {0: 1.6})
  text = tables.render([row])
  assert '|      1.500 |           1.600 |     2.300 |' in text
  assert '; 1 seed for each scheme;' in text


def test_the_rendered_summary():
  assert tables.render(tables.summary(RESULTS)) == TABLE


def test_a_pipe_in_a_name_stays_in_its_cell():
  rows = tables.summary([dataclasses.replace(ONE, scheme='a|b\nc')])
  assert r'| a\|b c |' in tables.render(rows)


@pytest.mark.parametrize(
  ('value', 'shown'),
  [(0, '0.00'), (999, '999'), (999_500, '1.00M'), (45_670_000, '45.7M')],
)
def test_counts_are_shown_with_three_digits(value, shown):
  (row,) = tables.summary([dataclasses.replace(ONE, applied_params=value)])
  assert columns.COLUMNS[1].cell(row) == shown


def test_a_perplexity_has_few_digits():
  for value, shown in ((21.456, '21.46'), (1e300, '1e+300')):
    runs = [dataclasses.replace(ONE, scores={'perplexity': value})]
    (row,) = tables.summary(runs)
    assert columns.SCORES['perplexity'].cell(row) == shown


def marked(results):
  rows = tables.summary(results)
  return {c.field: html.best(rows, c) for c in tables.columns(rows)}


def seeded(**by):
  """Both schemes with six seeds, the second off by so much from the first."""
  return [
    dataclasses.replace(
      run,
      seed=seed,
      validation_loss=1.7 + 0.1 * seed + off * (1 + noise),
      tokens_per_second=1000.0 + seed,
    )
    for run, off in ((RESULTS[0], 0.0), (RESULTS[2], by['off']))
    for seed, noise in enumerate((0.1, -0.2, 0.3, -0.1, 0.2, 0.0))
  ]


def test_only_an_interval_marks_the_best():
  best = marked(seeded(off=0.01))  # seeds alone spread by 0.19
  assert best['validation_loss'] == {'none'}
  assert marked(seeded(off=-0.01))['validation_loss'] == {'cycle:3'}
  assert marked(seeded(off=0.0))['validation_loss'] == set()
  assert best['stored_params'] == best['sharing_ratio'] == {'cycle:3'}
  assert best['tokens_per_second'] == set()  # all are alike
  assert best['applied_params'] == set()  # has no better and worse
  assert best['versus'] == set()


def test_few_seeds_mark_only_what_is_counted():
  for results in (RESULTS, RESULTS[::2]):
    best = marked(results)
    assert best['stored_params'] == {'cycle:3'}
    assert best['validation_loss'] == best['tokens_per_second'] == set()
    assert best['bits_per_byte'] == best['peak_memory_bytes'] == set()


def test_a_diverged_run_is_not_the_best_and_marks_no_other():
  """No interval tells what is left apart, where it is the only one or all."""
  nan = {'bits_per_byte': math.nan}
  lost = [
    dataclasses.replace(r, scores=nan, validation_loss=math.nan)
    for r in RESULTS[:2]
  ]
  best = marked([*lost, *RESULTS[2:]])
  assert best['bits_per_byte'] == best['validation_loss'] == set()
  lost = [
    dataclasses.replace(r, scheme='lost', validation_loss=math.nan)
    for r in RESULTS[:2]
  ]
  assert marked([*lost, *RESULTS])['validation_loss'] == set()
  seeds = seeded(off=0.01)
  assert marked([*seeds, *lost])['validation_loss'] == {'none'}


def test_the_note_says_who_diverged():
  lost = dataclasses.replace(
    RESULTS[1], validation_loss=math.nan, train_loss=math.nan, scores={}
  )
  rows = tables.summary([ONE, lost, *RESULTS[2:]])
  note = tables.note(rows)
  assert note.startswith('unigram entropy 4.810 bits per byte;')
  assert note.endswith('; diverged, so without a mean: none (1 of 2 seeds)')
  cells = tables.render(rows).splitlines()[2]
  assert cells.count(' nan |') == 3 and 'nan ±' not in cells


def test_the_note_of_few_and_of_more_seeds():
  rows = tables.summary([*seeded(off=0.1), *(extra(seed) for seed in range(3))])
  note = tables.note(rows)
  assert '3 to 6 seeds for each scheme' in note and '; vs none: ' in note
  assert note.endswith('; fewer than 4 seeds tell no schemes apart')
  assert columns.versus(rows[1]).endswith(' worse')
  assert columns.versus(rows[2]).endswith(' cannot tell')


def extra(seed):
  return dataclasses.replace(ONE, scheme='few', seed=seed)


def test_a_score_that_some_schemes_lack_is_not_made_up(tmp_path):
  """Columns are those of scores that were measured; the file has gaps."""
  bleu = [dataclasses.replace(r, scores={'bleu': 30.0}) for r in RESULTS[:2]]
  bare = [dataclasses.replace(r, scores={}) for r in RESULTS[2:]]
  results_file.write(tmp_path / 'results.csv', [*bleu, *bare])
  results = results_file.read(tmp_path / 'results.csv')
  assert results == [*bleu, *bare]
  rows = tables.summary(results)
  titles = [column.title for column in tables.columns(rows)]
  assert 'BLEU' in titles and 'bits/byte' not in titles
  first, second = tables.render(rows).splitlines()[2:4]
  assert '| 30.00 ± 0.00 |' in first
  assert '|            - |' in second
  assert 'unigram' not in tables.note(rows)


# --- pictures ---


def decoded(path):
  """The picture, shape (height, width, 4), values 0 to 1."""
  image = matplotlib.image.imread(path)
  assert image.ndim == 3 and image.shape[2] == 4
  return image


def shows(image, colour):
  """Whether some pixels have the colour '#rrggbb'."""
  near = np.abs(image[..., :3] - to_rgb(colour)) < 0.01
  return near.all(axis=-1).sum() > 20


def test_the_plots_show_every_scheme(tmp_path):
  paths = plots.draw_all(RESULTS, CURVES, tmp_path)
  assert list(paths) == list(plots.CAPTIONS)
  for name, path in paths.items():
    assert path == tmp_path / f'{name}.png'
    image = decoded(path)
    assert image.shape[1] >= 800 and image.shape[0] >= 500
    # Left of the legend, where the data are.
    data = image[:, : image.shape[1] // 2 if 'params' not in name else -250]
    assert shows(data, plots.LINES[0]) and shows(data, plots.LINES[1])
    assert not shows(image, plots.LINES[2])


def test_what_the_plots_draw(tmp_path, monkeypatch):
  drawn = {}
  monkeypatch.setattr(
    plots, 'save', lambda figure, path: drawn.update({path.stem: figure})
  )
  late = {**CURVES, ('none', 1): CURVES['none', 1][1:]}  # has no step 0
  plots.draw_all(RESULTS, late, tmp_path)

  (axes,) = drawn['loss_vs_flops'].axes
  none, cycle = axes.lines
  np.testing.assert_array_equal(
    cycle.get_xdata(), [0, 25_600 * 7_400_000, 51_200 * 7_400_000]
  )
  np.testing.assert_allclose(
    cycle.get_ydata(), 1.8 + 3 / np.array([1, 51, 101])
  )
  assert len(none.get_xdata()) == 2  # the steps that both seeds reached
  band = axes.collections[1].get_paths()[0].get_extents()
  np.testing.assert_allclose([band.ymin, band.ymax], [1.75 + 3 / 101, 1.85 + 3])
  assert axes.get_ylim()[1] < 2  # step 0 lies above

  (axes,) = drawn['loss_vs_params'].axes
  assert axes.get_xscale() == 'log'
  bars = [bar.get_paths()[0].get_extents() for bar in axes.collections]
  np.testing.assert_allclose([bar.x0 for bar in bars], [1_234_567, 345_678])
  np.testing.assert_allclose(
    [bar.height / 2 for bar in bars], [0.2 / 2**0.5, 0.1 / 2**0.5]
  )


def test_the_front_is_what_nothing_beats():
  points = [(3, 1.0), (1, 3.0), (2, 3.5), (2, 2.0), (2, math.nan), (4, 1.0)]
  assert plots.front(points) == [(1, 3.0), (2, 2.0), (3, 1.0)]
  assert plots.front([(1, math.nan)]) == []


def test_plots_without_curves_or_with_strange_ones(tmp_path):
  odd = dataclasses.replace(ONE, scheme='$x_{', validation_loss=math.nan)
  lost = [Point(1, 512, math.nan), Point(2, 1024, math.inf)]
  plots.draw_all([ONE, odd], {('none', 0): [], ('$x_{', 0): lost}, tmp_path)
  plots.draw_all([odd], {}, tmp_path)
  assert decoded(tmp_path / 'loss_vs_steps.png').std() > 0.01


def test_a_scheme_keeps_its_colour_and_rows_differ():
  assert plots.colours(['a', 'b'])['b'] == plots.colours(['c', 'b'])['b']
  assert len({plots.row_colour(row) for row in range(18)}) == 18


def test_the_picture_of_owner_tables(tmp_path):
  image = decoded(plots.owner_strips(OWNERS, tmp_path / 'owners.png'))
  cell = 0.3 * 160  # inches, dots per inch
  left = image.shape[1] - 6.2 * cell  # where layer 0 begins
  tops = [1.0, 2.0, 3.6, 4.6]  # of the strips, in cells
  strips = [table for parts in OWNERS.values() for table in parts.values()]
  for top, strip in zip(tops, strips, strict=True):
    for layer, row in enumerate(strip):
      # Near a corner of the cell, away from its number.
      pixel = image[int((top + 0.15) * cell), int(left + (layer + 0.15) * cell)]
      np.testing.assert_allclose(
        pixel[:3], to_rgb(plots.row_colour(row)), atol=0.01
      )


def test_a_cell_without_a_row_is_grey(tmp_path):
  owners = {'attention=soft:2': {'attention': (None, None), 'norm': (0, 1)}}
  image = decoded(plots.owner_strips(owners, tmp_path / 'owners.png'))
  cell = 0.3 * 160
  at = int(1.15 * cell), int(image.shape[1] - 2.05 * cell)
  np.testing.assert_allclose(image[at][:3], to_rgb('#eee'), atol=0.01)
  strips = Page(page(tmp_path, owners=owners)).strips
  assert strips['attention=soft:2', 'attention'] == [('~', '#eee')] * 2


# --- the page ---


class Page(HTMLParser):
  """What a browser would find: tags, links, texts, and the cells of strips."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.links, self.strips, self.words = [], [], {}, []
    self.heading = self.scheme = self.cells = None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    given = dict(attrs)
    self.tags.append(tag)
    self.links += [given[k] for k in ('src', 'href', 'action') if k in given]
    self.heading = (self.heading or tag == 'h3') and tag != 'svg'
    if given.get('class') == 'strip':
      self.cells = self.strips[self.scheme, given['data-part']] = []
    if given.get('class') == 'cell':
      self.cells.append((given['data-row'], given['fill']))

  def handle_data(self, data):
    if data.strip():
      self.words.append(data)
      self.scheme = data if self.heading else self.scheme

  def handle_endtag(self, tag):
    self.heading = self.heading and tag != 'h3'


def page(tmp_path, results=RESULTS, owners=OWNERS, config=None):
  pictures = {name: tmp_path / f'{name}.png' for name in plots.CAPTIONS}
  for name, picture in pictures.items():
    picture.write_bytes(name.encode())
  path = tmp_path / 'report.html'
  html.write(
    path,
    results,
    CURVES,
    {},
    owners,
    pictures,
    config or {'model': {'num_layers': 6}},
    {'jax': '0.10.2'},
  )
  return path.read_text(encoding='utf-8')


def test_the_page_needs_nothing_beside_it(tmp_path):
  text = page(tmp_path)
  found = Page(text)
  assert len(found.links) == 3
  assert all(link.startswith('data:image/png;base64,') for link in found.links)
  assert not {'link', 'iframe', 'object', 'base'} & set(found.tags)
  assert found.tags.count('script') == 2  # what is drawn, and what draws it
  addresses = set(re.findall(r'https?://[^\s"\'`]+', text))
  assert addresses == {'http://www.w3.org/2000/svg'}  # a name, not a place
  assert '@import' not in text
  first = base64.b64decode(found.links[0].partition(',')[2])
  assert first == b'loss_vs_steps'
  assert len(list(tmp_path.iterdir())) == 4  # three plots and the page


def test_the_page_shows_summary_runs_config_and_versions(tmp_path):
  text = page(tmp_path)
  words = Page(text).words
  for cell in ('1.700 ± 0.141', '346k', 'model.num_layers', '6', '0.10.2'):
    assert cell in words
  assert '<td data-value="345678.0" class="best">346k</td>' in text
  assert 'class="best">1.700 ± 0.141' not in text
  assert text.count('<details class="card">') == 4
  assert '1.6588' in words  # the loss of none, seed 0, at step 50


def test_the_strips_have_a_cell_for_every_layer(tmp_path):
  strips = Page(page(tmp_path)).strips
  for scheme, parts in OWNERS.items():
    for component, table in parts.items():
      cells = strips[scheme, component]
      assert [row for row, _ in cells] == [str(row) for row in table]
      assert [colour for _, colour in cells] == [
        plots.row_colour(row) for row in table
      ]


def test_names_and_values_are_escaped(tmp_path):
  bad = '"><script src=http://x>alert(1)</script>'
  results = [dataclasses.replace(run, scheme=bad) for run in RESULTS[:2]]
  text = page(tmp_path, results, {bad: {bad: (0,)}}, {bad: bad})
  found = Page(text)
  assert found.tags.count('script') == 2 and len(found.links) == 3
  assert '&lt;script src=http://x&gt;' in text
  assert bad in found.words
  assert text.count('</script>') == 2  # none in the embedded data
  assert embedded(text)['schemes'][0]['name'] == bad


def embedded(text):
  """What the page's script draws."""
  start = '<script type="application/json" id="data">'
  return json.loads(text.partition(start)[2].partition('</script>')[0])


def test_the_policy_allows_our_script_and_style_alone(tmp_path):
  """Browsers compare the hash of what stands between the tags."""
  text = page(tmp_path)
  policy = re.search('Content-Security-Policy" content="(.*?)"', text)[1]
  assert policy.startswith("default-src 'none'; img-src data:; script-src")
  assert 'unsafe' not in policy and '*' not in policy
  for tag in 'script', 'style':
    inside = re.findall(f'<{tag}>(.*?)</{tag}>', text, re.DOTALL)
    digest = hashlib.sha256(inside[0].encode()).digest()
    hashed = base64.b64encode(digest).decode()
    assert len(inside) == 1 and f"{tag}-src 'sha256-{hashed}';" in policy
  assert not re.search(r'<[^>]* (style|on\w+)=', text.partition('<script>')[0])


def test_what_the_charts_draw_is_what_was_measured(tmp_path):
  lost = dataclasses.replace(RESULTS[3], validation_loss=math.nan)
  data = embedded(page(tmp_path, [*RESULTS[:3], lost]))
  assert [scheme['name'] for scheme in data['schemes']] == ['none', 'cycle:3']
  lines = data['curves']['validation']
  assert [run['scheme'] for run in lines] == [0, 0, 1, 1]
  assert lines[2]['steps'] == [0, 50, 100]
  assert lines[2]['flops'] == [0, 25_600 * 7.4e6, 51_200 * 7.4e6]
  assert data['curves']['training'] == []
  none, cycle = data['points']
  assert none['loss'] == pytest.approx([1.7, 0.2 / 2**0.5])
  assert none['params'] == [1_234_567, 0]
  assert none['flops'] == [51_200 * 7.4e6, 0]
  assert none['seconds'][0] == pytest.approx(
    (51_200 / 12e3 + 51_200 / 13e3) / 2
  )
  assert none['memory'] == [210 * 2**20, 0]
  assert cycle['loss'] == [None, None]


def test_a_run_counts_its_own_flops():
  dear = dataclasses.replace(RESULTS[1], flops_per_token=10_000_000)
  data = charts.data([ONE, dear], CURVES, CURVES)
  for line, each in zip(data['curves']['training'], (7.4e6, 1e7), strict=True):
    assert line['flops'] == [0, 25_600 * each, 51_200 * each]
    assert (line['scheme'], line['tokens']) == (0, [0, 25_600, 51_200])


def test_many_training_losses_become_means_of_windows():
  long = [Point(10 * i, 100 * i, float(i)) for i in range(1, 8)]
  long[5] = dataclasses.replace(long[5], loss=math.nan)
  thin = charts.thinned({('a', 0): long, ('a', 1): long[:3]}, 3)
  assert thin['a', 1] == [Point(30, 300, 2.0)]  # 7 are not in 3 windows of 2
  first, lost, last = thin['a', 0]
  assert (first, last) == (Point(30, 300, 2.0), Point(70, 700, 7.0))
  assert lost.step == 60 and math.isnan(lost.loss)
  assert charts.thinned({('a', 0): long[:5]}, 5) == {('a', 0): long[:5]}
  assert charts.thinned({('a', 0): []}) == {('a', 0): []}
