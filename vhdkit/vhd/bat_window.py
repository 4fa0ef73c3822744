"""The BAT of an open image, a window at a time.

A table of 2040 GiB takes 4 to 16 MiB and a chain may have a thousand layers, so no table is ever held whole:
`Table` keeps one window of 64 KiB and reads the next when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.corruption import Corruption
from vhdkit.disk.extents import distinct
from vhdkit.errors import CorruptImageError
from vhdkit.units import SECTOR
from vhdkit.vhd import bat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vhdkit.storage.protocols import Storage

WINDOW = 16384  # entries; 32 GiB of 2 MiB blocks
_NOTHING: tuple[int, NDArray[np.uint32]] = (-1, np.empty(0, np.uint32))


class Table:
    """A BAT on a storage: `entries` to read, `assign` to write. Entries are native uint32."""

    def __init__(self, storage: Storage, offset: int, entry_count: int) -> None:
        self._storage = storage
        self._offset = offset
        # One value, so that threads that read at once see an index and its entries together.
        self._loaded = _NOTHING
        self.entry_count = entry_count

    def entries(self, first: int, stop: int) -> NDArray[np.uint32]:
        """Return entries [first, stop); those past the table's end are unallocated."""
        if first // WINDOW == (stop - 1) // WINDOW:
            base = first // WINDOW * WINDOW
            return self._load(base)[first - base : stop - base]
        parts = [
            self.entries(max(first, base), min(stop, base + WINDOW))
            for base in range(first // WINDOW * WINDOW, stop, WINDOW)
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.uint32)

    def windows(self) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        """Yield (index of the first entry, entries) over the whole table."""
        for base in range(0, self.entry_count, WINDOW):
            yield base, self._load(base)[: self.entry_count - base]

    def assign(self, blocks: NDArray[np.int64], sectors: NDArray[np.uint32]) -> None:
        """Write the entries of `blocks` (ascending), in whole sectors of the table."""
        for base in distinct(blocks // WINDOW * WINDOW).tolist():
            window = self._load(base)
            inside = (blocks >= base) & (blocks < base + WINDOW)
            local = blocks[inside] - base
            window[local] = sectors[inside]
            for low, high in _sector_stretches(local, min(WINDOW, self.entry_count - base)):
                self._storage.write_at(self._offset + (base + low) * 4, window[low:high].astype(">u4").tobytes())

    def forget(self) -> None:
        """Keep no window: for images that are held, and not read."""
        self._loaded = _NOTHING

    def _load(self, base: int) -> NDArray[np.uint32]:
        first, window = self._loaded
        if base != first:
            count = max(0, min(WINDOW, self.entry_count - base))
            raw = bytearray(count * 4)
            got = self._storage.read_into(self._offset + base * 4, raw)
            if got < len(raw):
                detail = f"the BAT ends at {self._offset + base * 4 + got:#x}, in the middle of an entry"
                raise CorruptImageError(Corruption.BAT_OUTSIDE_FILE, detail, path=self._storage.path)
            window = np.full(WINDOW, bat.UNALLOCATED, np.uint32)
            window[:count] = bat.from_bytes(raw)
            self._loaded = (base, window)
        return window


def _sector_stretches(changed: NDArray[np.int64], count: int) -> Iterator[tuple[int, int]]:
    """Yield [low, high) of the entries to write: the touched sectors, small gaps between them included."""
    sectors = distinct(changed // bat.ENTRIES_PER_SECTOR)
    breaks = np.flatnonzero(np.diff(sectors) > 8)  # 4 KiB of table: cheaper than another call
    heads = np.concatenate((sectors[:1], sectors[breaks + 1]))
    tails = np.concatenate((sectors[breaks], sectors[-1:]))
    for head, tail in zip(heads.tolist(), tails.tolist(), strict=True):
        yield head * bat.ENTRIES_PER_SECTOR, min((tail + 1) * bat.ENTRIES_PER_SECTOR, count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where the blocks of a file may lie; all in bytes but `needed`, the number of blocks that the disk has.

    `structures` are what no block may touch, `locators` the rooms of a child's parent locators, `block_span` is bitmap
    plus data, `last_span` what of it the block that the disk ends inside needs: its unused tail may be cut off
    (docs/reference/vhd.md 4.1, row 31). Blocks must end at `limit`.
    """

    structures: Sequence[tuple[int, int]]
    locators: Sequence[tuple[int, int]]
    block_span: int
    last_span: int
    needed: int
    limit: int

    def is_usable(self, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the blocks at these offsets touch no structure and end inside the file."""
        usable = at + self.block_span <= self.limit
        for start, stop in self.structures:
            usable &= (at >= stop) | (at + self.block_span <= start)
        return usable

    def spans(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the bytes that blocks need."""
        return np.where(blocks == self.needed - 1, self.last_span, self.block_span)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What an image's table says of its blocks.

    The last one ends at `end`, 0 without any; the bitmap of the one whose needed bytes reach farthest lies at
    `farthest`, -1 without any. `unreadable` is why no block may be read, `doubtful` why nothing may be written though
    everything can be read.
    """

    end: int
    farthest: int
    stray: int
    unreadable: CorruptImageError | None
    doubtful: CorruptImageError | None


def check_placement(table: Table, room: Room, *, path: str) -> Placed:
    """Hold every allocated entry against the file and against the others.

    Entries that no sector of the disk can reach are passed over: some makers leave zeros there. Their blocks count for
    `end` where they could be blocks. A million blocks are sorted in 4 ms, four million in 14; that takes 8 bytes each.

    Raises:
        CorruptImageError: an entry is 0 or points into a structure, or a block reaches past the file's end.

    """
    end, reach, farthest, stray = 0, 0, -1, 0
    placed: list[NDArray[np.uint32]] = []
    doubtful: CorruptImageError | None = None
    for base, entries in table.windows():
        blocks = bat.allocated(entries)
        if not len(blocks):
            continue
        at = bat.offsets(entries[blocks])
        blocks += base
        reachable = int(np.searchsorted(blocks, room.needed))
        spare = at[reachable:]
        usable = room.is_usable(spare)
        stray += int((~usable).sum())
        end = max(end, int(spare[usable].max(initial=-room.block_span)) + room.block_span)
        blocks, at = blocks[:reachable], at[:reachable]
        if not reachable:
            continue
        _refuse_outside(blocks, at, room, path)
        doubtful = doubtful or _on_locator(blocks, at, room, path)
        stops = at + room.spans(blocks)
        high = int(np.argmax(stops))
        if stops[high] > reach:
            reach, farthest = int(stops[high]), int(at[high])
        end = max(end, int(at.max()) + room.block_span)
        placed.append((at // SECTOR).astype(np.uint32))
    unreadable = _overlap(table, placed, room, path)
    return Placed(end=end, farthest=farthest, stray=stray, unreadable=unreadable, doubtful=doubtful)


def _refuse_outside(blocks: NDArray[np.int64], at: NDArray[np.int64], room: Room, path: str) -> None:
    clash = _first_clash(at, room.structures, room.block_span)
    if clash is not None:
        index, start, stop = clash
        where = f"block {blocks[index]} lies at {at[index]:#x}"
        detail = f"{where}, on the headers or tables at [{start:#x}, {stop:#x})"
        raise CorruptImageError(Corruption.BLOCK_IN_HEADERS, detail, path=path)
    stops = at + room.spans(blocks)
    high = int(np.argmax(stops))
    if stops[high] > room.limit:
        where = f"block {blocks[high]} ends at {int(stops[high]):#x}"
        detail = f"{where}, behind the room for blocks, which ends at {room.limit:#x}"
        raise CorruptImageError(Corruption.BLOCK_OUTSIDE_FILE, detail, path=path)


def _on_locator(blocks: NDArray[np.int64], at: NDArray[np.int64], room: Room, path: str) -> CorruptImageError | None:
    """Return what is wrong where a locator's data and a block's lie on one another: whoever writes one spoils both."""
    clash = _first_clash(at, room.locators, room.block_span)
    if clash is None:
        return None
    index, start, stop = clash
    detail = f"block {blocks[index]} lies at {at[index]:#x}, on a parent locator's room at [{start:#x}, {stop:#x})"
    return CorruptImageError(Corruption.BLOCK_IN_HEADERS, detail, path=path)


def _first_clash(at: NDArray[np.int64], stretches: Sequence[tuple[int, int]], span: int) -> tuple[int, int, int] | None:
    for start, stop in stretches:
        clash = np.flatnonzero((at < stop) & (at + span > start))
        if len(clash):
            return int(clash[0]), start, stop
    return None


def _overlap(table: Table, placed: list[NDArray[np.uint32]], room: Room, path: str) -> CorruptImageError | None:
    """Return why the blocks, by the sectors of their bitmaps, cannot be read: two of them share bytes."""
    sectors = np.concatenate(placed) if placed else np.empty(0, np.uint32)
    placed.clear()
    clash = bat.first_overlap(sectors, room.block_span // SECTOR)
    if clash is None:
        return None
    del sectors
    names: list[str] = []
    for base, entries in table.windows():
        inside = entries[: max(0, room.needed - base)]
        names += [str(base + block) for block in np.flatnonzero(np.isin(inside, clash))[:2].tolist()]
    detail = f"blocks {' and '.join(names[:2])} share bytes around {clash[1] * SECTOR:#x}"
    return CorruptImageError(Corruption.BLOCKS_OVERLAP, detail, path=path)


def holds_data_from(row: NDArray[np.uint8], first: int, sectors: int) -> bool:
    """Return whether a bitmap (bytes) has a bit for sector `first` of its block, or for one behind it.

    >>> holds_data_from(np.array([0b00010000], np.uint8), 3, 8), holds_data_from(np.array([0b00010000], np.uint8), 4, 8)
    (True, False)
    """
    return bool(np.unpackbits(row)[max(0, first) : sectors].any())
