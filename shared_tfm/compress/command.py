"""The flags of the verb `convert`, and what it does."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of `convert`; kept light, for every verb reads them."""
  add = parser.add_argument
  add('--from', dest='source', required=True, metavar='DIR', help='of a run')
  add('--workdir', required=True, type=Path, help='of the run that is made')
  add('--checkpoint', choices=('best', 'latest'), default='best')
  add('--sharing', default='', help='its scheme, as in compare; none: unrolled')
  add(
    '--init',
    default='average',
    help='of rows: average, stepwise, lower, upper, svd or random',
  )
  add('--products', default='svd', help='of low rank: svd, or zero')
  add('--seed', type=int, default=0, help='of what is drawn')
  add('--tune', action='store_true', help='measure, train, measure again')


def convert(args: argparse.Namespace, overrides: Sequence[str]) -> None:
  """Makes a run of weights that exist, and prints what is known of it."""
  from shared_tfm.compress import heir

  asked = heir.Asked(
    args.source, args.checkpoint, args.init, args.products, args.seed
  )
  known = heir.make(asked, args.workdir, args.sharing, overrides, args.tune)
  print(heir.text(known), end='')
