"""When a row is called better: intervals, and how often they are right."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from shared_tfm.report import columns, interval, tables
from shared_tfm.report.interval import Difference, difference

THEIRS = {0: 2.0, 1: 2.1, 2: 1.9, 3: 2.05, 4: 1.95, 5: 2.0}
NOISE = (0.001, -0.002, 0.0, 0.003, -0.001, 0.002)


def ours(by, noise=NOISE):
  return {s: THEIRS[s] + by + d for s, d in zip(THEIRS, noise, strict=True)}


def test_pairs_tell_what_spreads_would_hide():
  """The seeds differ by 0.2, and the rows by 0.05 within each."""
  found = difference(ours(0.05), THEIRS)
  assert found.mean == pytest.approx(0.05 + np.mean(NOISE))
  assert 0.04 < found.low < found.mean < found.high < 0.06
  assert found.verdict(min) == 'worse' and found.verdict(max) == 'better'
  found = difference(ours(-0.05), THEIRS)
  assert found.high < 0
  assert found.verdict(min) == 'better' and found.verdict(max) == 'worse'


def test_nothing_is_told_where_0_is_inside():
  found = difference(ours(0.0005), THEIRS)
  assert found.low < 0 < found.high
  assert found.verdict(min) == found.verdict(max) == 'cannot tell'
  assert difference(THEIRS, THEIRS).verdict(min) == 'cannot tell'


def test_few_seeds_and_seeds_that_are_no_pairs_tell_nothing():
  few = dict(list(ours(1.0).items())[: interval.FEWEST - 1])
  found = difference(few, THEIRS)
  assert found.mean == pytest.approx(1.0, abs=0.01)
  assert found == Difference(found.mean)
  assert found.verdict(min) == 'cannot tell'
  assert math.isnan(difference({7: 1.0}, THEIRS).mean)


def test_a_run_that_diverged_leaves_no_verdict():
  found = difference({**ours(1.0), 3: math.nan}, THEIRS)
  assert math.isnan(found.mean) and found.low is None
  assert found.verdict(min) == 'cannot tell'


@pytest.mark.parametrize(
  'd', [[0, 0, 4e-4, 0, 0], [0.3 - 0.2] * 4 + [0.2], [0.1, 0.1, 0.2, 0.2]]
)
def test_values_that_are_alike_have_an_interval_too(d):
  """As accuracies are; whose resamples are one value alone is Student's."""
  d = np.array(d)
  low, high = interval.bootstrap_t(d)
  assert np.isfinite([low, high]).all() and low < d.mean() < high
  width = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5
  ends = d.mean() - low, high - d.mean()
  assert max(ends) == pytest.approx(width)


def test_one_value_but_for_rounding_is_one_value():
  low, high = interval.bootstrap_t(np.array([0.3 - 0.2, 0.1, 0.1, 0.4 - 0.3]))
  assert low == high == pytest.approx(0.1)


def test_an_interval_is_the_same_each_time():
  interval._resamples.cache_clear()
  first = difference(ours(0.05), THEIRS)
  interval._resamples.cache_clear()
  assert difference(ours(0.05), THEIRS) == first


def percentile(d):
  """The interval that is not taken."""
  means = d[interval._resamples(len(d))].mean(1)
  return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize('count', [interval.FEWEST, 8])
def test_how_often_the_true_mean_is_inside(count):
  """Of 500 samples; a share of 0.95 has a standard error of 0.01."""
  random = np.random.default_rng(1)
  inside = {interval.bootstrap_t: 0, percentile: 0}
  for d in random.standard_normal((500, count)):
    for made in inside:
      low, high = made(d)
      inside[made] += low <= 0 <= high
  taken, plain = (n / 500 for n in inside.values())
  assert 0.92 <= taken <= 0.99
  assert plain < 0.92 and plain < taken - 0.02


# --- In the summary ---


def test_the_column_of_verdicts():
  rows = [
    columns.Summary('none', 6, {}),
    columns.Summary('a', 6, {}, Difference(0.1234, 0.09, 0.15)),
    columns.Summary('b', 6, {}, Difference(-0.1, -0.2, -0.05)),
    columns.Summary('c', 2, {}, Difference(0.1)),
    columns.Summary('d', 6, {}, Difference(math.nan)),
  ]
  assert [columns.versus(row) for row in rows] == [
    '-',
    '+0.123 [+0.090, +0.150] worse',
    '-0.100 [-0.200, -0.050] better',
    '+0.100 cannot tell',
    'cannot tell',
  ]
  titles = [column.title for column in tables.columns(rows)]
  place = titles.index('vs none')
  assert titles[place - 1] == 'validation loss'
  alone = [dataclasses.replace(rows[0], adjusted='rate 0.1')]
  titles = [column.title for column in tables.columns(alone)]
  assert 'vs none' not in titles and titles[-1] == 'adjusted'
