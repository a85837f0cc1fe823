"""EM and F1 as SQuAD's own scripts have them (1606.05250, section 6.1).

The rules of evaluate-v1.1.py and evaluate-v2.0.py are written out here because
no package brings them for what this project runs on: `evaluate` loads its
script from the network, `torchmetrics` needs PyTorch, `transformers` has
dropped them with version 5, and `qa-metrics` has other rules. The second and
the third say of 400 answers what this says (see tests/squad_peers.py). Before
two answers are compared they lose capitals, then ASCII punctuation, then the
words a, an and the; F1 counts the words that are left. The nearest of several
right answers counts.
"""

import collections
import re
import string
from collections.abc import Mapping, Sequence

import numpy as np

from shared_tfm.data.sources.squad import Question

ARTICLES = re.compile(r'\b(a|an|the)\b')
PUNCTUATION = str.maketrans('', '', string.punctuation)


def normalized(text: str) -> str:
  """What of an answer is compared."""
  bare = text.lower().translate(PUNCTUATION)
  return ' '.join(ARTICLES.sub(' ', bare).split())


def exact(given: str, answer: str) -> float:
  """1 where two answers are the same, else 0."""
  return float(normalized(given) == normalized(answer))


def f1(given: str, answer: str, empty_is_right: bool) -> float:
  """The harmonic mean of precision and recall of the words of an answer.

  Args:
    given: by the model.
    answer: the right one.
    empty_is_right: whether two answers without any word agree, as version 2.0
      has it.
  """
  said, right = normalized(given).split(), normalized(answer).split()
  if empty_is_right and not (said and right):
    return float(said == right)
  same = (collections.Counter(said) & collections.Counter(right)).total()
  return 2 * same / (len(said) + len(right)) if same else 0.0


def scores(
  questions: Sequence[Question], given: Mapping[str, str]
) -> dict[str, float]:
  """Scores in percent, by version 2.0 where any question has no answer.

  Args:
    questions: those that count; all of them must have been answered.
    given: answers by id; '' for none.

  Returns:
    'exact_match' and 'f1'; and of version 2.0 the same of questions with and
    without an answer, where there are such: 'answerable_exact_match',
    'answerable_f1', 'unanswerable_f1'. Nothing if there are no questions.
  """
  second = any(not question.answers for question in questions)
  found: dict[str, list[float]] = collections.defaultdict(list)
  for question in questions:
    answers = question.answers
    if second:
      answers = tuple(filter(normalized, answers)) or ('',)
    said = given[question.id]
    each = {
      'exact_match': max(exact(said, answer) for answer in answers),
      'f1': max(f1(said, answer, second) for answer in answers),
    }
    for name, value in each.items():
      found[name].append(value)
      if second and question.answers:
        found[f'answerable_{name}'].append(value)
    if not question.answers:
      found['unanswerable_f1'].append(each['f1'])
  return {name: 100 * float(np.mean(x)) for name, x in found.items()}
