"""A file as it would be once its log was replayed: the log's pages lie over the file's, and nothing is written.

**Source**: docs/reference/vhdx.md 3.3.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING, NoReturn

from vhdkit.errors import ReadOnlyImageError
from vhdkit.storage.handle import Handle
from vhdkit.storage.read_many import read_one_by_one
from vhdkit.vhdx.constants import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from vhdkit.storage.protocols import Storage, Syncing
    from vhdkit.vhdx.log import Replay


class LogOverlay(Handle):
    """A storage over another one, which it owns; it is only read."""

    def __init__(self, storage: Storage, replay: Replay) -> None:
        self._base = storage
        self._pages = replay.pages
        self._numbers = sorted(replay.pages)
        self._zeros = replay.zeros
        self._zero_stops = [stop for _, stop in replay.zeros]
        self._size = replay.size

    @property
    def path(self) -> str:
        """Where the file is."""
        return self._base.path

    @property
    def identity(self) -> tuple[int, int]:
        """The same as that of the file."""
        return self._base.identity

    @property
    def writable(self) -> bool:
        """Never."""
        return False

    @property
    def link_count(self) -> int:
        """That of the file."""
        return self._base.link_count

    @property
    def mtime(self) -> float:
        """That of the file."""
        return self._base.mtime

    @property
    def ctime(self) -> float:
        """That of the file."""
        return self._base.ctime

    @property
    def owner(self) -> int:
        """That of the file."""
        return self._base.owner

    @property
    def allocated_size(self) -> int:
        """That of the file."""
        return self._base.allocated_size

    @property
    def is_protected(self) -> bool:
        """Whether the file is."""
        return self._base.is_protected

    def size(self) -> int:
        """Return what the file's length would be."""
        return max(self._size, self._base.size())

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """Fill the buffer from the file and its log; what the log makes the file longer by reads as zeros."""
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self.size() - offset)]
        got = self._base.read_into(offset, view)
        view[got:] = bytes(len(view) - got)
        for start, stop in self._zero_stretches(offset, len(view)):
            view[start - offset : stop - offset] = bytes(stop - start)
        first, stop = offset // PAGE, (offset + len(view) - 1) // PAGE + 1 if len(view) else 0
        for index in range(bisect_left(self._numbers, first), bisect_left(self._numbers, stop)):
            self._put_page(self._numbers[index], offset, view)
        return len(view)

    def read_many_into(self, offsets: Sequence[int], buffers: Sequence[memoryview]) -> list[int]:
        """Read one range after the other."""
        return read_one_by_one(self, offsets, buffers)

    def _put_page(self, number: int, offset: int, view: memoryview) -> None:
        logged = self._pages[number]
        page = bytearray(PAGE)
        self._base.read_into(logged.file_offset, page)
        page[:8], page[-4:] = logged.leading, logged.trailing
        start, stop = max(offset, number * PAGE), min(offset + len(view), (number + 1) * PAGE)
        view[start - offset : stop - offset] = page[start - number * PAGE : stop - number * PAGE]

    def _zero_stretches(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return what of a range the log makes zeros, in bytes."""
        found = []
        for index in range(bisect_left(self._zero_stops, offset // PAGE), len(self._zeros)):
            first, last = self._zeros[index]
            start, stop = max(offset, first * PAGE), min(offset + length, last * PAGE)
            if first * PAGE >= offset + length:
                break
            if start < stop:
                found.append((start, stop))
        return found

    def hole_bytes(self, offset: int, length: int) -> int:
        """Return how many bytes are known to be zeros; of a range that the log changes, none."""
        first, stop = offset // PAGE, (offset + length) // PAGE + 1
        if bisect_left(self._numbers, first) != bisect_left(self._numbers, stop):
            return 0
        return self._base.hole_bytes(offset, length)

    def write_at(self, offset: int, buffer: Buffer) -> None:
        """Refuse."""
        del offset, buffer
        self._refuse()

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> None:
        """Refuse."""
        del source, source_offset, offset, length
        self._refuse()

    def copy_many_from(
        self,
        source: Storage,
        source_offsets: Sequence[int],
        offsets: Sequence[int],
        lengths: Sequence[int],
        until: float = math.inf,
    ) -> int:
        """Refuse."""
        del source, source_offsets, offsets, lengths, until
        self._refuse()

    def reserve(self, offset: int, length: int) -> None:
        """Refuse."""
        del offset, length
        self._refuse()

    def truncate(self, size: int) -> None:
        """Refuse."""
        del size
        self._refuse()

    def sync(self) -> None:
        """Refuse."""
        self._refuse()

    def begin_sync(self) -> Syncing:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ReadOnlyImageError("its log is replayed in memory only", path=self.path)

    def lock(self, *, exclusive: bool) -> None:
        """Hold the file."""
        self._base.lock(exclusive=exclusive)

    def forget(self, offset: int, length: int) -> None:
        """Say that a stretch of the file will hardly be read again."""
        self._base.forget(offset, length)

    def check_open(self) -> None:
        """Refuse to go on with what was closed (ValueError)."""
        self._base.size()

    def begin_close(self) -> None:
        """Begin to give the file back."""
        self._closed = True
        self._base.begin_close()

    def close(self) -> None:
        """Give the file back."""
        self._closed = True
        self._base.close()
