"""A thread that writes texts for whoever asks, many in one batch.

Other threads hand in jobs; what comes of them is told by a function of each,
which the thread calls. Whatever happens, a job that was taken is told its end:
a last piece, or why there is none.
"""

import collections
import dataclasses
import threading
from collections.abc import Callable, Sequence

import numpy as np

from shared_tfm.data.tokenizers import Tokenizer
from shared_tfm.infer.batching import Batcher, Request
from shared_tfm.infer.pieces import Pieces

TICKS = 4  # between two looks at what there is


class Full(Exception):
  """As many wait as may."""


class Stopping(Exception):
  """Nothing new is begun any more."""


class Broken(Exception):
  """The thread has met an error."""


@dataclasses.dataclass(frozen=True)
class Piece:
  """What is new of a text.

  Attributes:
    text: of it.
    tokens: how many were added so far, an eos with them.
    finish: '' while it goes on; then 'stop', at its eos or a stop sequence, or
      'length'.
  """

  text: str
  tokens: int
  finish: str


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """A text to be written.

  Attributes:
    request: its prompt, and how it is continued.
    stop: strings that end the text and are no part of it.
    tell: called by the engine's thread with every piece, or with an error that
      ends it; it must not wait.
  """

  request: Request
  stop: tuple[str, ...]
  tell: Callable[[Piece | Exception], None]


class Text:
  """A job's text while its tokens are still coming."""

  def __init__(self, job: Job, tokenizer: Tokenizer) -> None:
    """Begins with nothing."""
    self.job, self._eos, self._seen = job, tokenizer.eos, 0
    self._pieces = Pieces(tokenizer.decode, job.stop)

  def look(self, tokens: np.ndarray, last: bool) -> Piece:
    """What is new, of all tokens so far.

    Where it may stop, tokens are looked at one by one, so that the number of
    those it took does not depend on how many come at a time.

    Args:
      tokens: all of them.
      last: whether there are no more.
    """
    between = range(self._seen + 1, len(tokens)) if self.job.stop else ()
    text = ''
    for end in (*between, len(tokens)):
      text += self._pieces.add(tokens[:end], last and end == len(tokens))
      if self._pieces.over:
        return Piece(text, end, 'stop')
    self._seen = len(tokens)
    finish = ''
    if last:
      finish = 'stop' if tokens[-1] == self._eos else 'length'
    return Piece(text, self._seen, finish)


class Engine:
  """The thread, and what it has to do.

  Attributes:
    error: that ended it, if any.
    refuses: whether nothing new is taken.
    cut: how many jobs were not over when it ended.
  """

  def __init__(self, batcher: Batcher, tokenizer: Tokenizer, most: int) -> None:
    """Nothing is done until `start`.

    Args:
      batcher: the batch; from now on the thread's alone.
      tokenizer: of its texts.
      most: how many jobs may wait or run.
    """
    self.error: BaseException | None = None
    self.refuses, self.cut = False, 0
    self.most = most
    self.check = batcher.check  # which changes nothing
    self._batcher, self._tokenizer = batcher, tokenizer
    self._changed = threading.Condition()
    self._new: collections.deque[Job] = collections.deque()
    self._gone: set[Job] = set()
    self._jobs: set[Job] = set()  # taken, and not over
    self._over = False
    self._texts: dict[int, Text] = {}  # of the batch, by number
    # Nothing waits for it where it does not come back from a device.
    self._thread = threading.Thread(target=self._run, daemon=True)

  @property
  def jobs(self) -> int:
    """How many wait or run."""
    return len(self._jobs)

  def start(self) -> None:
    """Compiles for prompts of all lengths, and begins to work."""
    places, length = self._batcher.places, 8
    while True:
      prompt = np.zeros(max(1, min(length, places - 2)), np.int32)
      self._batcher.add(Request(prompt, min(2, places - len(prompt))))
      if length >= places:
        break
      length *= 2
    self._batcher.drain()
    self._thread.start()

  def submit(self, jobs: Sequence[Job]) -> None:
    """Takes all of some jobs, or none.

    Args:
      jobs: whose requests `check` has seen.

    Raises:
      Full: there is no room for so many.
      Stopping: or for any.
      Broken: nor will there be.
    """
    with self._changed:
      if self.error is not None:
        raise Broken
      if self.refuses:
        raise Stopping
      if len(self._jobs) + len(jobs) > self.most:
        raise Full
      self._jobs.update(jobs)
      self._new.extend(jobs)
      self._changed.notify()

  def cancel(self, jobs: Sequence[Job]) -> None:
    """Takes them back, those that are not over; they are told nothing more."""
    with self._changed:
      self._gone.update(self._jobs.intersection(jobs))
      self._changed.notify()

  def close(self, why: Exception | None = None) -> None:
    """Ends the thread behind what it is doing.

    Args:
      why: told to jobs that are not over; None: it is Stopping.
    """
    with self._changed:
      self.refuses = self._over = True
      jobs, self._jobs = self._jobs, set()
      self._changed.notify()
    self.cut += len(jobs)
    for job in jobs:
      job.tell(why or Stopping())

  def join(self) -> None:
    """Waits for the thread to end, but not for long."""
    self._thread.join(timeout=10)

  def _run(self) -> None:
    try:
      while self._step():
        pass
    except BaseException as error:
      self.error = error
      self.close(Broken())

  def _awaited(self) -> bool:
    return bool(self._new or self._gone or self._over or self._batcher.busy)

  def _step(self) -> bool:
    """Waits for work, and does some of it; whether there may be more."""
    with self._changed:
      self._changed.wait_for(self._awaited)
      if self._over:
        return False
      new, self._new = self._new, collections.deque()
      gone, self._gone = self._gone, set()
      self._jobs -= gone
    for job in new:
      number = self._batcher.add(job.request)
      self._texts[number] = Text(job, self._tokenizer)
    for number, text in [*self._texts.items()]:
      if text.job in gone:
        self._drop(number)
    for done in self._batcher.run(TICKS):
      self._tell(done.number, done.tokens, last=True)
    for number, tokens in self._batcher.progress().items():
      self._tell(number, tokens, last=False)
    return True

  def _tell(self, number: int, tokens: np.ndarray, last: bool) -> None:
    """Says what is new of a text, and whether it is over."""
    text = self._texts[number]
    piece = text.look(tokens, last)
    if piece.finish:
      self._drop(number)
      with self._changed:
        self._jobs.discard(text.job)
    if piece.text or piece.finish:
      text.job.tell(piece)

  def _drop(self, number: int) -> None:
    del self._texts[number]
    self._batcher.cancel(number)
