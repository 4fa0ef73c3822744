"""What a file looks like from outside, as a record keeps it, to prove later that the file was not touched.

A state proves one thing only: equal to the file's, it says that nobody wrote to the file, renamed or replaced it since.
A state that differs says nothing: a folder that was copied, or a file that was moved and put back, has other numbers
and other times, and the same bytes. Whether those are right is decided by reading them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta
from msgspec.structs import replace

from vhdkit.journal.field_types import FileTime, Size
from vhdkit.journal.records import Record

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Storage


class Seen(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file looked like from outside: device and inode as text, size in bytes, both times, all at time `now`.

    `now` is the clock of the file system, in Unix seconds: the change time that the journal got from a write.
    """

    identity: Annotated[str, Meta(pattern=r"\A[0-9a-f]{1,32}:[0-9a-f]{1,32}\Z")]
    size: Size
    mtime: FileTime
    ctime: FileTime
    now: FileTime = 0.0

    @classmethod
    def of(cls, storage: Storage, now: float) -> Seen:
        """Return what an open file looks like now."""
        device, inode = storage.identity
        identity = f"{device:x}:{inode:x}"
        return cls(identity=identity, size=storage.size(), mtime=storage.mtime, ctime=storage.ctime, now=now)

    def proves(self, storage: Storage) -> bool:
        """Whether a file is certainly what it was: the same inode, and not written, renamed or replaced since.

        Times have steps, of 4 ms or of a second: of a file that had been changed in the very step in which it was
        looked at, a later change might not show. Where a system has no change times nothing is proven.
        """
        return 0 < self.ctime < self.now and replace(self, now=0.0) == Seen.of(storage, 0.0)

    def fits(self, storage: Storage) -> bool:
        """Whether a file has the size and the time that it had, as in a folder that was copied with its times.

        If it was looked at in the step of the clock in which it was written, its time says nothing; where there is no
        clock, no more can be asked.
        """
        same = (storage.size(), storage.mtime) == (self.size, self.mtime)
        return same and (self.mtime < self.now or not self.now)
