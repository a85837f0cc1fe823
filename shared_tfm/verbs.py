"""What each verb of `python -m shared_tfm` does: flags in, one call out."""

import dataclasses
import json
from collections.abc import Sequence
from importlib import util
from typing import Any

from shared_tfm import config as configs
from shared_tfm import config_file
from shared_tfm.config import parallel
from shared_tfm.errors import need


def describe(args: Any, overrides: Sequence[str]) -> None:
  """Owner tables, parameters, FLOPs and bytes of a config."""
  from shared_tfm import accounting
  from shared_tfm.report import overview

  cuts = parallel.overrides(args.mesh, args.profile)
  config = config_file.load(args.config, [*overrides, *cuts])
  described, text = accounting.describe(config), ''
  if cuts:
    from shared_tfm.report import planned

    described['plan'], text = planned.make(config, args.profile)
  if args.json:
    print(json.dumps(described))
  else:
    print(overview.render(config, described) + text)


def train(args: Any, overrides: Sequence[str]) -> None:
  """Train, evaluate and checkpoint a config; resume in the same folder."""
  from shared_tfm.report import history
  from shared_tfm.train import hosts, loop, runs

  config = (
    config_file.load(args.config, overrides)
    if args.config
    else config_file.changed(runs.begun(args.workdir), overrides)
  )
  hosts.connect(
    args.distributed, args.coordinator, args.num_processes, args.process_id
  )
  result = loop.train(config, args.workdir)
  if hosts.is_first():
    history.draw(args.workdir)
    print(json.dumps(result, indent=2))


def compare(args: Any, overrides: Sequence[str]) -> None:
  """Train a config under several sharing schemes and seeds, and report."""
  from shared_tfm.report import compare, sweep, sweep_file

  settings = {
    name: getattr(args, name)
    for name in sweep_file.SETTINGS
    if getattr(args, name) is not None
  }
  if args.config:
    need(args.sweep is None, 'a sweep file says its own config, got --config')
    need(args.sharing is not None, '--config needs --sharing beside it')
    schemes = [scheme for scheme in args.sharing.split(';') if scheme.strip()]
    begun = sweep.of(config_file.read(args.config), schemes)
  else:
    need(args.sharing is None, '--sharing needs --config beside it')
    begun = (
      sweep_file.load(args.sweep)
      if args.sweep
      else sweep_file.begun(args.workdir)
    )
  asked = sweep.changed(begun, overrides, **settings)
  compare.run(asked, args.workdir, args.processes)
  print((args.workdir / 'summary.md').read_text())
  print(f'report: {args.workdir / "report.html"}')


def bench(args: Any, overrides: Sequence[str]) -> None:
  """Time a config's training step, or how it generates; no data is needed."""
  from shared_tfm.infer import latency
  from shared_tfm.report import speed
  from shared_tfm.train import bench

  config = config_file.load(args.config, overrides)
  if args.generate:
    need(not args.trace, '--trace is of training steps, not of --generate')
    sizes = args.batch, args.prompt_tokens, args.tokens, args.steps
    found = latency.measure(config, *sizes)
    told, text = dataclasses.asdict(found), speed.generation(found)
  else:
    measured = bench.bench(config, args.steps, args.trace)
    told, text = dataclasses.asdict(measured), speed.render(measured)
  print(json.dumps(told) if args.json else text)


def table(args: Any, overrides: Sequence[str]) -> None:
  """A paper's table: its numbers beside ours."""
  from shared_tfm.report import published
  from shared_tfm.report.published import render

  need(not overrides, f'table takes a NAME, got {" ".join(overrides)} too')
  need(args.list != bool(args.name), 'table takes a NAME or --list')
  if args.list:
    titles = published.titles()
    print(json.dumps(titles) if args.json else render.listing(titles))
  else:
    made = published.make(args.name)
    print(json.dumps(made.as_json()) if args.json else render.text(made))


def evaluate(args: Any, overrides: Sequence[str]) -> None:
  """Score a trained run on the whole of a split."""
  from shared_tfm.tasks import prepare
  from shared_tfm.train import log, loop, programs

  _no(overrides)
  config, state = loop.load(args.workdir, args.checkpoint)
  config = _at_depth(config, args)
  dataset = prepare(config, args.workdir)
  compiled = programs.programs(config)
  need(
    compiled.task.predicts or not args.predictions,
    '--predictions: this task writes none',
  )
  scores = programs.evaluate(compiled, state, dataset, 0, args.split)
  variables = {'params': state.params, **state.variables}
  if args.predictions:
    args.predictions.mkdir(parents=True, exist_ok=True)
  scores |= compiled.task.score(
    variables, dataset, args.split, args.predictions
  )
  if args.json:
    print(json.dumps(log.finite(scores)))
    return
  for name, value in scores.items():
    shown = value if isinstance(value, str) else f'{value:.4f}'
    print(f'{name:<16}{shown}')


def analyse(args: Any, overrides: Sequence[str]) -> None:
  """Look into a trained run: similarity of layers, gradients, lens, ranks."""
  from shared_tfm.report import analysis
  from shared_tfm.tasks import prepare
  from shared_tfm.train import loop

  _no(overrides)
  names = analysis.asked(args.what)
  config, state = loop.load(args.workdir, args.checkpoint)
  config = _at_depth(config, args)
  dataset = prepare(config, args.workdir)
  reader = analysis.Reader(
    args.workdir, config, state, dataset, args.split, args.batches
  )
  found = analysis.analyse(reader, names)
  folder = args.out or args.workdir / 'analysis'
  paths = analysis.write(found, folder)
  if args.json:
    print(analysis.as_json(found))
    return
  print(f'{analysis.tell(found)}\n')
  print(f'{folder}: {", ".join(path.name for path in paths)}')


def generate(args: Any, overrides: Sequence[str]) -> None:
  """Continue a prompt with a trained run, or translate it."""
  from shared_tfm.infer import terminal
  from shared_tfm.infer.choice import Sampling
  from shared_tfm.tasks import make, prepare
  from shared_tfm.train import loop

  _no(overrides)
  config, state = loop.load(args.workdir, args.checkpoint)
  config = _at_depth(config, args)
  tokenizer = prepare(config, args.workdir).tokenizer
  terminal.write(
    config,
    {'params': state.params, **state.variables},
    tokenizer,
    args.prompt,
    [make(config).prompt(prompt, tokenizer) for prompt in args.prompt],
    args.tokens,
    Sampling(
      args.temperature,
      args.top_k,
      args.top_p,
      args.repetition_penalty,
      args.seed,
    ),
    args.stop,
    args.beam,
    args.cache,
  )


def serve(args: Any, overrides: Sequence[str]) -> None:
  """Answer OpenAI's completions over HTTP with a trained run."""
  missing = [
    name for name in ('starlette', 'uvicorn') if not util.find_spec(name)
  ]
  need(
    not missing,
    f'serve needs {" and ".join(missing)}, the extra serve: ./setup.sh serve',
  )
  from shared_tfm.serve import server
  from shared_tfm.tasks import make, prepare
  from shared_tfm.train import loop

  _no(overrides)
  at = server.bound(args.host, args.port)
  config, state = loop.load(args.workdir, args.checkpoint)
  config = _at_depth(config, args)
  tokenizer = prepare(config, args.workdir).tokenizer
  task = make(config)
  made = server.prepared(
    config,
    {'params': state.params, **state.variables},
    tokenizer,
    lambda text: task.prompt(text, tokenizer),
    args.workdir.resolve().name,
    at,
    args.rows,
    args.queue,
    args.max_tokens,
    args.grace,
    args.cache,
  )
  server.serve(made, at)


def prepare(args: Any, overrides: Sequence[str]) -> None:
  """Build a dataset of TFDS, once, for configs with data.source tfds:NAME."""
  from shared_tfm.data.sources import builders

  need(not overrides, f'prepare takes a NAME, got {" ".join(overrides)} too')
  print(builders.prepare(args.name, args.path, args.manual_dir, args.trust))


def _at_depth(config: configs.Config, args: Any) -> configs.Config:
  """The config as --loops and --exit would have it."""
  if args.loops is not None:
    config = configs.with_loops(config, args.loops)
  if args.exit is not None:
    config = configs.with_exit(config, args.exit)
  return config


def _no(overrides: Sequence[str]) -> None:
  need(
    not overrides,
    f'a run has its config; {" ".join(overrides)} cannot change it',
  )
