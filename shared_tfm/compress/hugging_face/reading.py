"""A folder of theirs: config.json, and safetensors in one file or several."""

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from shared_tfm.compress.hugging_face import settings, t5, tensors
from shared_tfm.compress.hugging_face.family import Family
from shared_tfm.config import Config
from shared_tfm.data.tokenizers import FILE
from shared_tfm.errors import BadInput, need

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
INDEX = f'{WEIGHTS}.index.json'
# As checkpoints converted from TensorFlow have it.
_NEW = {'gamma': 'weight', 'beta': 'bias'}
_OLD = re.compile(r'(?<=LayerNorm\.)(gamma|beta)$')
logger = logging.getLogger(__name__)


def is_theirs(folder: Path) -> bool:
  """Whether a folder's config.json is one of theirs, and not a run's."""
  try:
    return 'model_type' in json.loads((folder / CONFIG).read_text())
  except (OSError, ValueError, TypeError):
    return False


def config_of(folder: Path) -> Config:
  """The config of a folder of theirs; its tokenizer is used if it has one.

  Raises:
    BadInput: see `settings.config_of`.
  """
  config = settings.config_of(_settings(folder), str(folder / CONFIG))
  if not (folder / FILE).exists():
    return config
  data = dataclasses.replace(config.data, tokenizer='pretrained')
  return dataclasses.replace(config, data=data)


def read(folder: Path) -> tuple[Config, Any]:
  """The model in a folder of theirs: its config and parameters, float32.

  Raises:
    BadInput: a file is missing or cut, or a tensor is missing, of another
      shape, or known to nobody; which.
  """
  given = _settings(folder)
  config = config_of(folder)
  family = settings.family_of(given, str(folder / CONFIG))
  files = _Files(folder, family)
  scales = settings.scales_of(family, config.model, given)
  links = tensors.links(family, config, settings.inner_of(given), scales)
  need(
    any(link.name in files.shapes for link in links),
    f'{files.where} is of another architecture: it has no tensor of'
    f' {family.kind}, but {len(files.names)} such as {files.names[0]}'
    if files.names
    else f'{files.where} has no tensors',
  )
  try:
    params = tensors.gathered(links, files.shapes, files.read)
    _same_width(family, config, files)
  except BadInput as error:
    raise BadInput(f'{files.where}: {error}') from None
  rest = set(files.shapes) - {link.name for link in links}
  strays = tensors.strays(family, rest)
  need(
    not strays,
    f'{files.where} has {len(strays)} tensors that no {given["model_type"]} of'
    f' this kind has: {", ".join(strays[:3])}{", …" * (len(strays) > 3)}',
  )
  if rest:
    logger.warning('%s: left there: %s', folder, ', '.join(sorted(rest)))
  return config, params


# ALBERT has it even where it leads from a width to the same one.
_WIDEN = 'albert.encoder.embedding_hidden_mapping_in'


def widening(width: int) -> dict[str, np.ndarray]:
  """That which does nothing."""
  return {
    f'{_WIDEN}.weight': np.eye(width, dtype=np.float32),
    f'{_WIDEN}.bias': np.zeros(width, np.float32),
  }


def _same_width(family: Family, config: Config, files: '_Files') -> None:
  """Checks that what has no place with us does nothing."""
  name = f'{_WIDEN}.weight'
  if config.model.embed_dim == config.model.d_model and name in files.shapes:
    nothing = widening(config.model.d_model)
    need(
      all(np.array_equal(files.read(n), nothing[n]) for n in nothing),
      f'{name} maps embedding_size to an equal hidden_size, which has no place'
      ' here unless it is the identity',
    )


def _settings(folder: Path) -> dict[str, Any]:
  try:
    given = dict(json.loads((folder / CONFIG).read_text()))
  except (ValueError, TypeError) as error:
    raise BadInput(f'{folder / CONFIG} is no config: {error}') from None
  if given.get('model_type') != t5.T5.kind:
    return given
  files = _Files(folder, t5.T5)
  tables = [files.read(n) for n in (t5.HEAD, t5.TABLE) if n in files.shapes]
  own = t5.HEAD in files.shapes and not np.array_equal(tables[0], tables[-1])
  return t5.told(given, own)


class _Files:
  """The tensors of a folder, by the names that their class gives them.

  Attributes:
    where: the file that lists them.
    names: of the tensors, as they stand there.
    shapes: by the name that their class has.
  """

  def __init__(self, folder: Path, family: Family):
    """Opens every file; nothing is read."""
    whole, index = folder / WEIGHTS, folder / INDEX
    self.where, names = whole, [WEIGHTS]
    if not whole.exists():
      need(index.exists(), f'{folder} has neither {WEIGHTS} nor {INDEX}')
      self.where = index
      try:
        names = sorted(
          set(json.loads(index.read_text())['weight_map'].values())
        )
      except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f'{index} is no index: {error!r}') from None
    found: dict[str, tuple[Any, str]] = {}
    for name in names:
      found |= self._open(folder / name)
    self.names = list(found)
    bare = not any(name.startswith(family.base) for name in found)
    self._at = {  # bare: saved from the base model alone
      (family.base if bare else '') + name: at for name, at in found.items()
    }
    self.shapes = {
      name: file.get_slice(there).get_shape()
      for name, (file, there) in self._at.items()
    }

  def _open(self, path: Path) -> dict[str, tuple[Any, str]]:
    """The tensors of one file: the file, and their names in it."""
    need(path.exists(), f'there is no {path}, which {self.where.name} names')
    try:
      file = safetensors.safe_open(path, framework='numpy')
      names = list(file.keys())
    except (safetensors.SafetensorError, OSError) as error:
      raise BadInput(f'{path} is no whole safetensors file: {error}') from None
    old = {
      'LayerNorm.gamma': 'LayerNorm.weight',
      'LayerNorm.beta': 'LayerNorm.bias',
    }
    renamed = re.compile('|'.join(map(re.escape, old)))
    return {
      renamed.sub(lambda match: old[match[0]], name): (file, name)
      for name in names
    }

  def read(self, name: str) -> np.ndarray:
    """One tensor."""
    file, there = self._at[name]
    found: np.ndarray = file.get_tensor(there)
    return found
