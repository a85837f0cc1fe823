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

PREFIX = 'events.out.tfevents.'


class Events:
  """Appends scalars to a new file of events in `folder`."""

  def __init__(self, folder: Path, purge: int):
    """Opens the file; events from step `purge` on in older files are void.

    Files are numbered: TensorBoard reads them in the order of their names, and
    a clock may be set back between the parts of a run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [path.name for path in folder.glob(f'{PREFIX}*')]
    numbers = [name.removeprefix(PREFIX).partition('.')[0] for name in names]
    last = max((int(n) for n in numbers if n.isdigit()), default=0)
    self.path = folder / f'{PREFIX}{last + 1:010d}'
    self.file = self.path.open('xb', buffering=0)
    self._write(Event(file_version='brain.Event:2'))
    start = SessionLog(status=SessionLog.START)
    self._write(Event(session_log=start, step=purge))

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Writes the scalars of one step, by their tags."""
    values = [
      Summary.Value(tag=tag, simple_value=n) for tag, n in scalars.items()
    ]
    self._write(Event(step=step, summary=Summary(value=values)))

  def close(self) -> None:
    """Closes the file, in which everything is already."""
    self.file.close()

  def _write(self, event: Event) -> None:
    event.wall_time = time.time()
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
