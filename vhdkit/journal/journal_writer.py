"""Writing the journal of a merge: each record is durable when it was written."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.errors import JournalError
from vhdkit.journal import records
from vhdkit.journal.merge_journal import Journal, UnbegunJournal, find_journal, followed, journal_path
from vhdkit.journal.merge_records import (
    decode_record,
)
from vhdkit.storage.handle import ClosedAtEnd, closing_on_error
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import SECTOR

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder, Storage


_PIECE_BYTES = 1 << 20
_STEPS, _STEP_SECONDS = 4, 0.004


class JournalWriter(ClosedAtEnd):
    """A journal that is being written: each record is durable when `write` returns.

    With `notes_time` each record has the file system's time: whether the journal is the newest shows by that.
    """

    def __init__(self, storage: Storage, file: Journal | UnbegunJournal) -> None:
        self.storage = storage
        self.file = file
        self.notes_time = False
        self.is_closed = False

    @property
    def journal(self) -> Journal:
        """What the journal says; it has begun."""
        if isinstance(self.file, UnbegunJournal):
            raise ValueError(f"{self.file.path}: nothing has begun in this journal")  # noqa: TRY004 - no wrong type
        return self.file

    @property
    def begun(self) -> Journal | None:
        """What the journal says, None before a merge has begun in it."""
        return self.file if isinstance(self.file, Journal) else None

    @property
    def _end(self) -> int:
        return self.file.end if isinstance(self.file, Journal) else 0

    @classmethod
    def create(cls, folder: Folder, destination: str) -> JournalWriter:
        """Begin a journal; one that holds nothing is replaced.

        Raises:
            FileExistsError: there is one already.

        """
        path = journal_path(destination)
        if isinstance(find_journal(folder, destination), UnbegunJournal):
            folder.remove(path)
        return cls(folder.create(path, private=True), UnbegunJournal(path=path))

    @classmethod
    def append(cls, folder: Folder, journal: Journal) -> JournalWriter:
        """Go on with a journal that was read, which itself stays what it was: a plan may rest on it.

        What was read may be in memory only, if whoever wrote it was cut off before his sync; it is made durable first.
        """
        storage = folder.open(journal.path, writable=True)
        with closing_on_error(storage):
            for at in range(0, journal.end, _PIECE_BYTES):
                storage.write_at(at, read_bytes(storage, at, min(_PIECE_BYTES, journal.end - at)))
            storage.sync()
        return cls(storage, replace(journal))

    def now(self, *, later_than: Storage | None = None) -> float:
        """Return the time by the clock of the file system: writing where the next record will lie moves the file's.

        What it is to be later than was changed just now: one step of the clock, 4 ms, is waited for, no second.
        """
        for _ in range(_STEPS):
            self.storage.write_at(self._end, bytes(SECTOR))
            now = self.storage.ctime
            if later_than is None or now.is_integer() or later_than.ctime < now:
                break
            time.sleep(_STEP_SECONDS)
        return now

    def write(self, kind: str, **fields: object) -> None:
        """Append a record and make it durable."""
        self.note(kind, sync=True, **fields)

    def note(self, kind: str, *, sync: bool = False, **fields: object) -> None:
        """Append a record that nobody depends on: a sync may wait for all that the disk has still to write."""
        time = {"now": self.now()} if self.notes_time else {}
        checksum = self.file.checksum if isinstance(self.file, Journal) else ""
        raw = records.encode([{"kind": kind, **fields, **time}], checksum)
        # What could not be read again is not written.
        record = decode_record(raw[65:].rstrip())
        if len(raw) > records.MAX_LINE_BYTES:
            message = f"a record of {len(raw)} bytes is too long for it: too many children would be relinked at once"
            raise JournalError(message, path=self.file.path)
        end = self._end
        self.storage.write_at(end, raw)
        if sync:
            self.storage.sync()
        self.file = journal = followed(self.file, record)
        journal.end, journal.checksum = end + len(raw), raw[:64].decode()

    def close(self) -> None:
        """Give the file back."""
        self.is_closed = True
        self.storage.close()
