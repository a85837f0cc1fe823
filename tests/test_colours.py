"""Whether colours can be read and told apart, by day and by night."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from shared_tfm.report import html, plots

TEXT, LINE = 4.5, 3.0  # least contrasts, WCAG 2.2, 1.4.3 and 1.4.11
CSS = (Path(html.__file__).parent / 'page' / 'report.css').read_text()
# What the eye is left with of (red, green, blue), each linear; Machado,
# Oliveira & Fernandes 2009, severity 1.
EYES = {
  'all three cones': np.eye(3),
  'protanopia': [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
  ],
  'deuteranopia': [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
  ],
  'tritanopia': [
    [1.255528, -0.076749, -0.178779],
    [-0.078411, 0.930809, 0.147602],
    [0.004733, 0.691367, 0.303900],
  ],
}
TO_XYZ = np.array(
  [
    [0.4124, 0.3576, 0.1805],
    [0.2126, 0.7152, 0.0722],
    [0.0193, 0.1192, 0.9505],
  ]
)


def linear(rgb):
  """Light of a colour, shape (3,), from 0 to 1, of values from 0 to 255."""
  rgb = np.asarray(rgb) / 255
  return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
  """From 1, none, to 21, of two colours of values from 0 to 255."""
  dark, bright = sorted(linear(c) @ TO_XYZ[1] for c in (one, other))
  return (bright + 0.05) / (dark + 0.05)


def lab(light):
  """CIELAB, in which a distance of about 2 is just seen."""
  xyz = TO_XYZ @ np.clip(light, 0, 1) / TO_XYZ.sum(1)
  x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
  return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def bytes_of(colour):
  return 255 * np.array(to_rgb(colour))


def named(name):
  """A colour of the page by day and by night."""
  return re.search(rf'--{name}: light-dark\((#\w+), (#\w+)\)', CSS).groups()


def test_the_contrast_of_known_colours():
  assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
  assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(
    4.478, abs=1e-3
  )


@pytest.mark.parametrize('behind', ['page', 'card', 'mark'])
@pytest.mark.parametrize('text', ['ink', 'soft'])
def test_texts_stand_out(text, behind):
  for front, back in zip(named(text), named(behind), strict=True):
    assert contrast(bytes_of(front), bytes_of(back)) >= TEXT


@pytest.mark.parametrize('behind', ['page', 'card'])
def test_lines_and_frames_stand_out(behind):
  day, night = named(behind)
  for palette, back in ((plots.LINES, day), (plots.NIGHT, night)):
    for colour in palette:
      assert contrast(bytes_of(colour), bytes_of(back)) >= LINE, colour
  for front, back in zip(named('link'), (day, night), strict=True):
    assert contrast(bytes_of(front), bytes_of(back)) >= LINE
  for colour in plots.LINES:  # on what is printed
    assert contrast(bytes_of(colour), bytes_of('white')) >= LINE, colour


def test_numbers_stand_out_from_their_row():
  (text,) = re.findall(r'\.strips \.row \{ fill: (#\w+);', CSS)
  for row in [*range(2 * len(plots.ROWS)), None]:
    colour = bytes_of(plots.row_colour(row))
    assert contrast(bytes_of(text), colour) >= TEXT, row


@pytest.mark.parametrize('eye', EYES)
@pytest.mark.parametrize('palette', [plots.LINES, plots.NIGHT])
def test_lines_can_be_told_apart(palette, eye):
  seen = [lab(EYES[eye] @ linear(bytes_of(colour))) for colour in palette]
  pairs = itertools.combinations(zip(palette, seen, strict=True), 2)
  for (name, one), (other, two) in pairs:
    assert np.linalg.norm(one - two) >= 12, (name, other)
