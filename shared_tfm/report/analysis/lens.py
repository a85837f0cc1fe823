"""What the head would say after each visit: the logit lens.

The final norm and the head, read at what every visit hands on (nostalgebraist,
2020, "interpreting GPT: the logit lens"). Of each visit: the loss, how often
its first choice is the network's own, and KL(own || visit) in nats. The line
'final' is the network itself. The last visit is that, too, unless the rule of
depth does something more to the stream: sums over loops (act, stick_breaking),
gates (expert_choice, token_choice), a norm after each loop, or a token that
leaves early.
"""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.config import sides
from shared_tfm.report.analysis import drawing, heads, text
from shared_tfm.report.analysis.reader import Reader, Seen, side_of

FINAL = 'final'
SHOWN = 12  # positions of the example
TITLES = {
  'loss': 'loss (nats)',
  'agreement': 'first choice is the final one',
  'kl': 'KL from the final distribution (nats)',
}


def why_not(reader: Reader) -> str:
  """A split without labels has no loss."""
  if reader.labelled:
    return ''
  return f'the {reader.split} split has nothing to be told, and so no loss'


def measure(reader: Reader) -> dict[str, Any]:
  """Means over what is to be told, by visit; and an example, if of tokens.

  Returns:
    'visits', those whose stream the head can read; 'loss', 'agreement' and
    'kl', a number for each, and 'final', the network's own loss; of text
    further 'bits_per_byte' and 'final_bits_per_byte'. Where a number is told,
    there is a loss alone.
  """
  sums = reader.summed(
    lambda variables, seen: of_batch(reader, variables, seen)
  )
  weight = sums.pop('weight')
  final = sums.pop('final') / weight
  found = {
    'visits': visits(reader),
    **{name: (sums[name] / weight).tolist() for name in sums},
    'final': float(final),
  }
  counted = [
    reader.task.count(b, reader.dataset).get('bytes', 0.0)
    for b in reader.batches()
  ]
  if sum(counted):
    ratio = float(weight) / math.log(2) / sum(counted)
    found['bits_per_byte'] = [loss * ratio for loss in found['loss']]
    found['final_bits_per_byte'] = found['final'] * ratio
  if 'tokens' in reader.config.model.head:
    found['example'] = _example(reader)
  return found


def visits(reader: Reader) -> list[int]:
  """The visits of the decoder, or of the one side, that are D wide."""
  model = reader.config.model
  found: list[int] = []
  start = 0
  for name, stack in sides.stacks(model).items():
    if side_of(name) == 'stack':
      if stack.d_model == model.d_model:
        found += range(start, start + stack.num_layers)
      start += stack.num_layers
  return found


def of_batch(reader: Reader, variables: Any, seen: Seen) -> dict[str, Any]:
  """Sums over a batch: of visits (N,), of the network and of weights ().

  One example's logits, of one visit and of the network, are held at a time.
  """

  def of_row(row: Any) -> Any:
    weights, final, every = heads.read(reader, variables, *row)
    names = ('loss', 'agreement', 'kl')
    sums = {n: jnp.sum(every[n], axis=-1) for n in names if n in every}
    return {**sums, 'weight': jnp.sum(weights), 'final': jnp.sum(final)}

  return jax.tree.map(
    lambda a: jnp.sum(a, axis=0),
    jax.lax.map(of_row, heads.examples(reader, seen)),
  )


def _example(reader: Reader) -> dict[str, Any]:
  """Tokens of the first text: what was to be told, and what each visit says."""
  seen = next(reader.seen())

  def first(variables: Any, seen: Seen) -> Any:
    row = jax.tree.map(lambda a: a[0], heads.examples(reader, seen))
    weights, _, every = heads.read(reader, variables, *row)
    return weights, every['best'], every['own']

  weights_L, best_NL, own_L = jax.device_get(
    jax.jit(first)(reader.variables, seen)
  )
  targets_L = np.asarray(reader.first['targets'][0])
  places = _stretch(targets_L, np.flatnonzero(weights_L))
  pieces = reader.dataset.tokenizer.pieces

  def words(ids: np.ndarray) -> list[str]:
    return [text.token(pieces, i) for i in ids[places]]

  return {
    'targets': words(targets_L),
    FINAL: words(own_L),
    'visits': [words(best_L) for best_L in best_NL],
  }


def _stretch(targets_L: np.ndarray, told: np.ndarray) -> np.ndarray:
  """Places in a row of what is told, with as many different ones as can be.

  Where there are enough, half of the text or more is before them.
  """
  later = told[len(told) // 2 :] if len(told) >= 2 * SHOWN else told
  starts = range(max(1, len(later) - SHOWN + 1))
  parts = [later[start : start + SHOWN] for start in starts]
  return max(parts, key=lambda part: len(set(targets_L[part])))


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
  """A row for each visit, and one for the network."""
  every = ('loss', 'bits_per_byte', 'agreement', 'kl')
  names = [name for name in every if name in found]
  own = {
    'loss': found['final'],
    'bits_per_byte': found.get('final_bits_per_byte'),
    'agreement': 1.0,
    'kl': 0.0,
  }
  return [
    *(
      {'visit': visit, **{name: found[name][i] for name in names}}
      for i, visit in enumerate(found['visits'])
    ),
    {'visit': FINAL, **{name: own[name] for name in names}},
  ]


def tell(found: dict[str, Any]) -> str:
  """The same rows, and the example."""
  shown = text.table(rows(found))
  if 'example' not in found:
    return shown
  given = found['example']
  lines = [['target', *given['targets']]]
  lines += [
    [f'visit {visit}', *words]
    for visit, words in zip(found['visits'], given['visits'], strict=True)
  ]
  lines.append([FINAL, *given[FINAL]])
  return f'{shown}\n\nfirst choices in a text\n{text.aligned(lines)}'


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
  """A curve of each measure."""
  curves = {
    title: {'stack': found[name]}
    for name, title in TITLES.items()
    if name in found
  }
  return [drawing.over_visits(curves, folder / 'lens.png', at=found['visits'])]
