"""Which entries of the log count, and what the file would be once they were replayed.

The log is a ring. A run of valid entries that follow one another is complete if the tail of its last entry is the start
of one of them; of the complete runs the one with the greatest sequence number counts, from its tail on. An entry that a
power cut tore ends a run.

Nothing is held but where the pages lie in the log, and no entry is summed twice: memory and time are bounded by the
log's length, whatever it holds.

**Source**: docs/reference/vhdx.md 3.2, 3.3, 6.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from vhdkit.disk.unique_id import guid
from vhdkit.errors import CorruptImageError
from vhdkit.storage.protocols import read_bytes
from vhdkit.vhdx import checksum
from vhdkit.vhdx.constants import LOG_SIGNATURE, MAX_FILE_SIZE, PAGE, REGION_TABLE_OFFSETS
from vhdkit.vhdx.corruption import VhdxCorruption
from vhdkit.vhdx.log_entry import ENTRY_HEADER_SIZE, LogEntryHeader, descriptors_in, is_data_page

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhdkit.storage.protocols import Storage
    from vhdkit.vhdx.header import Header
    from vhdkit.vhdx.log_entry import Descriptor

_PIECE = 1 << 20
# Stretches of zeros that a log may have: more would take more memory than opening a file may.
_MOST_ZEROS = 1 << 18
# Entries of one session overlap nothing, so that summing all of them costs the log's length once; torn ones cost more.
# What costs twice the length, and more than this, was made to cost.
_ALWAYS_SUMMED_BYTES = 64 << 20


class LoggedPage(NamedTuple):
    """A page as the log has it: its bytes from 8 to 4092 lie at `file_offset` + 8 of the file."""

    file_offset: int
    leading: bytes
    trailing: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What replaying a log changes: `pages` by page number, stretches of zeros in pages (ascending, apart), the size.

    `first` and `last` are the sequence numbers of the entries that count, `size` is the file's in bytes at least.
    """

    pages: dict[int, LoggedPage]
    zeros: tuple[tuple[int, int], ...]
    size: int
    first: int
    last: int


def read_log(storage: Storage, header: Header) -> Replay:
    """Return what the log of a file that has one changes; nothing is written.

    Raises:
        CorruptImageError: no entry of it counts, the file is shorter than it was when one was written, or one changes
            what no entry may change.

    """
    return _Ring(storage, header).replay()


@dataclass(slots=True)
class _Changes:
    """The changes of entries in their order."""

    pages: dict[int, tuple[int, LoggedPage]] = field(default_factory=dict)
    zeros: list[tuple[int, int, int]] = field(default_factory=list)
    count: int = 0
    size: int = 0

    def add(self, descriptor: Descriptor, data_at: int) -> None:
        first = descriptor.file_offset // PAGE
        if descriptor.is_data:
            self.pages[first] = self.count, LoggedPage(data_at, descriptor.leading, descriptor.trailing)
        elif descriptor.length:
            self.zeros.append((first, first + descriptor.length // PAGE, self.count))
        self.count += 1
        self.size = max(self.size, descriptor.file_offset + descriptor.length)

    def result(self) -> tuple[dict[int, LoggedPage], tuple[tuple[int, int], ...]]:
        """Return the pages that no later zeros cover, and the zeros as stretches that are apart."""
        latest = _latest_zeros(self.zeros)
        kept: dict[int, LoggedPage] = {}
        at = 0
        for number in sorted(self.pages):
            order, page = self.pages[number]
            while at < len(latest) and latest[at][1] <= number:
                at += 1
            if at == len(latest) or number < latest[at][0] or latest[at][2] < order:
                kept[number] = page
        return kept, _joined(latest)


def _latest_zeros(zeros: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return [start, stop) stretches that are apart, ascending, each with the last of the orders that cover it."""
    starts = sorted(zeros)
    cuts = sorted({start for start, _, _ in zeros} | {stop for _, stop, _ in zeros})
    heap: list[tuple[int, int]] = []
    found, at = [], 0
    for low, high in pairwise(cuts):
        while at < len(starts) and starts[at][0] <= low:
            heappush(heap, (-starts[at][2], starts[at][1]))
            at += 1
        while heap and heap[0][1] <= low:
            heappop(heap)
        if heap:
            found.append((low, high, -heap[0][0]))
    return found


def _joined(stretches: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for start, stop, _ in stretches:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
    return tuple(joined)


class _Ring:
    """The log of one file."""

    def __init__(self, storage: Storage, header: Header) -> None:
        self._storage = storage
        self._guid = header.log_guid
        self._start, self._length = header.log_offset, header.log_length
        self._entries: dict[int, LogEntryHeader | None] = {}
        self._summed = 0

    def replay(self) -> Replay:
        run = self._active_run()
        last = self._valid(run[-1])
        if last is None:  # only valid ones are in a run
            raise self._no_entries()
        size = self._storage.size()
        if size < last.flushed_file_offset:
            detail = f"the file has {size} bytes, and had {last.flushed_file_offset} when its log was written"
            raise self._error(VhdxCorruption.LOG_FILE_CUT, detail)
        if last.last_file_offset > MAX_FILE_SIZE:
            detail = f"its log says that the file has {last.last_file_offset} bytes, more than {MAX_FILE_SIZE}"
            raise self._error(VhdxCorruption.LOG_TARGET_FAR, detail)
        counting = run[run.index(last.tail) :]
        changes = _Changes()
        for at in counting:
            for descriptor, data_at in self._descriptors(at):
                self._check_target(descriptor)
                changes.add(descriptor, data_at)
            if len(changes.zeros) > _MOST_ZEROS:
                raise self._error(VhdxCorruption.LOG_COSTLY, "its log zeroes more stretches than any program writes")
        pages, zeros = changes.result()
        first = self._valid(counting[0])
        return Replay(
            pages=pages,
            zeros=zeros,
            size=max(size, last.last_file_offset, changes.size),
            first=first.sequence_number if first is not None else 0,
            last=last.sequence_number,
        )

    def _error(self, corruption: VhdxCorruption, detail: str) -> CorruptImageError:
        return CorruptImageError(corruption, detail, path=self._storage.path, offset=self._start)

    def _no_entries(self) -> CorruptImageError:
        has_own = any(self._bytes(at, ENTRY_HEADER_SIZE)[32:48] == self._guid for at in self._beginnings())
        detail = f"its header says that the log {guid(self._guid)} is to be replayed, and no entry of it is whole"
        if has_own:
            more = "; some are there in part, so that the file lacks what they say"
            return self._error(VhdxCorruption.LOG_DAMAGED, detail + more)
        more = ": qemu leaves a file so when it is killed before it writes the first"
        return self._error(VhdxCorruption.LOG_WITHOUT_ENTRIES, detail + more)

    def _check_target(self, descriptor: Descriptor) -> None:
        start, stop = descriptor.file_offset, descriptor.file_offset + descriptor.length
        if stop > MAX_FILE_SIZE:
            detail = f"its log changes [{start:#x}, {stop:#x}), behind the end of any file"
            raise self._error(VhdxCorruption.LOG_TARGET_FAR, detail)
        in_log = start < self._start + self._length and stop > self._start
        if start < REGION_TABLE_OFFSETS[0] or in_log:
            detail = f"its log changes [{start:#x}, {stop:#x}), which no log may change"
            raise self._error(VhdxCorruption.LOG_TARGET, detail)

    def _active_run(self) -> list[int]:
        """Return the starts of the entries of the run that counts."""
        best: list[int] = []
        best_number, reach = 0, 0
        for tail in self._beginnings():
            if tail < reach:
                continue
            run, stop = self._run_from(tail)
            if not run:
                continue
            last = self._entries[run[-1]]
            if last is not None and last.tail in run and last.sequence_number > best_number:
                best, best_number = run, last.sequence_number
            if stop <= tail:
                break
            reach = stop
        if not best:
            raise self._no_entries()
        return best

    def _beginnings(self) -> Iterator[int]:
        """Yield the pages of the ring that begin as an entry does, ascending; holes of the file are not read."""
        for start in range(0, self._length, _PIECE):
            length = min(_PIECE, self._length - start)
            if self._storage.hole_bytes(self._start + start, length) == length:
                continue
            raw = self._bytes(start, length)
            if LOG_SIGNATURE in raw:
                yield from (start + at for at in range(0, length, PAGE) if raw.startswith(LOG_SIGNATURE, at))

    def _run_from(self, tail: int) -> tuple[list[int], int]:
        """Return the starts of valid entries that follow one another from `tail` on, and where the last ends."""
        run: list[int] = []
        at, total, number = tail, 0, 0
        while (entry := self._valid(at)) is not None:
            total += entry.entry_length
            if total > self._length or (run and entry.sequence_number != number + 1):
                break
            run.append(at)
            number = entry.sequence_number
            at = (at + entry.entry_length) % self._length
        return run, at

    def _valid(self, at: int) -> LogEntryHeader | None:
        """Return the header of the entry at a page, None if no valid one begins there."""
        if at not in self._entries:
            self._entries[at] = self._judge(at)
        return self._entries[at]

    def _judge(self, at: int) -> LogEntryHeader | None:
        raw = self._bytes(at, ENTRY_HEADER_SIZE)
        # Most pages of a ring begin no entry.
        if len(raw) < ENTRY_HEADER_SIZE or raw[: len(LOG_SIGNATURE)] != LOG_SIGNATURE:
            return None
        entry = LogEntryHeader.from_bytes(raw)
        if not entry.is_plausible(self._guid, self._length):
            return None
        data_count = self._data_pages(at, entry)
        # Before anything is summed: what an entry says of its length costs nothing to write.
        if data_count is None or (entry.descriptor_pages + data_count) * PAGE != entry.entry_length:
            return None
        self._summed += entry.entry_length
        if self._summed > max(2 * self._length, min(8 * self._length, _ALWAYS_SUMMED_BYTES)):
            raise self._error(
                VhdxCorruption.LOG_COSTLY, "its log holds entries upon entries, as no program writes them"
            )
        if self._sum(at, entry.entry_length) != entry.checksum:
            return None
        data = range(at + entry.descriptor_pages * PAGE, at + entry.entry_length, PAGE)
        return entry if all(is_data_page(self._bytes(place, PAGE), entry.sequence_number) for place in data) else None

    def _sum(self, at: int, length: int) -> int:
        """Return the checksum of an entry, that in its header taken as zeros."""
        total = checksum.extended(0, checksum.without_field(self._bytes(at, PAGE)))
        for done in range(PAGE, length, _PIECE):
            total = checksum.extended(total, self._bytes(at + done, min(_PIECE, length - done)))
        return total

    def _data_pages(self, at: int, entry: LogEntryHeader) -> int | None:
        """Return how many data pages the descriptors of an entry tell of, None if one is none of the entry's."""
        count = 0
        for descriptor in descriptors_in(self._pages(at, entry.descriptor_pages), entry.descriptor_count):
            if descriptor is None or descriptor.sequence_number != entry.sequence_number:
                return None
            count += descriptor.is_data
        return count

    def _descriptors(self, at: int) -> Iterator[tuple[Descriptor, int]]:
        """Yield the descriptors of a valid entry, each with where in the file its data page lies."""
        entry = self._valid(at)
        if entry is None:
            return
        data_at = at + entry.descriptor_pages * PAGE
        for descriptor in descriptors_in(self._pages(at, entry.descriptor_pages), entry.descriptor_count):
            if descriptor is not None:
                yield descriptor, self._start + data_at % self._length
                data_at += PAGE if descriptor.is_data else 0

    def _pages(self, at: int, count: int) -> Iterator[bytes]:
        return (self._bytes(at + number * PAGE, PAGE) for number in range(count))

    def _bytes(self, at: int, length: int) -> bytes:
        """Return bytes of the ring, over its end to its start."""
        at %= self._length
        whole = read_bytes(self._storage, self._start + at, min(length, self._length - at))
        if at + length > self._length:
            whole += read_bytes(self._storage, self._start, at + length - self._length)
        return whole
