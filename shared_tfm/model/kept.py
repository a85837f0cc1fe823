"""What a stack keeps of earlier tokens, and which visit keeps it where.

State belongs to visits: every visit has keys and values of its own, also where
its weights are another's, unless a policy says otherwise:

    visit  each visit has a slot, and what `kv_source` reuses is kept once. Only
           this computes what the whole text at once would.
    first  later visits of a row read its first visit's slot and make nothing:
           recursive sharing (Mixture-of-Recursions, 2507.10524, section 2.2.2)
    owner  a row has one slot, in which each visit's keys and values replace
           those of the visit before: tokens see what the last visit of earlier
           tokens made (Huginn, 2502.05171, section 6.2, with a budget of 1)
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from shared_tfm.config import Model
from shared_tfm.config.choices import CACHES
from shared_tfm.config.loops import loops
from shared_tfm.config.shapes import components
from shared_tfm.errors import need
from shared_tfm.layers.cache import Cache, Slots
from shared_tfm.sharing import reuse, table
from shared_tfm.sharing.bank import Layout

_NOWHERE = 2**30  # a slot that no cache has


class Kept(flax.struct.PyTreeNode):
  """A stack's caches.

  Attributes:
    text: of the text that is written.
    source: of an encoder's memory; None: there is no encoder.
    offset: added to a visit's slot, where visits are run several times over.
    stride: what each run adds to it.
    policy: see the module.
  """

  text: Cache
  source: Cache | None
  offset: jax.Array
  stride: int = flax.struct.field(pytree_node=False)
  policy: str = flax.struct.field(pytree_node=False)

  @property
  def places(self) -> int:
    """The most tokens of a text."""
    return self.text.seen_SBM.shape[-1]

  def run(self, number: Any) -> 'Kept':
    """For a further run of the same visits, or the first, 0."""
    return self.replace(offset=jnp.asarray(number, jnp.int32) * self.stride)

  def filled(
    self,
    model: Model,
    leaves: Layout,
    loops_BT: jax.Array,
    places_BT: jax.Array,
  ) -> 'Kept':
    """With the slots of loops that a token left out: as its last loop's.

    Args:
      model: of the stack.
      leaves: its tensors.
      loops_BT: how many loops each token ran.
      places_BT: where it stands.
    """
    p, c, times, _ = loops(model)
    writes = plan(model, leaves, self.policy)['write']
    slots_RC = writes[p : p + c * times].reshape(times, c)
    coda_RK = writes[p + c * times :] + self.stride * np.arange(times)[:, None]
    slots_RC = np.concatenate([slots_RC, coda_RK], axis=1)
    # For a slot and a last loop the slot to copy, the latest one that there is.
    real_RC = slots_RC < _NOWHERE
    latest_RC = np.maximum.accumulate(
      np.where(real_RC, np.arange(times)[:, None], 0), axis=0
    )
    to, of = [], []
    for loop, layer in zip(*np.nonzero(real_RC), strict=True):
      last = np.minimum(np.arange(times), loop)
      to.append(slots_RC[loop, layer])
      of.append(slots_RC[latest_RC[last, layer], layer])
    of_NR, to_N11 = jnp.array(np.array(of)), jnp.array(to)[:, None, None]
    from_NBT = of_NR[:, loops_BT - 1]
    rows_1B1 = jnp.arange(len(loops_BT))[None, :, None]

    def copied(kept: jax.Array, *further: Any) -> jax.Array:
      behind = rows_1B1, *further, places_BT[None]
      new = kept.at[(from_NBT, *behind)].get(mode='fill', fill_value=0)
      return kept.at[(to_N11, *behind)].set(new)

    every = slice(None)
    text = self.text
    scales = text.key_scales_SBGM, text.value_scales_SBGM
    return self.replace(
      text=Cache(
        copied(text.keys_SBGMK, every),
        copied(text.values_SBGMK, every),
        copied(text.seen_SBM),
        *(None if s is None else copied(s, every) for s in scales),
      )
    )

  def plan(self, model: Model, leaves: Layout) -> dict[str, jax.Array]:
    """`plan` of these; 'own' where a visit may do without its own."""
    found = plan(model, leaves, self.policy)
    if self.policy != 'first':
      del found['own']
    return jax.tree.map(jnp.asarray, found)

  def slots(self, this: Any, index: jax.Array) -> dict[str, Slots | None]:
    """Fields of the context of a visit.

    Args:
      this: of `plan`, that visit's.
      index: its number.
    """
    read = this['read']
    if self.offset.ndim:  # each row at a run of its own
      read = read[None] + self.offset[:, None]
    else:
      read = read + self.offset
    text = Slots(self.text, this['write'] + self.offset, read, this['readable'])
    if self.source is None:
      return {'cache': text}
    source = Slots(self.source, index, index[None], jnp.ones(1, bool))
    return {'cache': text, 'source': source}


def empty(
  model: Model,
  leaves: Layout,
  batch: int,
  places: int,
  source_places: int,
  policy: str,
) -> Kept:
  """Nothing kept yet.

  Args:
    model: of the stack.
    leaves: its tensors.
    batch: B.
    places: the most tokens of a text.
    source_places: of an encoder's memory.
    policy: one of `CACHES`.

  Raises:
    BadInput: the policy does not fit what the model reuses.
  """
  writes = plan(model, leaves, policy)['write']
  runs, stride = _runs(model)
  slots = 1 + int(np.max(writes[writes < _NOWHERE])) + (runs - 1) * stride
  shape = model.num_kv_heads, model.head_dim, jnp.dtype(model.cache_dtype)
  heads, width, dtype = shape
  source = None
  if model.family == 'encoder_decoder':
    source = Cache.empty(
      model.num_layers, batch, heads, source_places, width, dtype
    )
  return Kept(
    text=Cache.empty(slots, batch, heads, places, width, dtype),
    source=source,
    offset=jnp.zeros((), jnp.int32),
    stride=stride,
    policy=policy,
  )


def plan(model: Model, leaves: Layout, policy: str) -> dict[str, np.ndarray]:
  """Where each visit writes, what it reads, and whether it makes its own.

  Args:
    model: of the stack.
    leaves: its tensors.
    policy: one of `CACHES`.

  Returns:
    'write' (visits,), 'read' and 'readable' (visits, R), 'own' (visits,).

  Raises:
    BadInput: the policy does not fit what the model reuses.
  """
  need(
    policy in CACHES,
    f'a cache is kept per {", ".join(CACHES)}, got {policy!r}',
  )
  n = model.num_layers
  every = tuple(range(n))
  if policy == 'visit':
    source = model.sharing.kv_source
    owners = table.owners(source, n) if source else every
  else:
    need(
      not (model.sharing.kv_source or model.sharing.map_source)
      and model.depth.attention == 'loop'
      and model.tables == 'fixed',
      f'a cache per {policy} is for models with fixed tables that say nothing'
      ' else of what layers reuse (kv_source, map_source, depth.attention)',
    )
    owners = _rows_of_keys(model, leaves)
  sources = reuse.sources(owners)
  slot_of = {maker: slot for slot, maker in enumerate(sorted(set(sources)))}
  slots = np.array([slot_of[maker] for maker in sources])
  own = np.array(sources) == np.arange(n)
  runs, coda = _runs(model)
  apart = model.depth.rule == 'two_level' or all(own[n - coda :])
  need(
    policy == 'visit' or runs == 1 or apart,
    f'a cache per {policy} of a model with several exits needs a coda that'
    ' shares no keys with the core',
  )
  write = slots if policy == 'owner' else np.where(own, slots, _NOWHERE)
  read, readable = slots[:, None], np.ones((n, 1), bool)
  if model.depth.attention != 'loop':
    read, readable = _of_loops(model, slots)
  if policy == 'owner':
    own[:] = True
  return {'write': write, 'read': read, 'readable': readable, 'own': own}


def _runs(model: Model) -> tuple[int, int]:
  """How often some visits are run, and how many slots a run needs."""
  depth = model.depth
  if depth.rule == 'two_level':
    return depth.supervision, model.num_layers
  if depth.rule in ('ponder', 'exits') or depth.criterion != 'none':
    _, _, times, coda = loops(model)
    return times, coda
  return 1, 0


def _rows_of_keys(model: Model, leaves: Layout) -> tuple[int, ...]:
  """The row of each visit's key projection, of the first level."""
  found, path = components(model), 'attention.key'
  component = found[leaves[(*path.split('.'), 'kernel')].name]
  while component.spec.same_as:
    path = component.spec.same_as
    component = found[leaves[(*path.split('.'), 'kernel')].name]
  return tuple(component.owners[0][component.here])


def _of_loops(model: Model, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """For visits of the core the slots of all loops, those readable so far."""
  p, c, times, _ = loops(model)
  read = np.repeat(slots[:, None], times, axis=1)
  readable = np.zeros(read.shape, bool)
  readable[:, 0] = True
  for visit in range(p, p + c * times):
    loop, layer = divmod(visit - p, c)
    read[visit] = slots[p + layer + c * np.arange(times)]
    readable[visit] = np.arange(times) <= loop
  return read, readable
