"""Sharing: a table of owners, and a function from (bank, layer) to weights."""

from shared_tfm.sharing.drawing import draw
from shared_tfm.sharing.table import owners, resolve

__all__ = ['draw', 'owners', 'resolve']
