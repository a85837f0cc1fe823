"""What each task needs of a network."""

import dataclasses
import re
from typing import NamedTuple

from shared_tfm.config.fields import Model
from shared_tfm.config.training import Config
from shared_tfm.errors import need


class Needs(NamedTuple):
  """The families that can learn a task, and the head that scores it."""

  families: tuple[str, ...]
  head: str


NEEDS = {
  'language_model': Needs(('decoder',), 'tokens'),
  'masked_lm': Needs(('encoder',), 'tokens'),
  'answers': Needs(('decoder', 'encoder_decoder'), 'tokens'),
  'translation': Needs(('encoder_decoder',), 'tokens'),
  'summarisation': Needs(('encoder_decoder',), 'tokens'),
  'question_answering': Needs(('encoder',), 'spans'),
  'classification': Needs(('encoder', 'decoder'), 'classes'),
  'image_classification': Needs(('vision',), 'classes'),
}


def with_head(config: Config) -> Config:
  """The config whose network has the head that its task needs.

  Raises:
    BadInput: the network is of a family that cannot learn the task, or it has
      another head.
  """
  name, model = config.task.name, config.model
  if not name:
    head = model.head or ('classes' if model.family == 'vision' else 'tokens')
  else:
    families, head = NEEDS[name]
    need(
      model.family in families,
      f'task.name {name} needs model.family {" or ".join(families)}, got'
      f' {model.family}',
    )
    need(
      model.head in ('', head) or config.task.sentence_order,
      f'task.name {name} needs model.head {head}, got {model.head}',
    )
  if config.task.sentence_order:
    head, model = _ordering(name, model)
  return dataclasses.replace(
    config, model=dataclasses.replace(model, head=head)
  )


def _ordering(name: str, model: Model) -> tuple[str, Model]:
  """The head that also tells the order of segments, and a network for it."""
  need(
    name in ('', 'masked_lm') and model.family == 'encoder',
    'task.sentence_order is for masked_lm and model.family encoder, got'
    f' {name or "no task.name"} and {model.family}',
  )
  need(
    model.head in ('', 'tokens_classes'),
    f'task.sentence_order needs model.head tokens_classes, got {model.head}',
  )
  need(
    model.num_classes in (0, 2) and model.type_vocab_size != 1,
    'task.sentence_order tells 2 classes of 2 segments: model.num_classes must'
    ' be 0 or 2, and type_vocab_size 0 or at least 2, got'
    f' {model.num_classes} and {model.type_vocab_size}',
  )
  return 'tokens_classes', dataclasses.replace(model, num_classes=2)


def check_head(model: Model) -> None:
  """Checks that what is scored can be scored.

  Raises:
    BadInput: the rule, and what was given.
  """
  told, vision = 'classes' in model.head, model.family == 'vision'
  need(
    (model.num_classes > 0) == told,
    f'model.num_classes is for model.head classes, which needs it; got'
    f' {model.num_classes} and head {model.head}',
  )
  need(
    model.head == 'tokens' or model.family != 'encoder_decoder',
    f'an encoder_decoder has model.head tokens, got {model.head}',
  )
  need(
    not vision or model.head == 'classes',
    f'model.family vision has model.head classes, got {model.head}',
  )
  need(
    'tokens' in model.head
    or (
      model.depth.rule not in ('ponder', 'exits')
      and model.depth.criterion == 'none'
    ),
    'several exits (model.depth.rule ponder or exits, or a criterion) need'
    f' model.head tokens, got {model.head}',
  )
  need(
    not vision or model.image_size % model.patch_size == 0,
    f'model.patch_size must divide image_size {model.image_size}, got'
    f' {model.patch_size}',
  )
  need(
    vision or model.vocab_size > 0,
    f'model.vocab_size must be at least 1, got {model.vocab_size}',
  )


def check_text(config: Config) -> None:
  """Checks how text is cut into splits and into windows.

  Raises:
    BadInput: the rule, and what was given.
  """
  data, stride = config.data, config.task.stride
  need(
    bool(re.fullmatch(r'[1-9]\d?(/[1-9]\d?){1,2}', data.parts))
    and sum(data.shares) == 100,
    'data.parts must be two or three percentages that make 100, such as 90/10'
    f' or 90/5/5, got {data.parts!r}',
  )
  need(
    not stride or config.model.family == 'decoder',
    f'task.stride {stride} moves windows over the text of a decoder, got'
    f' model.family {config.model.family}',
  )
  need(
    stride <= data.seq_len,
    f'task.stride must be at most data.seq_len {data.seq_len}, got {stride}',
  )


def check_pairs(config: Config) -> None:
  """Checks the lengths of pairs of texts.

  Raises:
    BadInput: the rule, and what was given.
  """
  data, task, most = config.data, config.task, config.model.max_len
  for name, length in (
    ('data.source_len', data.source_len),
    ('task.max_decode', task.max_decode),
  ):
    need(
      length <= most,
      f'{name} must be at most model.max_len {most}, got {length}',
    )
  need(
    bool(re.fullmatch(r'(\d+(,\d+)*)?', data.buckets))
    and data.lengths[0] > 0
    and list(data.lengths) == sorted(set(data.lengths)),
    'data.buckets must be growing lengths, none of them above source_len and'
    f' seq_len, such as 16,32, got {data.buckets!r}',
  )
