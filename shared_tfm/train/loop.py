"""One training run, from a config and a folder to trained weights."""

import contextlib
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tqdm

from shared_tfm.config import Config
from shared_tfm.data import Dataset
from shared_tfm.errors import Diverged, Interrupted, need
from shared_tfm.tasks import prepare
from shared_tfm.train import adapt, donor, frozen, hosts, prune, runs
from shared_tfm.train import mesh as meshes
from shared_tfm.train import step as steps
from shared_tfm.train.checkpoint import Checkpoints
from shared_tfm.train.log import Log, Unwritten
from shared_tfm.train.programs import evaluate, programs
from shared_tfm.train.state import State
from shared_tfm.train.visits import mean_cosines
from shared_tfm.train.watch import Meter, due, interruption, progress


def train(
  config: Config,
  workdir: str | Path,
  dataset: Dataset | None = None,
  bar: tqdm.tqdm | None = None,
) -> dict[str, Any]:
  """Trains, evaluates and saves; continues where the folder left off.

  Args:
    config: as `config.cross` returns it.
    workdir: the run's folder, made if need be.
    dataset: the prepared data, where several runs share it.
    bar: a progress bar to advance by one per step, where several runs share it.

  Returns:
    The run's result, also in result.json; of several processes that of the
    first. Losses are in nats per token.

  Raises:
    BadInput: the folder is another config's, the data cannot be used, or the
      weights to start from do not fit.
    Interrupted: a signal ended the run; it was saved and can be resumed.
    OSError: something could not be written; it names what.
    Diverged: `train.max_skipped` micro-batches in a row were dropped; the
      newest checkpoint is one from before.
  """
  with contextlib.ExitStack() as held:  # files, and the folder's lock
    return _train(config, Path(workdir), dataset, bar, held)


def _train(
  config: Config,
  workdir: Path,
  dataset: Dataset | None,
  bar: tqdm.tqdm | None,
  held: contextlib.ExitStack,
) -> dict[str, Any]:
  t = config.train
  steps.check(config)

  # The data comes first: a run that has none leaves no folder behind.
  if not runs.check(workdir, config):
    donor.check(config)
  need(
    config.adapt.method == 'none' or not hosts.several(),
    f'adapt.method {config.adapt.method} changes tables in one process, and'
    ' here are several',
  )
  need(
    config.prune.method == 'none' or not hosts.several(),
    f'prune.method {config.prune.method} makes masks in one process, and here'
    ' are several',
  )
  share = meshes.share(meshes.make(config))
  dataset = dataset or hosts.in_turn(lambda: prepare(config, workdir, *share))
  data = dataset.train(t.seed)
  claim = runs.claimed(workdir, config)
  hosts.together(
    lambda: held.enter_context(claim) if hosts.is_first() else None
  )

  # Programs, and a state. The order is important: the newest good checkpoint
  # is taken where there is one, and only else a fresh state.
  compiled = programs(config)
  adapter = adapt.Adapter(config, compiled)
  pruner = prune.Pruner(config, compiled)
  step_program = compiled.train  # compiled here, not on the meter's clock
  checkpoints = Checkpoints(workdir / runs.CHECKPOINTS, t.keep)
  held.callback(checkpoints.close)
  restored = checkpoints.restore(compiled.shapes)
  if restored:
    start, state, position = restored
    if position['data']:  # none: made by a conversion, see compress/begin.py
      data.set_state(position['data'])
    tokens, unread = position['tokens'], position['unread']
    adapter.set_state(position['adapt'])
  else:
    start, state = 0, compiled.init(jnp.uint32(t.seed))
    tokens, unread = 0, []
    if t.init_from:
      state, taken = donor.start(config, state)

  # What is written down, and what is shown.
  log = Log(workdir, start) if hosts.is_first() else Unwritten()
  held.enter_context(contextlib.closing(log))
  if not restored and t.init_from:
    log.write('start', 0, taken)
  if not start and (tables := adapt.history(state)):
    log.write('table', 0, {'tables': tables})
  counts = runs.counts(config)
  own = bar is None
  bar = progress(t.num_steps) if bar is None else bar
  held.push(lambda error, *_: bar.close() if own or error else None)
  bar.update(start)
  meter = Meter(tokens, unread)
  measured = scored = None
  ending = diverged = owed = False  # owed: a checkpoint
  saved = start

  # The steps. Losses stay on the device until it is time to log.
  with interruption() as stop, jax.transfer_guard('disallow'):
    step = start
    for step in range(start + 1, t.num_steps + 1):
      checkpoints.check()
      read = next(data)
      batch = compiled.put_share(read)
      if pruner.due(step - 1):
        with meter.paused():
          state = jax.device_put(pruner.apply(state, batch), compiled.where)
      state, metrics = step_program(state, batch)
      meter.add(metrics)
      bar.update(1)
      measured = scored = None

      if due(step, t.log_every, t.num_steps):
        shown = meter.read()
        log.write('train', step, shown)
        bar.set_postfix_str(
          f'loss {shown["loss"]:.3f}, {shown["tokens_per_second"]:,.0f} tok/s',
          refresh=False,
        )

      if due(step, t.visit_gradients_every, t.num_steps):
        with meter.paused():
          cosines = jax.device_get(compiled.cosines(state, batch))
        means = mean_cosines(cosines)
        shown = {f'cosine.{name}': mean for name, mean in means.items()}
        log.write('visit_gradients', step, shown)

      if adapter.due(step):
        with meter.paused():
          state, changed = adapter.apply(state, batch, metrics)
          state = jax.device_put(state, compiled.where)
        if changed:
          log.write('table', step, {'tables': adapt.history(state)})

      if due(step, t.eval_every, t.num_steps):
        with meter.paused():
          measured = evaluate(compiled, state, dataset, t.eval_batches)
        shown = {**measured, **counts, 'tokens': meter.total()}
        log.write('validation', step, shown)

      if due(step, t.score_every, t.num_steps):
        with meter.paused(), jax.transfer_guard('allow'):
          scored = compiled.score(state, dataset, 'validation')
        log.write('score', step, {**scored, 'tokens': meter.total()})

      ending = hosts.ending(step, stop)  # once: what ends the loop is saved
      owed |= due(step, t.checkpoint_every, t.num_steps)
      if owed or ending:
        with meter.paused():
          # The best is one of those that are pruned as they are to be.
          loss = measured['loss'] if measured and pruner.done(state) else None
          position = {
            'data': data.get_state(),
            'tokens': meter.total(),
            'unread': meter.unread(),
            'adapt': adapter.get_state(),
          }
          # A step that was dropped whole would push out the one that a run that
          # diverges goes on from, and has nothing new; its checkpoint waits.
          whole = meter.streak >= t.accumulate
          last = ending or step == t.num_steps
          if not meter.diverged(t.max_skipped) and (last or not whole):
            checkpoints.save(step, state, position, loss)
            saved, owed = step, False

      diverged = meter.diverged(t.max_skipped)
      if ending or diverged:
        break

    checkpoints.close()  # no signal cuts the last save either

  # The end, or an early one.
  log.close()
  cut = ending and step < t.num_steps
  if cut or own:
    bar.close()  # what is said next gets a line of its own
  if diverged:
    raise Diverged(meter.longest, step, saved)
  if cut:
    raise Interrupted(
      stop[0] if stop else signal.SIGTERM,
      f'after step {step}; saved, and the same command continues',
    )
  if measured is None:
    measured = evaluate(compiled, state, dataset, t.eval_batches)
  if scored is None:
    scored = compiled.score(state, dataset, 'validation')
  measured |= scored
  if not hosts.is_first():
    return {}
  return runs.conclude(
    workdir,
    config,
    {
      **{f'validation_{name}': value for name, value in measured.items()},
      **compiled.task.baseline(dataset),
      'peak_memory_bytes': compiled.peak_bytes,
      'device': meshes.described(compiled.mesh),
      'skipped': int(state.skipped),
      **frozen.concluded(config, state),
      **prune.concluded(config, state),
    },
  )


def load(workdir: str | Path, which: str = 'best') -> tuple[Config, State]:
  """The config and a state of a run.

  Args:
    workdir: the run's folder.
    which: 'best', by validation loss, or 'latest'.

  Raises:
    BadInput: the folder is no run, or has no checkpoint that can be used.
  """
  workdir = Path(workdir)
  config = meshes.that_fits(runs.read_config(workdir))
  checkpoints = Checkpoints(workdir / runs.CHECKPOINTS)
  state = checkpoints.load(which, programs(config).shapes)
  checkpoints.close()
  return config, state
