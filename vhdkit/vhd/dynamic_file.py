"""A new dynamic image of which the payload is written first.

Each block that holds something gets the next place behind the table; footers, header, table and bitmaps follow when it
is known which blocks those are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.disk import extents, sector_bitmap
from vhdkit.errors import VhdError
from vhdkit.units import SECTOR, ceil_div
from vhdkit.vhd import bat, constants
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.create import TABLE_OFFSET, table_end_for
from vhdkit.vhd.header import DynamicHeader
from vhdkit.vhd.sparse_image import Placement

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhdkit.storage.protocols import Storage
    from vhdkit.vhd.footer import Footer

_TABLE_SLICE = 65536


def file_size_of(virtual_size: int, block_size: int, block_count: int) -> int:
    """Return the file size of a dynamic image with `block_count` blocks."""
    table_end = table_end_for(ceil_div(virtual_size, block_size))
    return (Placement.behind(table_end, block_size).at(block_count) if block_count else table_end) + FOOTER_SIZE


class DynamicFile:
    """The places of a new dynamic image's blocks, in the order in which they are asked for, and its structures.

    `piece_bytes` is how much of the disk is copied at once, at most a block; `path` is what the file will be called.
    """

    def __init__(self, storage: Storage, footer: Footer, block_size: int, *, path: str, piece_bytes: int) -> None:
        entry_count = ceil_div(footer.current_size, block_size)
        self.piece_bytes = min(piece_bytes, block_size)
        self._storage, self._footer, self._block_size, self._path = storage, footer, block_size, path
        self._entries = np.full(entry_count, bat.UNALLOCATED, np.uint32)
        self._count = 0
        self._bitmap_size = sector_bitmap.bitmap_size(block_size)
        self._table_end = table_end_for(entry_count)
        self._place = Placement.behind(self._table_end, block_size)
        storage.truncate(self._place.first)

    @property
    def end(self) -> int:
        """Where the last block ends that has a place, 0 if none has."""
        return self._place.at(self._count - 1) + self._bitmap_size + self._block_size if self._count else 0

    def offsets(self, start: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where positions of the disk (ascending) lie in the file; their blocks get places."""
        block = start // self._block_size
        found = extents.distinct(block)
        for number in found[self._entries[found] == bat.UNALLOCATED].tolist():
            self._add(number)
        return self._entries[block].astype(np.int64) * SECTOR + self._bitmap_size + start % self._block_size

    def _add(self, number: int) -> None:
        at = self._place.at(self._count)
        if at // SECTOR >= bat.UNALLOCATED:
            raise VhdError("the file would pass 2 TiB, which a BAT cannot address", path=self._path)
        self._entries[number] = at // SECTOR
        self._count += 1

    def write_structures(self) -> None:
        """Write all but the payload, which is there: bitmaps of ones, footers, header and table."""
        storage, footer = self._storage, self._footer.to_bytes()
        ones = sector_bitmap.full(self._block_size).tobytes()
        for rank in range(self._count):
            storage.write_at(self._place.at(rank), ones)
        end = file_size_of(self._footer.current_size, self._block_size, self._count) - FOOTER_SIZE
        storage.truncate(end)
        storage.write_at(0, footer)
        header = DynamicHeader(
            table_offset=TABLE_OFFSET, max_table_entries=len(self._entries), block_size=self._block_size
        )
        storage.write_at(FOOTER_SIZE, header.to_bytes())
        self._write_table()
        storage.write_at(end, footer)

    def _write_table(self) -> None:
        entries = self._entries
        for first in range(0, len(entries), _TABLE_SLICE):
            self._storage.write_at(TABLE_OFFSET + first * 4, bat.to_bytes(entries[first : first + _TABLE_SLICE]))
        padding = TABLE_OFFSET + ceil_div(len(entries), bat.ENTRIES_PER_SECTOR) * SECTOR
        self._storage.write_at(padding, b"\xff" * (self._table_end - padding))


def check_block_count(virtual_size: int, block_size: int, path: str) -> None:
    """Refuse a disk that takes more blocks than a table has entries.

    Raises:
        VhdError: it does.

    """
    entry_count = ceil_div(virtual_size, block_size)
    if entry_count > constants.MAX_TABLE_ENTRIES:
        raise VhdError(f"{entry_count} blocks of {block_size} bytes are too many", path=path)
