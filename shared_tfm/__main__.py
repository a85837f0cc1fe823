"""The verbs of `python -m shared_tfm`: flags in, one call out."""

import argparse
import dataclasses
import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from shared_tfm import compile_cache, config_file
from shared_tfm import config as configs
from shared_tfm.compress import command
from shared_tfm.config import parallel
from shared_tfm.config.choices import CACHES
from shared_tfm.errors import BadInput, Diverged, Interrupted, need

# What a disk may refuse, without saying in which file.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class Parser(argparse.ArgumentParser):
  """Says in one line what is wrong with the flags."""

  def error(self, message: str) -> NoReturn:
    """Raises BadInput instead of printing a page."""
    raise BadInput(f'{message} (see {self.prog} --help)')


def parser() -> Parser:
  """The flags of every verb."""
  top = Parser(prog='shared_tfm', description=__doc__)
  verbs = top.add_subparsers(dest='verb', required=True, metavar='VERB')

  def verb(function: Callable[..., None]) -> Parser:
    name, text = function.__name__, (function.__doc__ or '').split('\n')[0]
    made = verbs.add_parser(name, help=text, description=text)
    made.allow_abbrev = False
    made.set_defaults(run=function)
    return made

  described = verb(describe)
  trained, compared, timed = verb(train), verb(compare), verb(bench)
  for made in (described, trained, compared, timed):
    made.add_argument(
      '--config', required=made is not trained, help='a file in configs/'
    )
  described.add_argument('--json', action='store_true')
  described.add_argument(
    '--mesh', help='plan a training step on devices: data:16,fsdp:16'
  )
  described.add_argument(
    '--profile', help='of such a device: h100, tpu_v5p, ..., or FILE.json'
  )
  trained.add_argument(
    '--distributed', action='store_true', help='let JAX find the processes'
  )
  trained.add_argument('--coordinator', default='', metavar='HOST:PORT')
  trained.add_argument('--num_processes', type=int, default=0)
  trained.add_argument('--process_id', type=int, default=-1)
  evaluated, generated = verb(evaluate), verb(generate)
  for made in (trained, compared, evaluated, generated):
    made.add_argument('--workdir', required=True, type=Path)
  for made in (evaluated, generated):
    made.add_argument(
      '--checkpoint', choices=('best', 'latest'), default='best'
    )
    made.add_argument(
      '--loops', type=int, help='run the core more or fewer times than trained'
    )
    made.add_argument(
      '--exit',
      metavar='CRITERION:THRESHOLD',
      help='when a token leaves the loop: kl:0.01, entropy:0.3, ..., none:0',
    )
  compared.add_argument(
    '--sharing',
    required=True,
    help="schemes with ';' between them: 'none;cycle:3;attention=all'",
  )
  compared.add_argument('--seeds', type=int, default=1)
  tabled = verb(table)
  tabled.add_argument('name', nargs='?', metavar='NAME')
  tabled.add_argument('--list', action='store_true', help='names and titles')
  for made in (evaluated, tabled, timed):
    made.add_argument('--json', action='store_true')
  timed.add_argument('--steps', type=int, default=20, help='to time')
  timed.add_argument(
    '--trace', type=Path, metavar='FOLDER', help='where to write a profile'
  )
  evaluated.add_argument('--split', default='validation')
  evaluated.add_argument(
    '--predictions', type=Path, metavar='FOLDER', help='where to write them'
  )
  generated.add_argument(
    '--prompt', required=True, action='append', help='may be given repeatedly'
  )
  generated.add_argument('--tokens', type=int, default=64, help='at most')
  generated.add_argument('--temperature', type=float, default=0.0)
  generated.add_argument('--top_k', type=int, default=0)
  generated.add_argument('--top_p', type=float, default=1.0)
  generated.add_argument('--repetition_penalty', type=float, default=1.0)
  generated.add_argument('--seed', type=int, default=0)
  generated.add_argument(
    '--stop', action='append', default=[], help='text to end before'
  )
  generated.add_argument(
    '--beam', type=int, default=0, help='hypotheses of beam search'
  )
  generated.add_argument(
    '--cache', choices=CACHES, default='visit', help='what is kept apart'
  )
  built = verb(prepare)
  built.add_argument('name', metavar='NAME', help='such as mnist or glue/mrpc')
  built.add_argument('--path', default='', help="TFDS's data_dir")
  built.add_argument('--manual_dir', default='', help='files not to download')
  built.add_argument(
    '--trust', action='store_true', help='whatever their checksums are'
  )
  command.add_flags(verb(command.convert), verb(command.export))
  return top


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
  from shared_tfm.report import compare

  config = config_file.load(args.config, overrides)
  schemes = [scheme for scheme in args.sharing.split(';') if scheme.strip()]
  compare.compare(config, schemes, args.seeds, args.workdir)
  print((args.workdir / 'summary.md').read_text())
  print(f'report: {args.workdir / "report.html"}')


def bench(args: Any, overrides: Sequence[str]) -> None:
  """Time a config's training step on this machine; no data is needed."""
  from shared_tfm.report import speed
  from shared_tfm.train import bench

  config = config_file.load(args.config, overrides)
  measured = bench.bench(config, args.steps, args.trace)
  if args.json:
    print(json.dumps(dataclasses.asdict(measured)))
  else:
    print(speed.render(measured))


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


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a verb; returns the exit status.

  0: done. 2: bad input, said in one line. 3: diverged, the last good checkpoint
  kept. 128 + n: ended by signal n, saved.
  """
  logging.basicConfig(format='%(message)s', level=logging.WARNING)
  logging.getLogger('absl').setLevel(logging.CRITICAL)  # what fails is raised
  try:
    args, overrides = parser().parse_known_args(argv)
    compile_cache.turn_on(os.environ)
    args.run(args, overrides)
    sys.stdout.flush()
  except BadInput as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except Diverged as error:
    print(f'diverged: {error}', file=sys.stderr)
    return 3
  except Interrupted as error:
    print(f'interrupted: {error}', file=sys.stderr)
    return 128 + error.signal
  except BrokenPipeError:  # whoever read our output has had enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except OSError as error:
    if error.filename is None and error.errno not in DISK:
      raise
    place = '' if error.filename is None else f'{error.filename}: '
    print(f'error: {place}{error.strerror}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main())
