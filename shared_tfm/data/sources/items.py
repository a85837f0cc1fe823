"""What a set of labelled texts is made of."""

from typing import NamedTuple


class Item(NamedTuple):
  """One text or two, and what is to be told of them.

  Attributes:
    texts: the one, or both.
    label: the number of the class, or a number; None: it is kept from us.
    number: what its set calls it; None: by its place.
  """

  texts: tuple[str, ...]
  label: float | int | None
  number: int | None = None
