"""The columns of a comparison's summary, and how their numbers are shown.

What a task measures besides its loss has a `Column` in SCORES.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared_tfm.report.interval import Difference

JUDGED = 'validation_loss'  # what verdicts are of


@dataclasses.dataclass(frozen=True)
class Stat:
  """A mean over seeds; `spread` is the sample standard deviation.

  One seed has no spread, which is not the same as a spread of 0.
  """

  mean: float  # nan where a run diverged
  spread: float | None
  by_seed: Mapping[int, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Summary:
  """One scheme over its seeds; `stats` has every number of `Result`.

  Attributes:
    scheme: or the label of the row.
    seeds: how many.
    stats: by field.
    versus: the difference in `JUDGED` to the first row, which has none itself.
    adjusted: what a budget or a tuning set, and how near it came.
  """

  scheme: str
  seeds: int
  stats: Mapping[str, Stat]
  versus: Difference | None = None
  adjusted: str = ''


def _human(units: Sequence[str], base: int = 1000) -> Callable[..., str]:
  """Three digits and a unit; both values of 'mean ± spread' get the same."""

  def show(value: float, like: float) -> str:
    index = 0
    while abs(like) >= 999.5 and index < len(units) - 1:
      value, like, index = value / base, like / base, index + 1
    digits = 2 if abs(like) < 9.995 else 1 if abs(like) < 99.95 else 0
    return f'{value:.{digits}f}{units[index]}'

  return show


def _perplexity(value: float, like: float) -> str:
  """Two places, or three digits of what is large: it may have hundreds."""
  return f'{value:.2f}' if abs(like) < 1e5 else f'{value:.3g}'


_ratio = '{0:.2f}'.format
_loss = '{0:.3f}'.format
_params = _human(['', 'k', 'M', 'B', 'T'])
_flops = _human([f' {prefix}FLOP' for prefix in ('', 'k', 'M', 'G', 'T')])
_rate = _human(['', 'k', 'M', 'G'])
_bytes = _human([' B', ' KiB', ' MiB', ' GiB', ' TiB'], base=1024)


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of the summary."""

  title: str
  field: str  # of `Result`
  show: Callable[[float, float], str]  # a value, in the unit of a second one
  better: Callable[..., Any] | None  # min or max; None: neither
  measured: bool = True  # varies from run to run, and is not counted
  spread: bool = True  # is shown beside the mean

  def cell(self, row: Summary) -> str:
    """The text of this column for one scheme, such as '2.310 ± 0.012'."""
    stat = row.stats.get(self.field)
    if stat is None:
      return '-'
    text = self.show(stat.mean, stat.mean)
    if self.spread and stat.spread is not None and not math.isnan(stat.mean):
      text += f' ± {self.show(stat.spread, stat.mean)}'
    return text


@dataclasses.dataclass(frozen=True)
class Said:
  """A column of words, of which none is the best."""

  title: str
  field: str  # of `Summary`
  cell: Callable[[Summary], str]
  better: None = None
  measured: bool = True


def versus(row: Summary) -> str:
  """The difference to the first row, such as '+0.12 [+0.09, +0.15] worse'."""
  if row.versus is None:
    return '-'
  d, numbers = row.versus, ''
  if not math.isnan(d.mean):
    numbers = f'{d.mean:+.3f} '
  if d.low is not None:
    numbers += f'[{d.low:+.3f}, {d.high:+.3f}] '
  return numbers + d.verdict(min)


def adjusted(row: Summary) -> str:
  """What was set for the row, and not asked for."""
  return row.adjusted or '-'


def _score(title: str, field: str, show: Any = _loss) -> Column:
  return Column(title, field, show, max)


# What tasks measure on the validation split, beside their loss.
SCORES = {
  column.field: column
  for column in (
    Column('bits/byte', 'bits_per_byte', _loss, min),
    Column('unigram', 'unigram_bits_per_byte', _loss, None),
    Column('perplexity', 'perplexity', _perplexity, min),
    Column('perplexity/word', 'word_perplexity', _perplexity, min),
    _score('accuracy', 'accuracy'),
    _score('top-5', 'top_5_accuracy'),
    _score('order', 'order_accuracy'),
    _score('Matthews', 'matthews'),
    _score('F1', 'f1'),
    _score('Pearson', 'pearson'),
    _score('Spearman', 'spearman'),
    _score('EM', 'exact_match', _ratio),
    _score('BLEU', 'bleu', _ratio),
    _score('chrF', 'chrf', _ratio),
    _score('ROUGE-1', 'rouge1'),
    _score('ROUGE-2', 'rouge2'),
    _score('ROUGE-L', 'rougeL'),
  )
}
COLUMNS = (
  Column('stored', 'stored_params', _params, min, False, False),
  Column('applied', 'applied_params', _params, None, False, False),
  Column('ratio', 'sharing_ratio', _ratio, max, False, False),
  Column('FLOPs/token', 'flops_per_token', _flops, min, False, False),
  Column('train loss', 'train_loss', _loss, min),
  Column('validation loss', 'validation_loss', _loss, min),
  Column('tokens/s', 'tokens_per_second', _rate, max),
  Column('peak memory', 'peak_memory_bytes', _bytes, min, spread=False),
)
