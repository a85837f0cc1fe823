"""A config's compiled programs."""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm import tasks
from shared_tfm.config import Config
from shared_tfm.data import Dataset
from shared_tfm.errors import need
from shared_tfm.train import gradient, hosts, remat, visits
from shared_tfm.train import mesh as meshes
from shared_tfm.train import state as states
from shared_tfm.train import step as steps
from shared_tfm.train.shaped import Shaped


def programs(config: Config) -> 'Programs':
  """The programs of a config; runs that start otherwise share them."""
  train = dataclasses.replace(config.train, seed=0, init_from='')
  return _programs(dataclasses.replace(config, train=train))


@functools.lru_cache(maxsize=1)
def _programs(config: Config) -> 'Programs':
  return Programs(config)


class Programs:
  """What a run executes, each compiled when it is first asked for."""

  def __init__(
    self,
    config: Config,
    mesh: jax.sharding.Mesh | None = None,
    platform: str = '',
  ):
    """Remembers the config, whose seed plays no part.

    Args:
      config: as `config.cross` returns it.
      mesh: to have a state on; None for the config's own.
      platform: whose policies of recomputation are tried; '' for the mesh's.
    """
    self.config, self._mesh, self._platform = config, mesh, platform
    self.task = tasks.make(config)

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """The devices."""
    return self._mesh or meshes.make(self.config)

  @functools.cached_property
  def shapes(self) -> Any:
    """The state's shapes, dtypes and shardings."""
    return _placed(states.shapes(self.config), self.where)

  @functools.cached_property
  def batches(self) -> list[Any]:
    """The shapes of each kind of batch, and their shardings.

    Raises:
      BadInput: one of them, such as those of short texts, cannot be cut.
    """
    shards, parts = meshes.count(self.mesh), self.config.train.accumulate
    for batch in self.task.batches():
      rows = batch['inputs'].shape[0]
      need(
        rows // parts % shards == 0,
        f'mesh.data x mesh.fsdp = {shards} shards must each get as many'
        f' examples, and one kind of batch has {rows} in {parts} parts',
      )
    return [
      _placed(batch, meshes.of_batch(batch, self.mesh))
      for batch in self.task.batches()
    ]

  @functools.cached_property
  def init(self) -> Any:
    """(seed) -> state."""
    init = functools.partial(states.initial, self.config)
    return jax.jit(init, out_shardings=self.where).lower(_SEED).compile()

  @property
  def train(self) -> Any:
    """(state, batch) -> (state, metrics); the state is donated."""
    return self._train[-1]

  @property
  def remat(self) -> str:
    """The policy of `model.remat` that the training step has."""
    return self._train[0][-1]

  @property
  def tried(self) -> int:
    """How many policies were compiled before one was taken."""
    return len(self._train[0])

  @functools.cached_property
  def _train(self) -> tuple[Sequence[str], Shaped]:
    """The policies that were tried, and the training step by the last of them:

    the fastest that fits, or else the smallest.
    """
    device = self.mesh.local_devices[0]
    budget = remat.budget(self.config, device)
    policies = remat.policies(self.config, self._platform or device.platform)
    tried = []
    for policy in policies:
      tried.append(policy)
      try:
        step = self._shaped(
          steps.train_step(remat.under(self.config, policy)),
          trains=True,
          donate_argnums=0,
          out_shardings=(self.where, self._whole),
        )
        fits = step.peak_bytes <= budget
      except jax.errors.JaxRuntimeError as error:
        # A TPU's compiler itself says what does not fit.
        if policy == policies[-1] or 'RESOURCE_EXHAUSTED' not in str(error):
          raise
        fits = False
      if len(policies) == 1 or hosts.agreed(fits):
        break
    return tried, step

  @functools.cached_property
  def evaluate(self) -> Any:
    """(state, batch) -> sums, and what was said of each row."""
    step = steps.eval_step(self.config)
    return self._shaped(step, out_shardings=self._whole)

  @functools.cached_property
  def cosines(self) -> Any:
    """(state, batch) -> cosines between visits' gradients, by component."""
    measure = visits.visit_cosines(remat.under(self.config, self.remat))
    return self._shaped(measure, out_shardings=self._whole)

  @functools.cached_property
  def gradient(self) -> Any:
    """(state, batch) -> the mean gradient, where parameters are."""
    step = gradient.measured(remat.under(self.config, self.remat))
    return self._shaped(step, trains=True, out_shardings=self.where.params)

  @property
  def _whole(self) -> jax.sharding.NamedSharding:
    """Where everything is on every device."""
    return jax.NamedSharding(self.mesh, jax.P())

  def _shaped(
    self, function: Any, trains: bool = False, **options: Any
  ) -> Shaped:
    with meshes.stream(self.config, self.mesh, trains):
      return Shaped(function, self.shapes, self.batches, **options)

  @functools.cached_property
  def where(self) -> Any:
    """Where each part of a state lives."""
    return states.shardings(self.config, self.mesh)

  def put(self, batch: Mapping[str, Any]) -> Any:
    """A batch that every process has, on the devices."""
    if not hosts.several():
      put = jax.device_put(dict(batch), meshes.of_batch(batch, self.mesh))
      # A CPU runs a step that need not wait for it in this thread: see heap.py.
      on_cpu = self.mesh.local_devices[0].platform == 'cpu'
      return jax.block_until_ready(put) if on_cpu else put

    def cut(values: Any) -> jax.Array:
      where = meshes.of_batch(values, self.mesh)
      return jax.make_array_from_callback(
        values.shape, where, lambda part: values[part]
      )

    with jax.transfer_guard('allow'):
      return {name: cut(values) for name, values in batch.items()}

  def put_share(self, batch: Mapping[str, Any]) -> Any:
    """A batch of which this process has a share, on the devices."""
    if not hosts.several():
      return self.put(batch)
    _, count = meshes.share(self.mesh)
    with jax.transfer_guard('allow'):  # it is asked for, if not by device_put
      return {
        name: jax.make_array_from_process_local_data(
          meshes.of_batch(values, self.mesh),
          values,
          (len(values) * count, *values.shape[1:]),
        )
        for name, values in batch.items()
      }

  def score(
    self, state: states.State, dataset: Dataset, split: str
  ) -> dict[str, Any]:
    """What the task scores by decoding; each process does so by itself."""
    variables = {'params': state.params, **state.variables}
    return self.task.score(hosts.here(variables), dataset, split)

  @property
  def peak_bytes(self) -> int:
    """Memory of the largest training step: state, batch and temporaries."""
    return self.train.peak_bytes


def _placed(shapes: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
    shapes,
    shardings,
  )


_SEED = jax.ShapeDtypeStruct((), jnp.uint32)


def evaluate(
  compiled: Programs,
  state: states.State,
  dataset: Dataset,
  batches: int,
  split: str = 'validation',
) -> dict[str, float]:
  """Evaluates on a split.

  Args:
    compiled: the config's programs.
    state: any training state of that config.
    dataset: the data, with a fixed order of batches.
    batches: how many of them; 0 for all.
    split: of the data.

  Returns:
    What the task measures, 'loss' among it.
  """
  task, totals = compiled.task, collections.defaultdict[str, float](float)
  pending, rows = [], []
  for batch in dataset.evaluation(split, batches):
    pending.append(compiled.evaluate(state, compiled.put(batch)))
    rows.append(batch.get('row'))
    for name, value in task.count(batch, dataset).items():
      totals[name] += value
  predictions = []
  for (sums, said), row_B in zip(jax.device_get(pending), rows, strict=True):
    for name, value in sums.items():
      totals[name] += value.item()
    if row_B is not None:
      predictions += tasks.predicted(said, row_B)
  return task.metrics(totals, predictions, dataset, split)
