"""What a config is, as text for a terminal."""

from typing import Any

from shared_tfm import accounting
from shared_tfm.config import Config, Model, loops, shapes, sides
from shared_tfm.sharing import drawing

TITLES = {'encoder': 'encoder', 'stack': 'decoder'}  # where there are two


def render(config: Config, described: dict[str, Any]) -> str:
  """Draws the owner tables and lists the counts.

  Args:
    config: the config.
    described: what `accounting.describe` says of it.
  """
  owners = '\n\n'.join(drawings(config.model))
  params, flops = described['params'], described['flops_per_token']
  rows = {
    **_depth(config.model),
    'stored parameters': f'{params["stored"]:,}',
    **_pruned(config, params),
    'applied parameters': f'{params["applied"]:,}',
    'embedding / non-embedding': (
      f'{params["embedding"]:,} / {params["non_embedding"]:,}'
    ),
    'sharing ratio (layers)': f'{described["sharing_ratio"]:.3g}',
    'FLOPs per token, forward': f'{flops["forward"]:,}',
    'FLOPs per token, training': f'{flops["train"]:,}',
    'KV cache bytes per token': f'{described["kv_bytes_per_token"]:,}',
    'weight bytes': f'{described["weight_bytes"]:,}',
  }
  width = max(map(len, rows))
  counts = '\n'.join(f'{name:<{width}}  {text}' for name, text in rows.items())
  return f'{owners}\n\n{counts}'


def _pruned(config: Config, params: dict[str, int]) -> dict[str, str]:
  """How many parameters are not zero, where some will be masked."""
  if 'non_zero' not in params:
    return {}
  p = config.prune
  share = f'sparsity {p.sparsity:g} by {p.method}, {p.schedule}'
  return {'non-zero parameters': f'{params["non_zero"]:,} ({share})'}


def _depth(model: Model) -> dict[str, str]:
  """The rule of depth, where the tables do not say all of it."""
  stack = sides.stacks(model)['stack']
  if loops.is_plain(stack) and stack.depth.attention == 'loop':
    return {}
  p, c, times, k = loops.loops(stack)
  ends = [f'{n} {word}' for n, word in ((p, 'before'), (k, 'after')) if n]
  core = f'{c} layer{"s" * (c > 1)} looped {times} times'
  return {'depth': f'{stack.depth.rule}: {", ".join([core, *ends])}'}


def drawings(model: Model) -> list[str]:
  """The owner tables of every stack, and those that run over two."""
  stacks = sides.sides(model)
  drawn = []
  for side, stack in stacks.items():
    joint = dict(stack.joint) if isinstance(stack, sides.Side) else {}
    given = accounting.specs(stack)
    specs = {name: spec for name, spec in given.items() if name not in joint}
    for name in accounting.SOURCES:
      if spec := getattr(stack.sharing, name):
        specs[name] = spec
    title = f'{TITLES[side]}\n' if len(stacks) > 1 else ''
    unread = {
      name: component.owners
      for name in specs
      if name not in accounting.SOURCES
      and (component := shapes.component_of(stack, name)).reads
    }
    drawn.append(title + drawing.draw(specs, stack.num_layers, unread))
  names = sides.across(model)
  if names:
    joint = dict(getattr(stacks['encoder'], 'joint', ()))
    layers = sum(stack.num_layers for stack in stacks.values())
    specs = {name: str(joint[name].spec) for name in names}
    drawn.append(f'encoder, then decoder\n{drawing.draw(specs, layers)}')
  return drawn
