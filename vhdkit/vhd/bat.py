"""The block allocation table as one numpy array.

An entry is the file sector (offset / 512) of a block's sector bitmap, its data right behind; all ones means that
the block is not allocated. On disk the entries are 32-bit big-endian; here they are native uint32.

**Source**: docs/reference/vhd.md 1.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.units import SECTOR

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNALLOCATED = 0xFFFF_FFFF
ENTRIES_PER_SECTOR = SECTOR // 4


def from_bytes(raw: bytes | bytearray) -> NDArray[np.uint32]:
    """Return the entries (uint32) in a stretch of the table."""
    return np.frombuffer(raw, dtype=">u4").astype(np.uint32)


def to_bytes(entries: NDArray[np.uint32]) -> bytes:
    """Return the table's bytes, padded with ones to whole sectors as Windows does."""
    padding = -len(entries) % ENTRIES_PER_SECTOR
    return entries.astype(">u4").tobytes() + b"\xff" * (padding * 4)


def allocated(entries: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the indices (int64, ascending) of the entries that are allocated."""
    return np.flatnonzero(entries != UNALLOCATED).astype(np.int64, copy=False)


def offsets(entries: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the byte offsets (int64) of allocated entries' bitmaps; widened first, uint32 would wrap."""
    return entries.astype(np.int64) * SECTOR


def first_overlap(sectors: NDArray[np.uint32], span: int) -> tuple[int, int] | None:
    """Return the entries of two blocks of `span` sectors that share bytes, or None; sorts its argument in place.

    O(n log n), and five bytes of memory an entry: a table may have millions.
    """
    sectors.sort()
    clashes = np.flatnonzero(sectors[1:] - sectors[:-1] < span)
    if not len(clashes):
        return None
    at = int(clashes[0])
    return int(sectors[at]), int(sectors[at + 1])
