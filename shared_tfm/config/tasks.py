"""What each task needs of a network."""

import dataclasses
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
      model.head in ('', head),
      f'task.name {name} needs model.head {head}, got {model.head}',
    )
  return dataclasses.replace(
    config, model=dataclasses.replace(model, head=head)
  )


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
