"""What the head makes of the streams that visits hand on."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm.layers.cross_entropy import cross_entropy
from shared_tfm.model import Transformer
from shared_tfm.model.backbone import Outputs
from shared_tfm.report.analysis.reader import Reader, Seen
from shared_tfm.tasks import Task


def examples(reader: Reader, seen: Seen) -> Any:
  """What is known of each example, a leading axis B: see `read`."""
  width = reader.config.model.d_model
  wide = [x for x in seen.out['stack'] if x.shape[-1] == width]
  apart = seen.outputs.hidden_XBLD, seen.outputs.weight_XBL
  return jax.tree.map(
    lambda a: jnp.moveaxis(a, 1, 0), (jnp.concatenate(wide), apart)
  ), seen.batch


def read(reader: Reader, variables: Any, streams: Any, batch: Any) -> Any:
  """One example, read by the head after each visit.

  Args:
    reader: of the run.
    variables: the model's.
    streams: (N, L, D), the exits (X, L, D) and their weights (X, L).
    batch: the example's.

  Returns:
    Weights of what is told, flat; the network's losses, which are weighted; and
    'loss', 'agreement', 'kl' and 'best' of each visit, (N, ...).
  """
  out_NLD, exits = streams
  batch = jax.tree.map(lambda a: a[None], batch)
  hidden_X1LD, weight_X1L = jax.tree.map(lambda a: a[:, None], exits)
  outputs = Outputs(hidden_X1LD, weight_X1L)

  def bound(method: Any, *args: Any) -> Any:
    return reader.model.apply(variables, *args, batch, method=method)

  def own(model: Transformer, outputs: Outputs, batch: Any) -> Any:
    mask_BL = batch.get('mask')
    if 'tokens' in model.model.head and model.model.depth.criterion != 'none':
      logits, _ = model.read_at_exits(outputs, mask_BL)
      return cross_entropy(logits, batch['targets']) * batch['weights'], logits
    return _scored(reader.task, model, outputs.hidden_XBLD[-1], batch)

  def lens(model: Transformer, x_BLD: jax.Array, batch: Any) -> Any:
    if model.model.norm_position != 'post':
      x_BLD = model.norm(x_BLD, batch.get('mask'))
    return _scored(reader.task, model, x_BLD, batch)

  losses, logits = bound(own, outputs)
  final = jax.nn.log_softmax(logits, axis=-1)
  weights = _each(batch['weights'], logits.shape[:-1])

  def of_visit(x_LD: jax.Array) -> dict[str, jax.Array]:
    losses, logits = bound(lens, x_LD[None])
    found = {'loss': losses.reshape(-1)}
    if logits.shape[-1] == 1:
      return found
    here = jax.nn.log_softmax(logits, axis=-1)
    best = jnp.argmax(here, axis=-1)
    kl = jnp.sum(jnp.exp(final) * (final - here), axis=-1)
    kl = jnp.maximum(kl, 0)  # rounding
    agrees = best == jnp.argmax(final, axis=-1)
    return {
      **found,
      'agreement': (agrees * weights).reshape(-1),
      'kl': (kl * weights).reshape(-1),
      'best': best.reshape(-1),
    }

  every = jax.lax.map(of_visit, out_NLD)
  every['own'] = jnp.argmax(final, axis=-1).reshape(-1)
  return batch['weights'].reshape(-1), losses.reshape(-1), every


def _each(weights: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Weights of all that is chosen; spans have two ends, of half a weight."""
  ends = math.prod(shape) // weights.size
  axes = [1] * (len(shape) - weights.ndim)
  return jnp.broadcast_to(weights.reshape(*weights.shape, *axes), shape) / ends


def _scored(
  task: Task, model: Transformer, hidden_BLD: jax.Array, batch: Any
) -> tuple[jax.Array, jax.Array]:
  """Weighted losses, and the logits they are of: the last axis is chosen from.

  Args:
    task: of the run.
    model: bound.
    hidden_BLD: a normalised stream.
    batch: see tasks/task.py.
  """
  losses, _ = task.losses(model, hidden_BLD, batch)
  head = model.model.head
  if 'tokens' in head:
    return losses, model.scores(hidden_BLD, batch.get('mask'))
  if head == 'spans':
    allowed_BL1 = batch['allowed'][..., None]
    least = jnp.finfo(jnp.float32).min
    scores_BL2 = jnp.where(allowed_BL1, model.spans(hidden_BLD), least)
    return losses, scores_BL2.swapaxes(1, 2)
  return losses, model.classes(hidden_BLD, batch.get('mask'))
