"""What becomes of a picture before a model sees it.

Shape letters: Y, X pixels, C channels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

Record = dict[str, Any]

SAMPLE = 1024  # pictures that means and deviations are taken of
AREA = (0.08, 1.0)  # of a part that 'inception' cuts out
RATIO = (3 / 4, 4 / 3)  # of its sides


@dataclasses.dataclass(frozen=True)
class Fitting:
  """Scales a picture to a square, and cuts off what is beside it.

  Attributes:
    size: of the square, in pixels.
    central: the share of the picture's shorter side that the square shows.
  """

  size: int
  central: float = 1.0

  def __call__(self, record: Record) -> Record:
    """The record with its 'image' (size, size, C)."""
    image_YXC = record['image']
    height, width = image_YXC.shape[:2]
    side = round(min(height, width) * self.central)
    top, left = (height - side) // 2, (width - side) // 2
    part_YXC = image_YXC[top : top + side, left : left + side]
    return {**record, 'image': scaled(part_YXC, self.size)}


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Changes a training picture at random.

  Attributes:
    name: 'crop' shifts the picture by up to an eighth of its size, with black
      beside it (of 32 pixels these are the 4 of ResNet, 1512.03385, section
      4.2). 'crop_flip' mirrors every second one besides. 'inception' shows 8 to
      100 % of its area, at a ratio of sides of 3/4 to 4/3, and mirrors every
      second one (1409.4842, section 6).
    size: of the square that comes out, in pixels.
  """

  name: str
  size: int

  def __call__(self, record: Record, rng: np.random.Generator) -> Record:
    """The record with its 'image' (size, size, C), drawn from `rng`."""
    image_YXC = record['image']
    if self.name == 'inception':
      image_YXC = scaled(_part(image_YXC, rng), self.size)
    else:
      image_YXC = _shifted(Fitting(self.size)(record)['image'], rng)
    if self.name != 'crop' and rng.random() < 0.5:
      image_YXC = image_YXC[:, ::-1]
    return {**record, 'image': image_YXC}


def _shifted(image_YXC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  size = len(image_YXC)
  down, right = rng.integers(-(size // 8), size // 8 + 1, 2)
  shifted_YXC = np.zeros_like(image_YXC)
  shifted_YXC[_inside(down, size), _inside(right, size)] = image_YXC[
    _inside(-down, size), _inside(-right, size)
  ]
  return shifted_YXC


def _inside(shift: int, size: int) -> slice:
  """Where a row of pixels, moved by `shift`, is still within `size`."""
  return slice(max(shift, 0), size + min(shift, 0))


def _part(image_YXC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """A part of random size and place; the whole where ten do not fit."""
  height, width = image_YXC.shape[:2]
  for _ in range(10):
    area = height * width * rng.uniform(*AREA)
    ratio = np.exp(rng.uniform(*np.log(RATIO)))
    y, x = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
    if 0 < y <= height and 0 < x <= width:
      top = rng.integers(0, height - y + 1)
      left = rng.integers(0, width - x + 1)
      return image_YXC[top : top + y, left : left + x]
  return image_YXC


def scaled(image_YXC: np.ndarray, size: int) -> np.ndarray:
  """The picture as a square of `size` pixels, by bilinear interpolation."""
  if image_YXC.shape[:2] == (size, size):
    return image_YXC
  channels = image_YXC.shape[-1]
  whole = channels == 3  # which Pillow takes at once, for the same numbers
  planes = [image_YXC] if whole else np.moveaxis(image_YXC, -1, 0)
  planes = [
    np.asarray(
      PIL.Image.fromarray(np.ascontiguousarray(plane)).resize(
        (size, size), PIL.Image.Resampling.BILINEAR
      )
    )
    for plane in planes
  ]
  return planes[0] if whole else np.stack(planes, axis=-1)


@dataclasses.dataclass(frozen=True)
class Examples:
  """What a model reads of a record.

  Attributes:
    mean_C: taken from pixels of 0 to 1.
    deviation_C: what they are then divided by.
  """

  mean_C: np.ndarray
  deviation_C: np.ndarray

  def __call__(self, record: Record) -> dict[str, np.ndarray]:
    """Inputs (Y, X, C) float32, the class, and weight 0 where it is unknown."""
    scale_C = np.float32(1 / 255) / self.deviation_C
    pixels_YXC = record['image'] * scale_C
    pixels_YXC -= self.mean_C / self.deviation_C
    label = int(record['label'])
    return {
      'inputs': pixels_YXC,
      'targets': np.array(max(label, 0), np.int32),
      'weights': np.array(label >= 0, np.float32),  # TFDS: -1 for unknown
    }


def moments(
  records: Sequence[Record], fitting: Fitting
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each channel, of pixels of 0 to 1.

  They are of all pictures, or of 1024 that lie evenly among more.
  """
  count = min(len(records), SAMPLE)
  rows = [i * len(records) // count for i in range(count)]
  sums = squares = np.zeros(1)
  for row in rows:
    pixels_YXC = fitting(records[row])['image'] / 255
    sums = sums + pixels_YXC.mean((0, 1))
    squares = squares + np.square(pixels_YXC).mean((0, 1))
  mean_C = sums / count
  deviation_C = np.sqrt(np.maximum(squares / count - mean_C**2, 1e-8))
  return mean_C.astype(np.float32), deviation_C.astype(np.float32)
