# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How should six layers share their weights?
#
# This notebook trains the same small Transformer under several sharing
# schemes, on text, and compares them: a few minutes on two CPU cores. Then it
# writes text with the best one, and tries a scheme of your own. Run the cells
# in order.

# %% [markdown]
# ## Install
#
# Where `shared_tfm` is not installed, in Colab say, put here where it comes
# from: there is no public address that this notebook could name. A zip file of
# the repository, uploaded at the left, will do. Python has to be 3.11 or 3.12.
# Colab's own JAX stays where it is new enough; else pip brings one for CPUs,
# unless `EXTRA` names the accelerator. (Run in Jupyter; not tried in Colab.)

# %%
import importlib.util
import os
import subprocess
import sys

SOURCE = ''  # 'git+https://github.com/NAME/shared_tfm', or
# 'file:///content/shared_tfm.zip'
EXTRA = ''  # or '[cuda12]', '[cuda13]', '[tpu]'

if not importlib.util.find_spec('shared_tfm'):
  assert SOURCE, 'put where the project comes from into SOURCE'
  install = [sys.executable, '-m', 'pip', 'install', '--quiet']
  wanted = f'shared_tfm{EXTRA} @ {SOURCE}'
  subprocess.run([*install, wanted], check=True)

# %% [markdown]
# What JAX trains on. A CPU is enough for this notebook, and is what stands here
# where there is no accelerator. In Colab one is chosen under Runtime, Change
# runtime type, which begins anew; if JAX does not see it then, say its `EXTRA`.

# %%
import jax

print(jax.devices())

# %% [markdown]
# ## A scheme is a table
#
# It says which stored row of weights each layer reads. A spec is short for a
# table; every component of a layer may have its own.

# %%
from pathlib import Path

from IPython.display import FileLink, Image, Markdown, display

import shared_tfm
from shared_tfm.report.plots import owner_strips

SMALL = bool(os.environ.get('SHARED_TFM_SMALL'))  # only to see that it runs
LAYERS = 6
SCHEMES = ['none', 'attention=all']
if not SMALL:
  SCHEMES += ['all', 'cycle:3', 'sequence:3']
RUNS = Path('runs/notebook')
RUNS.mkdir(parents=True, exist_ok=True)


def drawn(schemes):
  """Draws the owner tables of schemes."""
  tables = {}
  for each in schemes:
    name, _, spec = each.rpartition('=')
    rows = shared_tfm.sharing.owners(spec, num_layers=LAYERS)
    tables[each] = {name or 'layer': rows}
  return Image(owner_strips(tables, RUNS / 'owners.png').read_bytes())


drawn(SCHEMES)

# %%
mixed = {'attention': 'all', 'feed_forward': 'cycle_rev:3', 'norm': 'none'}
print(shared_tfm.sharing.draw(mixed, LAYERS))

# %% [markdown]
# ## Text
#
# Without a file of yours the source code of Python's standard library is the
# text, which is on every machine. To use your own, upload a file (in Colab:
# the folder at the left) and say its name.

# %%
TEXT = ''  # such as 'novel.txt', or a folder of texts

data = {'source': 'text', 'path': TEXT} if TEXT else {'source': 'local'}

# %% [markdown]
# ## Train and compare
#
# Each scheme is a line of the table. `applied` is what the network computes
# with, `stored` what it has to keep. More seeds tell more: with one of them
# neighbours in the table cannot be told apart. Runs are kept, and a folder is
# for one config: after a change of `TEXT`, `STEPS` or the config take another.

# %%
STEPS = 2 if SMALL else 200
SEEDS = 1

config = {
  'model': {
    'num_layers': LAYERS,
    'd_model': 16 if SMALL else 64,
    'num_heads': 2,
    'max_len': 128,
    'position': 'rotary',
    'norm': 'rmsnorm',
    'activation': 'relu',
    'use_bias': False,
    'embed_scale': 'width',
    'residual_scale': 'depth',
  },
  'optimizer': {'learning_rate': 1e-2, 'warmup_steps': STEPS // 10},
  'train': {
    'num_steps': STEPS,
    'batch_size': 2 if SMALL else 8,
    'eval_every': max(STEPS // 5, 1),
    'eval_batches': 1 if SMALL else 16,
    'checkpoint_every': STEPS,
  },
  'data': {**data, 'max_bytes': 50_000 if SMALL else 4_000_000},
}
folder = RUNS / 'first'
results = shared_tfm.compare(config, SCHEMES, seeds=SEEDS, workdir=folder)
Markdown((folder / 'summary.md').read_text())

# %% [markdown]
# ## Look at it
#
# The same losses against steps and against stored parameters. All schemes
# cost the same FLOPs: sharing saves memory, and what has to be sent.

# %%
for plot in ('loss_vs_steps.png', 'loss_vs_params.png'):
  display(Image((folder / plot).read_bytes(), width=700))

# %% [markdown]
# The whole report is one file, with every run's curve, config and versions (in
# Colab the link leads nowhere: download the file at the left).

# %%
FileLink(str(folder / 'report.html'))

# %% [markdown]
# ## Write with the best one

# %%
from shared_tfm.__main__ import main
from shared_tfm.report.sweep import SEPARATORS

best = min(results, key=lambda run: run.validation_loss)
print(best.scheme, f'with a loss of {best.validation_loss:.3f}\n')
name = best.scheme.translate(SEPARATORS)  # 'cycle:3' is in cycle-3
run = folder / 'runs' / name / f'seed-{best.seed}'
prompt = 'It was ' if TEXT else 'def main('
flags = ['--tokens=80', '--temperature=0.8', '--top_k=20']
status = main(['generate', f'--workdir={run}', f'--prompt={prompt}', *flags])
assert status == 0

# %% [markdown]
# ## A scheme of your own, in five lines
#
# Any table can be written down: `0,1,2,2,1,0`. A rule gives it a name. The
# decorator is the written form, each capital letter an integer; the function
# returns the row of every layer. Change it, name and all, and run from here:
# runs are known by the name of their scheme.

# %%
from shared_tfm.sharing.table import scheme


@scheme('zigzag:U')
def zigzag(layers, rows):
  """There and back again: A B C B A B C."""
  period = max(2 * rows - 2, 1)
  return tuple(min(i % period, period - i % period) for i in range(layers))


MINE = ['zigzag:3'] if SMALL else ['zigzag:3', '0,1,1,1,1,2']
drawn(MINE)

# %%
mine = shared_tfm.compare(config, MINE, seeds=SEEDS, workdir=folder / 'mine')
Markdown((folder / 'mine' / 'summary.md').read_text())

# %%
for row in sorted([*results, *mine], key=lambda row: row.validation_loss):
  print(f'{row.scheme:<14}{row.stored_params:>9,}{row.validation_loss:>8.3f}')
