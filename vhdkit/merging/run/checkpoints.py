"""The journal's mark: up to where in the disk a merge is durable."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhdkit.journal.journal_writer import JournalWriter
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.storage.protocols import Storage

# At most so many marks by bytes in a merge, and one in so many seconds besides.
_MARKS = 4096
_MARK_SECONDS = 30


class CheckpointWriter:
    """Write the mark, though not after every checkpoint: the marks of a merge of terabytes must not fill a disk."""

    def __init__(self, plan: MergePlan, writer: JournalWriter, destination: Storage) -> None:
        self.writer = writer
        self.destination = destination
        self.before = self.last = plan.bytes_done
        self.step = plan.payload_bytes // _MARKS
        self.time = time.monotonic()

    def durable(self, stop: int, size: int) -> None:
        """Take note that the disk is durable up to `stop`, after `size` bytes of this run."""
        done, now = self.before + size, time.monotonic()
        if done - self.last >= self.step or now - self.time >= _MARK_SECONDS:
            self.writer.write("mark", offset=stop, bytes=done, mtime=self.destination.mtime)
            self.last, self.time = done, now
