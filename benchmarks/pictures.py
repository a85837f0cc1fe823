"""A stand-in for ImageNet: as many pixels and bytes a picture, but of noise.

Its spectrum falls as that of photographs does, so that JPEG has as much to do.

Command: python -m benchmarks.pictures DIR [--count=N]
Then: python -m benchmarks.data_throughput configs/vit_imagenet.py \
  --config.data.source=tfds:noise --config.data.path=DIR
"""

import argparse
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

SHAPE = (375, 500, 3)  # what most of ImageNet's pictures are, some 110 kB each
QUALITY = 92
CLASSES = 1000


class Noise(tfds.core.GeneratorBasedBuilder):
  """Pictures of noise, of 1,000 classes."""

  VERSION = tfds.core.Version('1.0.0')
  count = 2000

  def _info(self) -> tfds.core.DatasetInfo:
    kinds = tfds.features
    return tfds.core.DatasetInfo(
      builder=self,
      features=kinds.FeaturesDict(
        {
          'image': kinds.Image(shape=(None, None, 3), encoding_format='jpeg'),
          'label': kinds.ClassLabel(num_classes=CLASSES),
        }
      ),
    )

  def _split_generators(self, manager: Any) -> dict[str, Any]:
    return {'train': self._generate_examples(self.count)}

  def _generate_examples(self, count: int) -> Iterator[tuple[int, Any]]:
    rng = np.random.default_rng(0)
    for i in range(count):
      yield i, {'image': picture(rng), 'label': i % CLASSES}


def picture(rng: np.random.Generator) -> bytes:
  """A JPEG file of noise whose amplitudes fall with frequency."""
  height, width, channels = SHAPE
  frequency_YX = np.hypot(
    np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
  )
  frequency_YX[0, 0] = np.inf
  noise_CYX = rng.normal(size=(channels, *SHAPE[:2]))
  shape = SHAPE[:2]
  smooth_CYX = np.fft.irfft2(np.fft.rfft2(noise_CYX) / frequency_YX**1.1, shape)
  smooth_CYX /= smooth_CYX.std((1, 2), keepdims=True)
  # Colours of a photograph differ by less than its light does.
  mixed_CYX = 0.8 * smooth_CYX[:1] + 0.4 * smooth_CYX
  pixels_YXC = np.clip(mixed_CYX * 50 + 115, 0, 255).transpose(1, 2, 0)
  file = io.BytesIO()
  image = PIL.Image.fromarray(pixels_YXC.astype(np.uint8))
  image.save(file, 'JPEG', quality=QUALITY)
  return file.getvalue()


def main() -> None:
  """Writes the set as TFDS does."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('folder', metavar='DIR')
  parser.add_argument('--count', type=int, default=Noise.count)
  args = parser.parse_args()
  Noise.count = args.count
  Noise(data_dir=args.folder, file_format='array_record').download_and_prepare()


if __name__ == '__main__':
  main()
