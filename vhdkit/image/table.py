"""The BAT of an open image, a window at a time.

A table of 2040 GiB takes 4 to 16 MiB and a chain may have a thousand layers, so no table is ever held whole:
`Table` keeps one window of 64 KiB and reads the next when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.errors import CorruptImageError, Corruption
from vhdkit.format import bat
from vhdkit.format.layout import SECTOR
from vhdkit.image.extent import distinct

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vhdkit.storage.seam import Storage

WINDOW = 16384  # entries; 32 GiB of 2 MiB blocks


class Table:
    """A BAT on a storage: `entries` to read, `assign` to write. Entries are native uint32."""

    def __init__(self, storage: Storage, offset: int, entry_count: int) -> None:
        self._storage = storage
        self._offset = offset
        self._first = -1
        self._window = np.empty(0, np.uint32)
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
        self._first, self._window = -1, np.empty(0, np.uint32)

    def _load(self, base: int) -> NDArray[np.uint32]:
        if base != self._first:
            count = max(0, min(WINDOW, self.entry_count - base))
            raw = bytearray(count * 4)
            got = self._storage.read_into(self._offset + base * 4, raw)
            if got < len(raw):
                detail = f"the BAT ends at {self._offset + base * 4 + got:#x}, in the middle of an entry"
                raise CorruptImageError(Corruption.BAT_OUTSIDE_FILE, detail, path=self._storage.path)
            window = np.full(WINDOW, bat.UNALLOCATED, np.uint32)
            window[:count] = bat.from_bytes(raw)
            self._first, self._window = base, window
        return self._window


def _sector_stretches(changed: NDArray[np.int64], count: int) -> Iterator[tuple[int, int]]:
    """Yield [low, high) of the entries to write: the touched sectors, small gaps between them included."""
    sectors = distinct(changed // bat.ENTRIES_PER_SECTOR)
    breaks = np.flatnonzero(np.diff(sectors) > 8)  # 4 KiB of table: cheaper than another call
    heads = np.concatenate((sectors[:1], sectors[breaks + 1]))
    tails = np.concatenate((sectors[breaks], sectors[-1:]))
    for head, tail in zip(heads.tolist(), tails.tolist(), strict=True):
        yield head * bat.ENTRIES_PER_SECTOR, min((tail + 1) * bat.ENTRIES_PER_SECTOR, count)


def check_placement(
    table: Table,
    *,
    path: str,
    structures: Sequence[tuple[int, int]],
    block_span: int,
    limit: int,
    last: tuple[int, int],
) -> int:
    """Hold every allocated entry against the file and return the end of the last block, 0 without any.

    `structures` are what no block may touch, `block_span` is bitmap plus data, `limit` where blocks must end. `last`
    is (index, bytes needed) of the block that the disk ends inside: its unused tail may be cut off (reference 4.1,
    row 31).

    Raises:
        CorruptImageError: an entry is 0 or points into a structure, or a block reaches past the file's end.

    """
    end = 0
    for base, entries in table.windows():
        blocks = bat.allocated(entries)
        if not len(blocks):
            continue
        at = bat.offsets(entries[blocks])
        for start, stop in structures:
            clash = np.flatnonzero((at < stop) & (at + block_span > start))
            if len(clash):
                where = f"block {base + int(blocks[clash[0]])} lies at {int(at[clash[0]]):#x}"
                detail = f"{where}, on the headers or tables at [{start:#x}, {stop:#x})"
                raise CorruptImageError(Corruption.BLOCK_IN_HEADERS, detail, path=path)
        stops = np.where(blocks + base == last[0], at + last[1], at + block_span)
        high = int(np.argmax(stops))
        if stops[high] > limit:
            where = f"block {base + int(blocks[high])} ends at {int(stops[high]):#x}"
            detail = f"{where}, behind the room for blocks, which ends at {limit:#x}"
            raise CorruptImageError(Corruption.BLOCK_OUTSIDE_FILE, detail, path=path)
        end = max(end, int(at.max()) + block_span)
    return end


def check_overlaps(table: Table, *, path: str, block_span: int) -> None:
    """Refuse a table two of whose blocks share bytes: writing one would change the other.

    Raises:
        CorruptImageError: naming the two blocks.

    """
    placed = [entries[bat.allocated(entries)] for _, entries in table.windows()]
    sectors = np.concatenate(placed) if placed else np.empty(0, np.uint32)
    del placed
    clash = bat.first_overlap(sectors, block_span // SECTOR)
    if clash is None:
        return
    names = [
        str(base + int(block)) for base, entries in table.windows() for block in np.flatnonzero(np.isin(entries, clash))
    ]
    detail = f"blocks {' and '.join(names[:2])} share bytes around {clash[1] * SECTOR:#x}"
    raise CorruptImageError(Corruption.BLOCKS_OVERLAP, detail, path=path)
