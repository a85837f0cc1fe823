"""From scores of positions to answers in words.

An answer is the span of a text whose first and last token score the most
together, over all windows of the text; the first position of a window says that
there is none in it (BERT, 1810.04805, section 4.3).
"""

import collections
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shared_tfm.data.passages import Passages
from shared_tfm.data.sources.squad import Question

CERTAIN = 1e9  # odds of "no answer" where no answer can be given


class Candidate(NamedTuple):
  """An answer that might be given, '' for none, and its two logits."""

  text: str
  start: float
  end: float

  @property
  def score(self) -> float:
    """What candidates are ranked by."""
    return self.start + self.end


@dataclasses.dataclass(frozen=True)
class Found:
  """What was found of one question.

  Attributes:
    id: the question's.
    best: different answers, the best first; maybe none.
    none: that there is no answer, as its most certain window scores it the
      least: it knows best that there is one.
  """

  id: str
  best: Sequence[Candidate]
  none: Candidate

  @property
  def null_odds(self) -> float:
    """How much better "no answer" scores than the best answer."""
    if not self.best:
      return CERTAIN
    return self.none.score - self.best[0].score

  def answer(self, abstain: bool, threshold: float) -> str:
    """The answer given, or '' where there is none.

    Args:
      abstain: whether that may be said where there are candidates.
      threshold: of the null odds, above which it is.
    """
    if not self.best or (abstain and self.null_odds > threshold):
      return ''
    return self.best[0].text


def found(
  passages: Passages,
  predictions: Sequence[Mapping[str, Any]],
  max_answer: int,
  n_best: int,
) -> dict[int, Found]:
  """The answers to all questions of which every window was seen.

  Args:
    passages: of a split.
    predictions: logits 'start' and 'end', (L,), of each 'row' of it, in any
      order.
    max_answer: the most tokens of an answer.
    n_best: how many candidates a question keeps.

  Returns:
    What was found, by the number of the question.
  """
  windows = np.bincount(passages.rows[:, 0], minlength=len(passages.questions))
  by_question: dict[int, dict[int, Mapping[str, Any]]] = (
    collections.defaultdict(dict)
  )
  for said in predictions:
    row = int(said['row'])
    by_question[int(passages.rows[row, 0])][row] = said
  results = {}
  for number, said_of in sorted(by_question.items()):
    if len(said_of) < windows[number]:
      continue
    candidates: list[Candidate] = []
    none = []
    for row, said in sorted(said_of.items()):
      start_L, end_L = said['start'], said['end']
      none.append(Candidate('', float(start_L[0]), float(end_L[0])))
      candidates += _of_window(
        passages, row, start_L, end_L, max_answer, n_best
      )
    results[number] = Found(
      passages.questions[number].id,
      _different(candidates)[:n_best],
      min(none, key=lambda candidate: candidate.score),
    )
  return results


def _of_window(
  passages: Passages,
  row: int,
  start_L: np.ndarray,
  end_L: np.ndarray,
  max_answer: int,
  n_best: int,
) -> Iterator[Candidate]:
  """The best spans of one window."""
  before, count = passages.place(row)
  number, first = passages.rows[row].tolist()
  start_C, end_C = (x[before : before + count] for x in (start_L, end_L))
  longest = min(max_answer, count)
  if not longest:
    return
  padded = np.pad(end_C, (0, longest - 1), constant_values=-np.inf)
  ends_CA = np.lib.stride_tricks.sliding_window_view(padded, longest)
  scores = (start_C[:, None] + ends_CA).ravel()
  places = np.arange(len(scores))
  if len(scores) > n_best:
    places = np.argpartition(-scores, n_best - 1)[:n_best]
  for place in places.tolist():
    start, more = divmod(place, longest)
    if start + more < count:
      text = passages.texts[number].characters(
        first + start, first + start + more
      )
      yield Candidate(
        text.strip(), float(start_C[start]), float(end_C[start + more])
      )


def _different(candidates: Sequence[Candidate]) -> list[Candidate]:
  """The best of each text, the best text first."""
  ranked = sorted(candidates, key=lambda c: (-c.score, len(c.text), c.text))
  best: dict[str, Candidate] = {}
  for candidate in ranked:
    if candidate.text:
      best.setdefault(candidate.text, candidate)
  return [*best.values()]


def files(
  questions: Sequence[Question],
  results: Sequence[Found],
  abstain: bool,
  threshold: float,
) -> dict[str, str]:
  """What SQuAD's evaluation script reads, and what is said beside it.

  Args:
    questions: all of them.
    results: theirs.
    abstain: whether any question has no answer.
    threshold: see `Found.answer`.

  Returns:
    JSON by the name of a file: predictions.json, id to answer; references.json,
    the questions in SQuAD's format, their ids as text as JSON has keys;
    nbest_predictions.json, id to candidates; and where a model may abstain
    null_odds.json, id to how much better that scores.
  """
  written: dict[str, Any] = {
    'predictions.json': {
      each.id: each.answer(abstain, threshold) for each in results
    },
    'references.json': {
      'version': '2.0' if abstain else '1.1',
      'data': [{'title': '', 'paragraphs': _paragraphs(questions)}],
    },
    'nbest_predictions.json': {
      each.id: _probable([*each.best, *[each.none] * abstain])
      for each in results
    },
  }
  if abstain:
    written['null_odds.json'] = {each.id: each.null_odds for each in results}
  return {
    name: json.dumps(content, indent=2, ensure_ascii=False) + '\n'
    for name, content in written.items()
  }


def _paragraphs(questions: Sequence[Question]) -> list[dict[str, Any]]:
  """Contexts with their questions."""
  asked: dict[str, list[dict[str, Any]]] = {}
  for each in questions:
    asked.setdefault(each.context, []).append(
      {
        'id': each.id,
        'question': each.question,
        'answers': [
          {'text': text, 'answer_start': max(each.context.find(text), 0)}
          for text in each.answers
        ],
        'is_impossible': each.impossible,
      }
    )
  return [{'context': text, 'qas': qas} for text, qas in asked.items()]


def _probable(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
  """Candidates with the probability of each, if one of them is right."""
  ranked = sorted(candidates, key=lambda candidate: -candidate.score)
  odds = [math.exp(c.score - ranked[0].score) for c in ranked]
  return [
    {
      'text': candidate.text,
      'probability': odd / sum(odds),
      'start_logit': candidate.start,
      'end_logit': candidate.end,
    }
    for candidate, odd in zip(ranked, odds, strict=True)
  ]
