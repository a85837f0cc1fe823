"""TensorBoard events, written by the thread that has them.

A writer in the background would end at its first error, a full disk say, and
whoever then hands it an event would wait for ever.
"""

import struct
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from shared_tfm import files

PREFIX, DIGITS = 'events.out.tfevents.', 10


class Events:
  """Appends scalars to the one file of events in `folder`."""

  def __init__(self, folder: Path):
    """Opens a new file; the older ones are void, and deleted by `alone`.

    Files are numbered: TensorBoard reads them in the order of their names, and
    a clock may be set back between the parts of a run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    self.older = {
      int(path.name.removeprefix(PREFIX)): path
      for path in folder.glob(f'{PREFIX}{"[0-9]" * DIGITS}')
    }
    number = max(self.older, default=0) + 1
    self.path = folder / f'{PREFIX}{number:0{DIGITS}d}'
    self.file = self.path.open('xb', buffering=0)
    self._write(Event(file_version='brain.Event:2'), time.time())
    start = SessionLog(status=SessionLog.START)
    self._write(Event(session_log=start, step=0), time.time())

  def alone(self) -> None:
    """Deletes the older files: what they had and is not void is in this one."""
    for path in self.older.values():
      path.unlink(missing_ok=True)

  def write(self, step: int, seconds: float, scalars: dict[str, float]) -> None:
    """Writes the scalars of one step, by their tags, told at a Unix time."""
    values = [
      Summary.Value(tag=tag, simple_value=n) for tag, n in scalars.items()
    ]
    self._write(Event(step=step, summary=Summary(value=values)), seconds)

  def close(self) -> None:
    """Closes the file, in which everything is already."""
    self.file.close()

  def _write(self, event: Event, seconds: float) -> None:
    event.wall_time = seconds
    data = event.SerializeToString()
    length = struct.pack('<Q', len(data))
    record = (
      length
      + struct.pack('<I', masked_crc32c(length))
      + data
      + struct.pack('<I', masked_crc32c(data))
    )
    with files.named(self.path):
      files.append(self.file, record)
