"""The pure training and evaluation steps.

A batch is a dict of 'inputs' and 'targets' (B, L) integers and 'weights' (B, L)
floats: 1 where a target counts, 0 where it does not; of an encoder-decoder also
'source' (B, S) integers and 'source_mask' (B, S), False at its padding.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from shared_tfm.config import Config
from shared_tfm.model import Transformer, build
from shared_tfm.train import optimizer

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class State(flax.struct.PyTreeNode):
  """Everything that training changes.

  Attributes:
    step: updates done.
    params: the parameter tree; inside 'stack', leaves have a row per owner.
    variables: other collections of the model, such as 'batch_stats'; inside
      'stack', leaves have a slot per visit.
    opt_state: the optimizer's.
    skipped: micro-batches dropped because their gradient was not finite.
    key: raw PRNG key data that dropout keys are derived from.
  """

  step: jax.Array
  params: Any
  variables: Any
  opt_state: Any
  skipped: jax.Array
  key: jax.Array


def inputs(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of a batch."""
  ids = jax.ShapeDtypeStruct(
    (config.train.batch_size, config.data.seq_len), jnp.int32
  )
  weights = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
  batch = {'inputs': ids, 'targets': ids, 'weights': weights}
  if config.model.family == 'encoder_decoder':
    mask = jax.ShapeDtypeStruct(ids.shape, jnp.bool_)
    batch |= {'source': ids, 'source_mask': mask}
  return batch


def initial(config: Config, seed: jax.Array) -> State:
  """A fresh state. `seed` is an integer scalar, and the only randomness."""
  init_key, key = jax.random.split(jax.random.key(seed))
  tokens = jnp.zeros((1, config.data.seq_len), jnp.int32)
  source: Any = {'source_BS': tokens} if 'source' in inputs(config) else {}
  variables = nn.unbox(build(config).init(init_key, tokens, **source))
  params = variables.pop('params')
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    variables=variables,
    opt_state=optimizer.make(config).init((params, jnp.zeros(()))),
    skipped=jnp.zeros((), jnp.int32),
    key=jax.random.key_data(key),
  )


def train_step(config: Config) -> Callable[[State, Batch], Any]:
  """The training step: (state, batch) -> (state, metrics), pure.

  Metrics: 'loss' in nats per weighted token, at the last exit, 'learning_rate',
  'skipped', and of the last micro-batch where there are several: 'grad_norm'
  of the mean gradient before clipping, what the model measures ('loops') and
  the further terms of its loss ('router_loss').
  """
  model = build(config, train=True)
  update_rule = optimizer.make(config)
  rate = optimizer.schedule(config)

  def loss(params: Any, variables: Any, batch: Batch, key: jax.Array) -> Any:
    (total, sums, seen), variables = model.apply(
      {'params': params, **variables},
      batch,
      rngs={'dropout': key, 'depth': jax.random.fold_in(key, 1)},
      mutable=list(variables),
      method=losses,
    )
    return total / batch['weights'].size, (sums, seen, variables)

  def micro(state: State, indexed: tuple[jax.Array, Batch]) -> Any:
    index, batch = indexed
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    grads, (sums, seen, variables) = jax.grad(loss, has_aux=True)(
      state.params, state.variables, batch, jax.random.fold_in(key, index)
    )
    weight = sums['weight'] / batch['weights'].size
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    kept = jax.tree.map(
      lambda g: jnp.where(finite, g, jnp.zeros_like(g)), (grads, weight)
    )
    (updates, _), opt_state = update_rule.update(
      kept, state.opt_state, (state.params, weight)
    )
    state = state.replace(
      params=optax.apply_updates(state.params, updates),
      variables=jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        variables,
        state.variables,
      ),
      opt_state=opt_state,
      skipped=state.skipped + ~finite,
    )
    return state, (sums, {**seen, 'grad_norm': norm / weight})

  def step(state: State, batch: Batch) -> tuple[State, Metrics]:
    count = config.train.accumulate
    learning_rate = jnp.asarray(rate(state.step), jnp.float32)
    batches = jax.tree.map(lambda a: a.reshape(count, -1, a.shape[-1]), batch)
    state, (sums, seen) = jax.lax.scan(
      micro, state, (jnp.arange(count), batches)
    )
    metrics = {
      'loss': jnp.sum(sums['loss']) / jnp.sum(sums['weight']),
      **{name: values[-1] for name, values in seen.items()},
      'learning_rate': learning_rate,
      'skipped': state.skipped,
    }
    return state.replace(step=state.step + 1), metrics

  return step


def eval_step(config: Config) -> Callable[[State, Batch, jax.Array], Metrics]:
  """The evaluation step: (state, batch, bytes of each token) -> sums.

  Sums: 'loss' in nats, 'weight' in tokens, 'correct' in tokens, 'bytes' of text
  that the weighted targets stand for, and where depth adapts 'loops'.
  """
  model = build(config)

  def step(state: State, batch: Batch, byte_lengths_V: jax.Array) -> Metrics:
    variables = {'params': state.params, **state.variables}
    exited: Any = model.apply(
      variables, batch['inputs'], **_source(batch), method='exited'
    )
    logits_BLV, loops = exited
    bytes_BL = byte_lengths_V[batch['targets']] * batch['weights']
    hits_BL = jnp.argmax(logits_BLV, axis=-1) == batch['targets']
    sums = {
      'loss': jnp.sum(_token_losses(logits_BLV, batch)),
      'weight': jnp.sum(batch['weights']),
      'correct': jnp.sum(hits_BL * batch['weights']),
      'bytes': jnp.sum(bytes_BL),
    }
    if loops is not None:
      sums['loops'] = loops * sums['weight']
    return sums

  return step


def losses(
  model: Transformer, batch: Batch
) -> tuple[jax.Array, Metrics, Metrics]:
  """What the gradient is of, a sum; the tokens' own sums; what else was seen.

  The model's further losses are means over tokens, and weigh in the sum as much
  as all tokens together.
  """
  outputs = model.outputs(batch['inputs'], **_source(batch))
  total = sum(outputs.losses.values()) * jnp.sum(batch['weights'])
  for i in range(len(outputs.hidden_XBLD)):
    losses_BL = _token_losses(model.scores(outputs.hidden_XBLD[i]), batch)
    if outputs.weight_XBL is None:
      total += jnp.sum(losses_BL)
    else:
      total += jnp.sum(losses_BL * outputs.weight_XBL[i])
  sums = {'loss': jnp.sum(losses_BL), 'weight': jnp.sum(batch['weights'])}
  seen = {f'{name}_loss': term for name, term in outputs.losses.items()}
  return total, sums, {**outputs.metrics, **seen}


def _source(batch: Batch) -> dict[str, Any]:
  """The arguments of a model that reads a source."""
  if 'source' not in batch:
    return {}
  return {
    'source_BS': batch['source'],
    'source_mask_BS': batch['source_mask'],
  }


def _token_losses(logits_BLV: Any, batch: Batch) -> jax.Array:
  """Cross-entropy in nats, times the tokens' weights."""
  losses_BL = optax.softmax_cross_entropy_with_integer_labels(
    logits_BLV, batch['targets']
  )
  return losses_BL * batch['weights']
