"""Tables that change while a model trains: when, and to what.

    unshare_at     every layer gets its own weights at a step
    unshare_when   ... when the gradients of a row's visits fall apart
    unshare_steps  rows are halved, step by step, until every layer has its own
    merge          the two rows that are most alike become one, step by step
    q_network      a small network learns which layers to tie, see q_network.py

The first three are SWE-F, SWE-A and SWE-M of Yang et al. (2110.03848), who have
layers share at first (`all`, or units of them: `sequence:U`, `cycle:U`) and go
on with the mean of gradients (`model.shared_gradient`). The table itself is
state of the model; what decides is an object here, with a little state of its
own that is saved with the run.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from shared_tfm.config import Config
from shared_tfm.sharing import adaptive
from shared_tfm.sharing.table import Owners
from shared_tfm.train.programs import Programs
from shared_tfm.train.q_network import Tying
from shared_tfm.train.state import State

Tables = dict[str, np.ndarray]  # by component, (visits, levels)
Cosines = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a decision may look at; each is measured when it is asked for.

  Attributes:
    loss: () -> the training loss of the step at hand.
    cosines: () -> those of the gradients of single visits.
    similarity: () -> cosines between the weights of rows.
  """

  loss: Callable[[], float]
  cosines: Callable[[], Cosines]
  similarity: Callable[[], Cosines]


class Never:
  """Tables stay; and what the others are made from.

  Attributes:
    join: what becomes of rows that one row takes the place of: 'mean', 'first'.
    finished: whether nothing will change any more.
  """

  join = 'mean'

  def __init__(self, config: Config):
    """Starts from what the config says."""
    self.adapt = config.adapt
    self.finished = config.adapt.method == 'none'

  def decide(self, tables: Tables, seen: Seen) -> Tables:
    """The tables from now on; `finished` is set where no more will come."""
    del seen
    return tables

  def get_state(self) -> dict[str, Any]:
    """What a continued run must know, as JSON."""
    return {'finished': self.finished}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on from what `get_state` said."""
    self.finished = state['finished']


class UnshareAt(Never):
  """SWE-F: at one step, once."""

  def decide(self, tables: Tables, seen: Seen) -> Tables:
    """Unties everything."""
    self.finished = True
    return adaptive.first_level(tables, lambda _, rows: adaptive.untied(rows))


class UnshareSteps(Never):
  """SWE-M: in several steps, the groups of layers halved at each."""

  def decide(self, tables: Tables, seen: Seen) -> Tables:
    """Halves every group."""
    found = adaptive.first_level(tables, lambda _, rows: adaptive.halved(rows))
    self.finished = all(_rows(rows) == len(rows) for rows in found.values())
    return found


class UnshareWhen(Never):
  """SWE-A: once gradient correlation was low `patience` times in a row.

  The correlation of a component is the mean cosine over pairs of visits to one
  row.
  """

  def __init__(self, config: Config):
    """Nothing was low yet."""
    super().__init__(config)
    self.low: dict[str, int] = {}

  def decide(self, tables: Tables, seen: Seen) -> Tables:
    """Unties the components whose visits no longer agree."""
    cosines = seen.cosines()

    def change(name: str, owners: Owners) -> Owners:
      value = None
      if name in cosines:
        value = adaptive.correlation(cosines[name], owners)
      if value is None:
        return owners
      low = value < self.adapt.threshold
      self.low[name] = self.low.get(name, 0) + 1 if low else 0
      if self.low[name] < self.adapt.patience:
        return owners
      return adaptive.untied(owners)

    found = adaptive.first_level(tables, change)
    self.finished = all(
      _rows(rows) == len(rows)
      for name, rows in found.items()
      if name in cosines
    )
    return found

  def get_state(self) -> dict[str, Any]:
    """How often in a row each component was low."""
    return {**super().get_state(), 'low': self.low}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on counting."""
    super().set_state(state)
    self.low = dict(state['low'])


class Merge(Never):
  """The most similar pair of rows becomes their mean, until few are left."""

  def decide(self, tables: Tables, seen: Seen) -> Tables:
    """Merges one pair of each component."""
    similarity = seen.similarity()

    def change(name: str, owners: Owners) -> Owners:
      if name not in similarity or max(owners) < self.adapt.rows:
        return owners
      pair = adaptive.similar(similarity[name], owners)
      return adaptive.merged(owners, *pair)

    found = adaptive.first_level(tables, change)
    self.finished = all(
      _rows(rows) <= self.adapt.rows
      for name, rows in found.items()
      if name in similarity
    )
    return found


METHODS: dict[str, Any] = {
  'none': Never,
  'unshare_at': UnshareAt,
  'unshare_when': UnshareWhen,
  'unshare_steps': UnshareSteps,
  'q_network': Tying,
  'merge': Merge,
}


class Adapter:
  """Changes a run's tables, and moves weights and moments along with them."""

  def __init__(self, config: Config, compiled: Programs):
    """Starts the config's method.

    Args:
      config: of the run.
      compiled: its programs, of which a method may need one more.
    """
    self.adapt, self.compiled = config.adapt, compiled
    with jax.transfer_guard('allow'):
      self.method = METHODS[config.adapt.method](config)

  def due(self, step: int) -> bool:
    """Whether the tables may change after this step."""
    first = self.adapt.step or self.adapt.every
    on_time = step >= first and (step - first) % self.adapt.every == 0
    return on_time and not self.method.finished

  def apply(self, state: State, batch: Any, metrics: Any) -> tuple[State, bool]:
    """Decides, and changes the state where the tables change.

    Args:
      state: after the step; it is used up.
      batch: of the step.
      metrics: of the step.

    Returns:
      The state, and whether a table has changed.
    """
    with jax.transfer_guard('allow'):
      now = jax.device_get(tables_of(state))
      given = self.adapt.only.replace(' ', '')
      only = given.split(',') if given else list(now)
      then = self.method.decide(
        {name: now[name] for name in only},
        Seen(
          loss=lambda: float(metrics['loss']),
          cosines=lambda: jax.device_get(self.compiled.cosines(state, batch)),
          similarity=lambda: jax.device_get(
            adaptive.similarity(state.params, now)
          ),
        ),
      )
      if all(np.array_equal(now[name], then[name]) for name in only):
        return state, False
      return retied(state, now | then, self.method.join), True

  def get_state(self) -> dict[str, Any]:
    """What a continued run must know, as JSON."""
    return self.method.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on from what `get_state` said."""
    with jax.transfer_guard('allow'):
      self.method.set_state(state)


def retied(state: State, tables: Tables, join: str = 'mean') -> State:
  """The state under other tables; the one given is used up.

  Args:
    state: of a model whose tables are state.
    tables: by component, (visits, levels), dense.
    join: see `adaptive.retie`.
  """
  new = {name: jax.device_put(rows) for name, rows in tables.items()}
  params, opt_state = adaptive.retie(
    (state.params, state.opt_state), tables_of(state), new, join
  )
  variables = {**state.variables, 'tables': {'stack': {'owners': new}}}
  return state.replace(params=params, opt_state=opt_state, variables=variables)


def history(state: State) -> dict[str, str]:
  """The first table of every component as a literal; none where it is fixed."""
  return {
    name: ','.join(map(str, rows[:, 0]))
    for name, rows in jax.device_get(tables_of(state)).items()
  }


def tables_of(state: State) -> dict[str, Any]:
  """By component (visits, levels); none where tables are fixed."""
  found: dict[str, Any] = state.variables.get('tables', {})
  return found['stack']['owners'] if found else {}


def _rows(table: np.ndarray) -> int:
  return int(table[:, 0].max()) + 1
