"""Published tables that need no training: a paper's numbers beside ours.

Each is a function without arguments in the file of its family. A number of ours
is what `accounting` counts of a real config; where a published model has a
tensor that ours lacks, or the other way round, the file says which, and the
table's notes do.
"""

from collections.abc import Callable

from shared_tfm.errors import unknown
from shared_tfm.report.published import (
  albert,
  attention,
  experts,
  loops,
  mor,
  orders,
  recursive,
  translation,
)
from shared_tfm.report.published.kinds import Row, Table

TABLES: dict[str, Callable[[], Table]] = {
  'albert_1': albert.table_1,
  'albert_3': albert.table_3,
  'albert_4': albert.table_4,
  'albert_12': albert.table_12,
  'albert_groups': albert.groups,
  'takase': translation.takase,
  'takase_orders': orders.takase_orders,
  'mobilellm': orders.mobilellm,
  'mor_2': mor.table_2,
  'mor_3': mor.table_3,
  'mor_6': mor.table_6,
  'mor_10': mor.table_10,
  'mor_11': mor.table_11,
  'mor_15': mor.table_15,
  'mor_16': mor.table_16,
  'rrt_1': recursive.table_1,
  'rrt_g2': recursive.table_g2,
  'rrt_h1': recursive.table_h1,
  'moeut': experts.moeut,
  'cla': attention.cla,
  'mlkv': attention.mlkv,
  'gemma3n': attention.gemma3n,
  'masa': attention.masa,
  'huginn': loops.huginn,
  'ouro': loops.ouro,
  'hrm': loops.hrm,
  'trm': loops.trm,
  'one_wide_ffn': translation.one_wide_ffn,
}


def titles() -> dict[str, str]:
  """The title of every table, which is its function's docstring."""
  return {
    name: (made.__doc__ or '').removesuffix('.')
    for name, made in TABLES.items()
  }


def make(name: str) -> Table:
  """The table of that name.

  Raises:
    BadInput: there is none; the message has the nearest.
  """
  if name not in TABLES:
    raise unknown('table', name, TABLES)
  return TABLES[name]()


__all__ = ['TABLES', 'Row', 'Table', 'make', 'titles']
