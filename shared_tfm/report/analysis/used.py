"""How many loops of the core each token runs, where that depends on the token.

By halting (act, stick_breaking), by a router (expert_choice, token_choice), or
until a criterion lets it leave (model.depth.criterion, or --exit); of ponder
without a criterion the expected number. Of an encoder-decoder, the decoder's.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.config.loops import loops
from shared_tfm.model import Transformer
from shared_tfm.model.backbone import Outputs
from shared_tfm.report.analysis import drawing, text
from shared_tfm.report.analysis.reader import Reader, Seen

SHOWN = 96  # tokens of the example
CHOOSING = ('act', 'stick_breaking', 'expert_choice', 'token_choice', 'ponder')


def why_not(reader: Reader) -> str:
  """A depth that is fixed."""
  m = reader.config.model
  leaves = m.depth.criterion != 'none' and 'tokens' in m.head
  if leaves or m.depth.rule in CHOOSING:
    return ''
  exits = ''
  if m.depth.criterion == 'none' and loops(m).times > 1 and 'tokens' in m.head:
    exits = '; --exit=kl:0.01 would let tokens leave'
  visits = m.num_decoder_layers or m.num_layers
  return (
    f'the depth is fixed ({m.depth.rule}), and every token runs all {visits}'
    f' visits{exits}'
  )


def measure(reader: Reader) -> dict[str, Any]:
  """Loops of all tokens that count, and of the first text.

  Returns:
    'rule' and 'criterion' of depth; 'mean' loops of a token; 'tokens', how many
    run 0, 1, ... loops (expected numbers are rounded); and 'example', pairs of
    a token and its loops.
  """
  m = reader.config.model
  times = loops(m).times

  def of_batch(variables: Any, seen: Seen) -> Any:
    loops_BL, live_BL = of_tokens(reader.model, variables, seen), _live(seen)
    nearest_BL = jnp.round(loops_BL).astype(jnp.int32)
    hits_BLR = jax.nn.one_hot(nearest_BL, times + 1) * live_BL[..., None]
    return {
      'tokens': jnp.sum(hits_BLR, axis=(0, 1)),
      'loops': jnp.sum(loops_BL * live_BL),
    }

  sums = reader.summed(of_batch)
  return {
    'rule': m.depth.rule,
    'criterion': m.depth.criterion,
    'mean': float(sums['loops'] / sums['tokens'].sum()),
    'tokens': [int(count) for count in sums['tokens']],
    'example': _example(reader),
  }


def of_tokens(model: Transformer, variables: Any, seen: Seen) -> jax.Array:
  """The loops of every token, float32 (B, L)."""

  def exits(model: Transformer, outputs: Outputs, mask_BL: Any) -> Any:
    return model.read_at_exits(outputs, mask_BL)[1]

  m, outputs = model.model, seen.outputs
  if m.depth.criterion != 'none' and 'tokens' in m.head:
    mask_BL = seen.batch.get('mask')
    exit_BL = model.apply(variables, outputs, mask_BL, method=exits)
    return 1.0 + jnp.asarray(exit_BL)
  if outputs.loops_BL is not None:
    return outputs.loops_BL.astype(jnp.float32)
  assert outputs.weight_XBL is not None
  numbers_X = 1.0 + jnp.arange(len(outputs.weight_XBL))
  return jnp.einsum('xbl,x->bl', outputs.weight_XBL, numbers_X)


def _live(seen: Seen) -> jax.Array:
  return seen.live['stack']


def _example(reader: Reader) -> list[tuple[str, float]]:
  """Tokens of the first text, or of a picture the places, with their loops."""
  seen = next(reader.seen())

  def first(variables: Any, seen: Seen) -> Any:
    return of_tokens(reader.model, variables, seen)[0], _live(seen)[0]

  loops_L, live_L = jax.device_get(jax.jit(first)(reader.variables, seen))
  read, pieces = reader.first['inputs'][0], reader.dataset.tokenizer.pieces
  names = (
    [str(place) for place in range(len(loops_L))]
    if read.ndim > 1
    else [text.token(pieces, number) for number in read]
  )
  return [(names[i], float(loops_L[i])) for i in np.flatnonzero(live_L)[:SHOWN]]


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
  """A row for each number of loops."""
  total = sum(found['tokens'])
  return [
    {'loops': loops, 'tokens': count, 'share': count / total}
    for loops, count in enumerate(found['tokens'])
  ]


def tell(found: dict[str, Any]) -> str:
  """The same rows, their mean, and the example."""
  words = [
    f'{name}:{loops:.3g}'.replace('.0', '') for name, loops in found['example']
  ]
  lines = [' '.join(words[i : i + 12]) for i in range(0, len(words), 12)]
  return (
    f'{found["rule"]}, criterion {found["criterion"]}: {found["mean"]:.3f}'
    f' loops of the core on average\n{text.table(rows(found))}\n\n'
    'a text, each token with its loops\n' + '\n'.join(lines)
  )


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
  """How many tokens run how many loops, and the example in colours."""
  path = folder / 'depth.png'
  return [drawing.loops(found['tokens'], found['example'], path)]
