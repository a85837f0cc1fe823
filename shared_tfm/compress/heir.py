"""A run that is made of another network's weights, and what that costs."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from shared_tfm import files, tasks
from shared_tfm.compress import (
  begin,
  convert,
  moments,
  pruning,
  sources,
  target,
)
from shared_tfm.compress.calibrate import calibrated
from shared_tfm.config import Config, Prune
from shared_tfm.data import tokenizers
from shared_tfm.errors import BadInput, need, unknown
from shared_tfm.layers.ranges import RANGES
from shared_tfm.train import hosts, loop, prune, runs, step
from shared_tfm.train.programs import evaluate, programs
from shared_tfm.train.state import State

MARKDOWN = 'conversion.md'


@dataclasses.dataclass(frozen=True)
class Asked:
  """What a conversion is asked for; see `convert.convert`.

  With `optimizer_state`, the optimizer's moments come along; see moments.py.
  What `prune` and `score` take away is gone first; see pruning.py.
  `calibrate` is how many batches the ranges of activations are taken from; 0:
  they are where the weights are from.
  """

  source: str
  checkpoint: str = 'best'
  init: str = 'average'
  products: str = 'svd'
  seed: int = 0
  optimizer_state: bool = False
  prune: str = ''
  score: str = ''
  calibrate: int = 0


def make(
  asked: Asked,
  workdir: Path,
  sharing: str = '',
  overrides: Sequence[str] = (),
  tune: bool = False,
) -> dict[str, Any]:
  """Makes the run's folder, and with `tune` trains it.

  Args:
    asked: the weights, and how they are fitted.
    workdir: new or empty; with `tune` it may be one that the same call began,
      which goes on.
    sharing: the scheme, as `configs.with_sharing` takes it; '': as it is, but
      for the overrides.
    overrides: of the config that the weights come with, as on a command line.
    tune: whether to measure the loss before and after, train, and measure.

  Returns:
    What is known, also in conversion.json; 'loss' of the 'donor', 'converted'
    and 'tuned' in nats per token, on the same batches.

  Raises:
    BadInput: a folder or a field that is none, or weights that do not fit.
    OSError: something could not be written.
  """
  if asked.init not in convert.STARTS:
    raise unknown('--init', asked.init, convert.STARTS)
  need(not hosts.several(), 'a conversion is made by one process')
  smaller, told = _smaller(asked)
  base = smaller.config if smaller else sources.config(Path(asked.source))
  config = target.config_of(
    pruning.masks(base, asked.prune), sharing, overrides
  )
  if tune:
    step.check(config)
  known = _begun(workdir, asked, config) if tune else None
  if known is None:
    begin.check(workdir)
    known = _made(asked, workdir, config, tune, smaller, told)
  if tune:
    known = _tuned(workdir, config, known)
  files.replace(workdir / MARKDOWN, text(known))
  return known


def _smaller(asked: Asked) -> tuple[sources.Source | None, dict[str, Any]]:
  """The network that is converted, where something is taken out of it."""
  kind = pruning.parse(asked.prune)[0] if asked.prune else ''
  need(
    not asked.score or kind in pruning.SCORES,
    f'--score is for --prune of {", ".join(pruning.SCORES)}, got'
    f' {asked.score!r} and {asked.prune!r}',
  )
  if kind not in pruning.SCORES:
    return None, {}
  source = sources.load(Path(asked.source), asked.checkpoint)
  return pruning.smaller(source, asked.prune, asked.score)


def _begun(
  workdir: Path, asked: Asked, config: Config
) -> dict[str, Any] | None:
  """What is known of the same conversion, where it was begun already."""
  path = workdir / begin.REPORT
  if not path.exists():
    return None
  try:
    known = json.loads(path.read_text())
    there, measured = known['asked'], 'donor' in known['losses']
  except (ValueError, TypeError, KeyError) as error:
    raise BadInput(f'{path} is not what was written: {error!r}') from None
  need(
    there == dataclasses.asdict(asked) and measured,
    f'workdir {workdir} has another conversion, {there}',
  )
  runs.check(workdir, config)
  return dict(known)


def _made(
  asked: Asked,
  workdir: Path,
  config: Config,
  tune: bool,
  smaller: sources.Source | None,
  told: dict[str, Any],
) -> dict[str, Any]:
  """Converts, and makes the folder."""
  given = sources.load(Path(asked.source), asked.checkpoint)
  source = smaller or given
  convert.check(source.config.model, config.model)
  need(
    not asked.optimizer_state
    or (source.opt_state is not None and asked.init != convert.RANDOM),
    f'--optimizer_state needs that of a run and rows that are not random, got'
    f' {source.folder} and --init={asked.init}',
  )

  _check_calibrating(asked, source, config)

  def made(folder: Path) -> tuple[State, dict[str, Any]]:
    tokenizers.take_over(source.folder, folder)
    losses = {}
    reads = tune or asked.calibrate
    dataset = tasks.prepare(config, folder) if reads else None

    def measure(name: str, config: Config, state: State) -> None:
      batches = config.train.eval_batches
      if dataset and tune:
        found = evaluate(programs(config), state, dataset, batches)
        losses[name] = found['loss']

    if tune:
      donor = dataclasses.replace(
        config, model=given.config.model, prune=Prune()
      )
      state = begin.state_of(donor, given.params, given.variables)
      measure('donor', donor, state)
    fresh = programs(config).init(jnp.uint32(config.train.seed)).params
    fitted = convert.convert(
      source.config.model,
      source.params,
      source.variables,
      config.model,
      fresh,
      asked.init,
      asked.products,
      asked.seed,
    )
    state = begin.state_of(config, fitted.params, source.variables)
    if asked.optimizer_state:
      state = state.replace(opt_state=_moments(source, config, state.opt_state))
    if config.prune.method != 'none' and asked.prune:
      state = prune.cut(config, state, config.prune.sparsity)
      told.update(prune.concluded(config, state))
    if dataset and asked.calibrate:
      state = calibrated(config, state, dataset, asked.calibrate)
    measure('converted', config, state)
    return state, {
      'asked': dataclasses.asdict(asked),
      'donor_step': source.step,
      'donor': convert.counted(given.config),
      'converted': convert.counted(config),
      'exact': fitted.exact,
      'largest_weight_difference': fitted.largest,
      'relative_errors': fitted.errors,
      'losses': losses,
      'pruned': told,
    }

  return begin.begin(workdir, config, made)


def _check_calibrating(
  asked: Asked, source: sources.Source, config: Config
) -> None:
  """Ranges are taken where activations are rounded, or come along."""
  rounds = config.model.quantise.activations != 'none'
  need(
    asked.calibrate >= 0,
    f'--calibrate must be at least 0, got {asked.calibrate}',
  )
  need(
    rounds or not asked.calibrate,
    f'--calibrate {asked.calibrate} is for --activations=int8, got none',
  )
  need(
    bool(asked.calibrate) or not rounds or RANGES in source.variables,
    f'--activations=int8 needs --calibrate=BATCHES, for {source.folder} has no'
    ' ranges of activations',
  )


def _moments(source: sources.Source, config: Config, fresh: Any) -> Any:
  """The optimizer's state that comes along, where it belongs."""
  made = moments.carried(
    source.config, source.params, source.opt_state, config, fresh
  )
  return jax.device_put(made, programs(config).where.opt_state)


def _tuned(
  workdir: Path, config: Config, known: Mapping[str, Any]
) -> dict[str, Any]:
  """Trains the run, and adds what came of it."""
  result = loop.train(config, workdir)
  losses = {**known['losses'], 'tuned': result['validation_loss']}
  known = {**known, 'losses': losses, 'steps': result['steps']}
  known['tokens'] = result['tokens']
  begin.report(workdir, known)
  return known


def text(known: Mapping[str, Any]) -> str:
  """What is known, to be read: a table in Markdown."""
  rows = [('', 'stored', 'applied', 'FLOPs/token', 'loss')]
  for name in ('donor', 'converted', 'tuned'):
    sizes = known['donor' if name == 'donor' else 'converted']
    loss = known['losses'].get(name)
    if name != 'tuned' or 'steps' in known:
      rows.append(
        (
          name,
          f'{sizes["stored_params"]:,}',
          f'{sizes["applied_params"]:,}',
          f'{sizes["flops_per_token"]:,}',
          '-' if loss is None else f'{loss:.4f}',
        )
      )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '| ' + ' | '.join(map(str.rjust, row, widths)) + ' |' for row in rows
  ]
  lines.insert(1, '|' + '|'.join('-' * (w + 1) + ':' for w in widths) + '|')
  said = 'every visit has the weights it had'
  if not known['exact']:
    errors = ', '.join(
      f'{name} {error:.3g}' for name, error in known['relative_errors'].items()
    )
    said = (
      f'weights are off by at most {known["largest_weight_difference"]:.3g};'
      f' relative errors: {errors}'
    )
  if known['pruned']:
    told = ', '.join(
      f'{name} {value:.4g}' if isinstance(value, float) else f'{name} {value}'
      for name, value in known['pruned'].items()
      if name != 'scores'
    )
    said = f'without {known["asked"]["prune"]} ({told}); of what is left {said}'
  if 'steps' in known:
    said += f'; tuned for {known["steps"]:,} steps, {known["tokens"]:,} tokens'
  return '\n'.join([*lines, '', said, ''])
