"""The command line of `python -m shared_tfm`: flags, and how it ends."""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from shared_tfm import compile_cache, verbs
from shared_tfm.compress import command
from shared_tfm.config.choices import CACHES
from shared_tfm.errors import BadInput, Diverged, Interrupted

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
  every = top.add_subparsers(dest='verb', required=True, metavar='VERB')

  def verb(function: Callable[..., None], computes: bool = True) -> Parser:
    name, text = function.__name__, (function.__doc__ or '').split('\n')[0]
    made = every.add_parser(name, help=text, description=text)
    made.allow_abbrev = False
    made.set_defaults(run=function, computes=computes)
    return made

  described = verb(verbs.describe, computes=False)
  trained, compared, timed = (
    verb(verbs.train),
    verb(verbs.compare),
    verb(verbs.bench),
  )
  for made in (described, trained, compared, timed):
    made.add_argument(
      '--config',
      required=made in (described, timed),
      help='a file in configs/',
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
  evaluated, generated = verb(verbs.evaluate), verb(verbs.generate)
  analysed, served = verb(verbs.analyse), verb(verbs.serve)
  for made in (trained, compared, evaluated, analysed, generated, served):
    made.add_argument('--workdir', required=True, type=Path)
  for made in (evaluated, analysed, generated, served):
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
    '--sharing', help="schemes with ';' between them: 'none;cycle:3;norm=all'"
  )
  compared.add_argument(
    '--sweep', metavar='FILE', help='TOML that says config, rows and the rest'
  )
  compared.add_argument('--seeds', type=int, help='of each scheme; 1')
  compared.add_argument(
    '--equal', help='steps, params, flops or time: what is solved for'
  )
  compared.add_argument('--adjust', help='width or depth, for equal parameters')
  compared.add_argument(
    '--tune', type=_factors, help='of each learning rate: 0.5,1,2'
  )
  compared.add_argument(
    '--tune_steps', type=int, help='of train.num_steps, of a run that tunes'
  )
  compared.add_argument(
    '--processes', type=int, default=1, help='runs under way at a time'
  )
  tabled = verb(verbs.table, computes=False)
  tabled.add_argument('name', nargs='?', metavar='NAME')
  tabled.add_argument('--list', action='store_true', help='names and titles')
  for made in (evaluated, analysed, tabled, timed):
    made.add_argument('--json', action='store_true')
  timed.add_argument('--steps', type=int, default=20, help='to time')
  timed.add_argument(
    '--trace', type=Path, metavar='FOLDER', help='where to write a profile'
  )
  timed.add_argument(
    '--generate', action='store_true', help='time that, and not training'
  )
  timed.add_argument('--batch', type=int, default=1, help='texts at a time')
  timed.add_argument('--prompt_tokens', type=int, default=32)
  timed.add_argument('--tokens', type=int, default=32, help='to add to each')
  for made in (evaluated, analysed):
    made.add_argument('--split', default='validation')
  evaluated.add_argument(
    '--predictions', type=Path, metavar='FOLDER', help='where to write them'
  )
  analysed.add_argument(
    '--what',
    default='all',
    metavar='NAMES',
    help='some of cka,distance,gradients,depth,lens,rank',
  )
  analysed.add_argument(
    '--batches', type=int, default=4, help='to read; 0: the whole split'
  )
  analysed.add_argument(
    '--out', type=Path, metavar='DIR', help="default: the run's analysis/"
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
  for made in (generated, served):
    made.add_argument(
      '--cache', choices=CACHES, default='visit', help='what is kept apart'
    )
  served.add_argument(
    '--host', default='127.0.0.1', help='0.0.0.0: whoever can reach it may ask'
  )
  served.add_argument('--port', type=int, default=8000, help='0: a free one')
  served.add_argument('--rows', type=int, default=8, help='texts at a time')
  served.add_argument(
    '--queue', type=int, default=64, help='texts that may wait for a row'
  )
  served.add_argument(
    '--max_tokens', type=int, default=0, help='to add to a text, at most'
  )
  served.add_argument(
    '--grace', type=float, default=30, help='seconds to finish texts in'
  )
  built = verb(verbs.prepare, computes=False)
  built.add_argument('name', metavar='NAME', help='such as mnist or glue/mrpc')
  built.add_argument('--path', default='', help="TFDS's data_dir")
  built.add_argument('--manual_dir', default='', help='files not to download')
  built.add_argument(
    '--trust', action='store_true', help='whatever their checksums are'
  )
  command.add_flags(verb(command.convert), verb(command.export))
  return top


def _factors(text: str) -> list[float]:
  return [*map(float, text.split(','))]


_factors.__name__ = 'list of numbers'  # what argparse says that it needs


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
    if args.computes:
      from shared_tfm import heap  # and JAX, for which the others do not wait

      heap.keep()
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
