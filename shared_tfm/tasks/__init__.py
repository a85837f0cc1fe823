"""Tasks: what a network learns, and how well it has learned it."""

import dataclasses
from pathlib import Path

from shared_tfm.config import Config
from shared_tfm.data import Dataset, generators
from shared_tfm.errors import need
from shared_tfm.tasks.answers import Answering
from shared_tfm.tasks.classification import Classification
from shared_tfm.tasks.images import ImageClassification
from shared_tfm.tasks.language import LanguageModel
from shared_tfm.tasks.masked import MaskedLM
from shared_tfm.tasks.pairs import Summarisation, Translation
from shared_tfm.tasks.questions import QuestionAnswering
from shared_tfm.tasks.task import Prediction, Task, arguments, predicted

TASKS: dict[str, type[Task]] = {
  'language_model': LanguageModel,
  'masked_lm': MaskedLM,
  'answers': Answering,
  'translation': Translation,
  'summarisation': Summarisation,
  'classification': Classification,
  'image_classification': ImageClassification,
  'question_answering': QuestionAnswering,
}

__all__ = [
  'TASKS',
  'Prediction',
  'Task',
  'arguments',
  'make',
  'predicted',
  'prepare',
]


def make(config: Config) -> Task:
  """The task of a config; without a name, what its family learns of its data.

  Raises:
    BadInput: the family learns nothing of that data.
  """
  return TASKS[config.task.name or _name(config)](config)


def _name(config: Config) -> str:
  family, source = config.model.family, config.data.source
  if family == 'vision':
    return 'image_classification'
  if source in generators.TASKS:
    need(
      family in ('decoder', 'encoder_decoder'),
      f"the task {source} needs model.family 'decoder' or 'encoder_decoder',"
      f' got {family!r}',
    )
    return 'answers'
  need(
    family in ('decoder', 'encoder'),
    f'model.family {family!r} learns no text by itself, as data.source {source}'
    f' has it: set task.name, or the data.source to one of'
    f' {", ".join(generators.TASKS)}',
  )
  return 'language_model' if family == 'decoder' else 'masked_lm'


def prepare(
  config: Config,
  folder: str | Path,
  process_index: int = 0,
  process_count: int = 1,
) -> Dataset:
  """Reads the data, makes or loads the tokenizer, and sets up the batches.

  Args:
    config: as `config.cross` returns it.
    folder: the run's; a trained tokenizer is kept in it. That of the run whose
      weights it starts from is taken over.
    process_index: which of the processes asks, from 0.
    process_count: how many share every batch.

  Raises:
    BadInput: a source that cannot be read or is too short, a tokenizer that
      does not fit the model, or a batch that cannot be shared.
  """
  size = config.train.batch_size
  need(
    size % process_count == 0,
    f'train.batch_size must be divisible by the {process_count} processes,'
    f' got {size}',
  )
  dataset = make(config).dataset(Path(folder), process_index, process_count)
  return dataclasses.replace(dataset, threads=config.data.threads)
