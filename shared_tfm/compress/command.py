"""The flags of the verbs `convert` and `export`, and what they do."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from shared_tfm.errors import need, unknown

FORMATS = ('huggingface', 'stablehlo', 'onnx')
_FROM = "a run's folder, or config.json and safetensors of Hugging Face"


def add_flags(
  converts: argparse.ArgumentParser, exports: argparse.ArgumentParser
) -> None:
  """The flags of both; kept light, for every verb reads them."""
  for parser in (converts, exports):
    parser.add_argument(
      '--from', dest='source', required=True, metavar='DIR', help=_FROM
    )
    parser.add_argument(
      '--checkpoint', choices=('best', 'latest'), default='best'
    )
  add = exports.add_argument
  add('--to', required=True, metavar='FORMAT', help=', '.join(FORMATS))
  add('--out', required=True, type=Path, metavar='DIR', help='new or empty')
  add('--dtype', default='float32', help='huggingface: of what is stored')
  add = converts.add_argument
  add('--workdir', required=True, type=Path, help='of the run that is made')
  add('--sharing', default='', help='its scheme, as in compare; none: unrolled')
  add(
    '--init',
    default='average',
    help='of rows: average, stepwise, lower, upper, svd or random',
  )
  add('--products', default='svd', help='of low rank: svd, or zero')
  add('--seed', type=int, default=0, help='of what is drawn')
  add(
    '--prune',
    default='',
    metavar='KIND:AMOUNT',
    help='what is taken away first: magnitude:0.5, 2:4, heads:2, neurons:0.5,'
    ' visits:3',
  )
  add(
    '--score',
    default='',
    help='heads and neurons by magnitude or gradient, visits by similarity or'
    ' loss',
  )
  add('--optimizer_state', action='store_true', help='its moments come along')
  add(
    '--quantise',
    default='',
    metavar='SPEC',
    help='its weights as int8, int4, or int4:64, a scale for 64 inputs; none',
  )
  add('--activations', default='', help='int8: what linear maps read, too')
  add(
    '--calibrate',
    type=int,
    default=0,
    metavar='BATCHES',
    help='to take the ranges of activations from',
  )
  add('--tune', action='store_true', help='measure, train, measure again')


def convert(args: argparse.Namespace, overrides: Sequence[str]) -> None:
  """Give trained weights another sharing scheme, as a run of their own."""
  from shared_tfm.compress import heir

  asked = heir.Asked(
    args.source,
    args.checkpoint,
    args.init,
    args.products,
    args.seed,
    args.optimizer_state,
    args.prune,
    args.score,
    args.calibrate,
  )
  overrides = [*_rounding(args), *overrides]
  known = heir.make(asked, args.workdir, args.sharing, overrides, args.tune)
  print(heir.text(known), end='')


def _rounding(args: argparse.Namespace) -> list[str]:
  """What the flags say of bits, as fields; what is trained is no integer."""
  given = {}
  if args.quantise:
    floats = args.tune or args.quantise == 'none'
    given['weights'] = args.quantise
    given['store'] = 'float32' if floats else 'integers'
  if args.activations:
    given['activations'] = args.activations
  return [f'--config.model.quantise.{k}={v}' for k, v in given.items()]


def export(args: argparse.Namespace, overrides: Sequence[str]) -> None:
  """Write a network for Hugging Face's transformers, as StableHLO or ONNX."""
  need(not overrides, f'export changes nothing, got {" ".join(overrides)}')
  if args.to not in FORMATS:
    raise unknown('--to', args.to, FORMATS)
  from shared_tfm.compress import begin, exported, onnx_graph, sources
  from shared_tfm.compress.hugging_face import writing

  if args.dtype not in writing.DTYPES:
    raise unknown('--dtype', args.dtype, writing.DTYPES)
  begin.check(args.out)
  source = sources.load(Path(args.source), args.checkpoint)
  model = source.config, source.params, source.variables, args.out
  if args.to == 'stablehlo':
    told = exported.write(*model)
  elif args.to == 'onnx':
    told = onnx_graph.write(*model)
  else:
    told = writing.write(*model, args.dtype, source.folder)
  print(json.dumps(told, indent=2))
