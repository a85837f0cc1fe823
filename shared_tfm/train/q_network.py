"""Dynamic layer tying (Hay & Wolf, 2401.12819): a Q-network ties layers.

Layers take turns. At each decision the network values, for the layer whose turn
it is, owning its weights and reading those of any earlier layer; the best is
taken, or with probability epsilon, which falls with every round of all layers,
any. The reward is minus the perplexity of a training batch, taken when the next
decision is due and clipped to [-10, 10]. The network learns towards reward +
discount * best next value, from a memory of decisions (the authors' code,
tamirdh/Dynamic-Layer-Tying, learns from the last one alone).

That code points a tied layer at its owner's weights and freezes it, so that its
visit sends them no gradient: `model.shared_gradient` 'owner'. With 'sum' all
visits train what they read.
"""

import base64
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from shared_tfm.config import Config
from shared_tfm.sharing import adaptive, reuse
from shared_tfm.sharing.table import Owners

CLIP = 10.0
Memory = dict[str, np.ndarray]


class Values(nn.Module):
  """The value of every action, from a table, a layer and a component."""

  width: int
  layers: int

  @nn.compact
  def __call__(self, x_BI: jax.Array) -> jax.Array:
    """One hidden layer: (B, inputs) to (B, layers)."""
    hidden = nn.relu(nn.Dense(self.width)(x_BI))
    return nn.Dense(self.layers)(hidden)


class Tying:
  """The method 'q_network' of adapt.py."""

  join = 'first'  # who is tied takes the owner's weights
  finished = False

  def __init__(self, config: Config):
    """Draws the network from the run's seed; its memory is empty."""
    self.adapt, self.seed = config.adapt, config.train.seed
    self.layers = config.model.num_layers
    self.decisions = 0
    self.network = Values(self.adapt.width, self.layers)
    self.rule = optax.adam(self.adapt.learning_rate)
    self.learned: Any = None  # parameters and optimizer state
    self.memory: Memory = {}
    self.pending: Memory = {}  # the last decision, whose reward is to come
    self.update = jax.jit(self._update)
    self.values = jax.jit(self.network.apply)

  def decide(self, tables: dict[str, np.ndarray], seen: Any) -> Any:
    """Rewards the last decision, learns, and takes the next one."""
    state = np.stack([_state(rows) for rows in tables.values()])
    layer = 1 + self.decisions % max(self.layers - 1, 1)
    random = np.random.default_rng([self.seed, self.decisions])
    if self.learned is None:
      self._start(len(state))
    if self.decisions:
      loss = seen.loss()
      perplexity = np.exp(min(loss, 80.0) if np.isfinite(loss) else 80.0)
      self._remember(-perplexity, state, layer)
      self._learn(random)
    chosen = self._choose(random, state, layer)
    self.pending = {
      'state': state,
      'layer': np.full(len(state), layer, np.int32),
      'action': chosen.astype(np.int32),
    }
    self.decisions += 1
    if self.layers == 1:
      return tables
    actions = dict(zip(tables, map(int, chosen), strict=True))
    return adaptive.first_level(
      tables, lambda name, rows: adaptive.tied(rows, layer, actions[name])
    )

  @property
  def epsilon(self) -> float:
    """How likely the next decision is to be any."""
    rounds = self.decisions // max(self.layers - 1, 1)
    return max(self.adapt.decay**rounds, self.adapt.least)

  def get_state(self) -> dict[str, Any]:
    """Everything that was learned and remembered, as JSON."""
    arrays = (self.learned, self.memory, self.pending)
    leaves = jax.tree.leaves(jax.device_get(arrays))
    return {
      'decisions': self.decisions,
      'components': len(self.pending.get('layer', ())),
      'arrays': [_packed(np.asarray(leaf)) for leaf in leaves],
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on from what `get_state` said."""
    self.decisions = state['decisions']
    if not self.decisions:
      return
    self._start(state['components'])
    one = np.zeros(state['components'], np.int32)
    self.pending = {'state': one, 'layer': one, 'action': one}
    shaped: Any = jax.tree.structure((self.learned, self.memory, self.pending))
    leaves = [_unpacked(packed) for packed in state['arrays']]
    self.learned, self.memory, self.pending = shaped.unflatten(leaves)

  def _start(self, components: int) -> None:
    """Draws the network and makes room for decisions."""
    inputs = self.layers * (self.layers + 1) + components
    params = self.network.init(
      jax.random.key(self.seed), jnp.zeros((1, inputs))
    )
    self.learned = (params, self.rule.init(params))
    size, n = self.adapt.replay, self.layers
    whole = np.zeros(size, np.int32)
    self.memory = {
      'state': np.zeros((size, n), np.int32),
      'next': np.zeros((size, n), np.int32),
      'component': whole.copy(),
      'layer': whole.copy(),
      'next_layer': whole.copy(),
      'action': whole.copy(),
      'reward': np.zeros(size, np.float32),
      'count': np.zeros((), np.int64),  # of all decisions ever remembered
    }
    self.components = components

  def _remember(self, reward: float, state: np.ndarray, layer: int) -> None:
    memory = self.memory
    for component in range(len(state)):
      place = int(memory['count']) % self.adapt.replay
      memory['state'][place] = self.pending['state'][component]
      memory['layer'][place] = self.pending['layer'][component]
      memory['action'][place] = self.pending['action'][component]
      memory['component'][place] = component
      memory['reward'][place] = np.clip(reward, -CLIP, CLIP)
      memory['next'][place] = state[component]
      memory['next_layer'][place] = layer
      memory['count'] = memory['count'] + 1

  def _learn(self, random: np.random.Generator) -> None:
    """One update on decisions drawn from memory."""
    held = min(int(self.memory['count']), self.adapt.replay)
    drawn = random.integers(held, size=self.adapt.batch_size)
    m = {k: v[drawn] for k, v in self.memory.items() if k != 'count'}
    self.learned = self.update(
      self.learned,
      self._inputs(m['state'], m['layer'], m['component']),
      m['action'],
      m['reward'],
      self._inputs(m['next'], m['next_layer'], m['component']),
      m['next_layer'],
    )

  def _update(
    self,
    learned: Any,
    x_BI: jax.Array,
    action_B: jax.Array,
    reward_B: jax.Array,
    next_BI: jax.Array,
    layer_B: jax.Array,
  ) -> Any:
    params, opt_state = learned
    values_BN: Any = self.network.apply(params, next_BI)
    allowed_BN = jnp.arange(self.layers)[None] <= layer_B[:, None]
    best_B = jnp.max(jnp.where(allowed_BN, values_BN, -jnp.inf), axis=1)
    target_B = reward_B + self.adapt.discount * best_B

    def loss(params: Any) -> jax.Array:
      values_BN: Any = self.network.apply(params, x_BI)
      taken_B = jnp.take_along_axis(values_BN, action_B[:, None], axis=1)[:, 0]
      return jnp.mean((taken_B - target_B) ** 2)

    grads = jax.grad(loss)(params)
    updates, opt_state = self.rule.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  def _choose(
    self, random: np.random.Generator, state: np.ndarray, layer: int
  ) -> np.ndarray:
    """An action for every component: a layer up to this one itself."""
    count = len(state)
    x_CI = self._inputs(state, np.full(count, layer), np.arange(count))
    values = np.asarray(self.values(self.learned[0], x_CI))
    explores = random.random(count) < self.epsilon
    anything = random.integers(layer + 1, size=count)
    return np.where(explores, anything, values[:, : layer + 1].argmax(axis=1))

  def _inputs(
    self, state: np.ndarray, layer: np.ndarray, component: np.ndarray
  ) -> np.ndarray:
    """One-hot codes of the table, the layer and the component, (B, inputs)."""
    n = self.layers
    table = np.eye(n, dtype=np.float32)[state].reshape(len(state), -1)
    whose = np.eye(n, dtype=np.float32)[layer]
    which = np.eye(self.components, dtype=np.float32)[component]
    return np.concatenate([table, whose, which], axis=1)


def _state(rows: np.ndarray) -> np.ndarray:
  """For every layer the one that owns what it reads."""
  owners: Owners = tuple(map(int, rows[:, 0]))
  return np.array(reuse.sources(owners), np.int32)


def _packed(array: np.ndarray) -> dict[str, Any]:
  return {
    'dtype': str(array.dtype),
    'shape': list(array.shape),
    'bytes': base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(),
  }


def _unpacked(packed: dict[str, Any]) -> np.ndarray:
  raw = base64.b64decode(packed['bytes'])
  array = np.frombuffer(raw, packed['dtype']).reshape(packed['shape'])
  return array.copy()
