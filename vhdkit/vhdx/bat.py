"""BAT entries as arrays: 64 bits each, three of them a state, the upper 44 an offset in MiB.

After each `ratio` entries of payload blocks stands that of the bitmap block that describes their sectors; the blocks of
one bitmap block are a chunk.

**Source**: docs/reference/vhdx.md 1.8, 1.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.units import ceil_div
from vhdkit.vhdx.constants import CHUNK_SECTORS

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENTRY_SIZE = 8
_RESERVED = np.uint64(0xF_FFF8)


class State(IntEnum):
    """What an entry says of its block; 4 and 5 are no states."""

    NOT_PRESENT = 0
    UNDEFINED = 1
    ZERO = 2
    UNMAPPED = 3
    FULLY_PRESENT = 6
    PARTIALLY_PRESENT = 7


BITMAP_PRESENT = State.FULLY_PRESENT


@dataclass(frozen=True, slots=True)
class BatLayout:
    """How many entries a BAT has, and which is whose.

    >>> four = BatLayout(block_count=6, ratio=4, has_bitmaps=True)
    >>> four.index(3), four.index(4), four.bitmap_index(0), four.bitmap_index(1), four.entry_count
    (3, 5, 4, 9, 10)
    """

    block_count: int
    ratio: int
    has_bitmaps: bool

    @classmethod
    def of(cls, disk_size: int, block_size: int, sector_size: int, *, has_bitmaps: bool) -> BatLayout:
        """Return the layout of a disk; sizes in bytes.

        >>> BatLayout.of(10 << 30, 1 << 20, 512, has_bitmaps=True).entry_count
        12291
        """
        return cls(ceil_div(disk_size, block_size), CHUNK_SECTORS * sector_size // block_size, has_bitmaps)

    @property
    def entry_count(self) -> int:
        """Entries that are looked at: those behind a child's last block but before its bitmap are there as well."""
        if self.has_bitmaps:
            return ceil_div(self.block_count, self.ratio) * (self.ratio + 1)
        return self.block_count + (self.block_count - 1) // self.ratio

    def index(self, block: int) -> int:
        """Return which entry is a block's."""
        return block + block // self.ratio

    def blocks_of(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the blocks of entries that are no bitmap blocks'."""
        return index - index // (self.ratio + 1)

    def bitmap_index(self, chunk: int) -> int:
        """Return which entry is that of a chunk's bitmap block."""
        return chunk * (self.ratio + 1) + self.ratio

    def bitmap_slice(self, base: int) -> slice:
        """Return where entries of bitmap blocks are among those from `base` on."""
        return slice((self.ratio - base) % (self.ratio + 1), None, self.ratio + 1)

    def is_bitmap(self, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which entries are those of bitmap blocks."""
        found: NDArray[np.bool_] = index % (self.ratio + 1) == self.ratio
        return found


def entries_from(raw: bytes | bytearray) -> NDArray[np.uint64]:
    """Return raw entries as numbers."""
    return np.frombuffer(raw, "<u8").astype(np.uint64)


def states(entries: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return the states of entries, each of 0 to 7.

    >>> states(np.array([0x500007, 2], np.uint64)).tolist()
    [7, 2]
    """
    return (entries & np.uint64(7)).astype(np.uint8)


def are_no_states(states: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which states of payload blocks are none that the format has."""
    found: NDArray[np.bool_] = (states == 4) | (states == 5)
    return found


def mebibytes(entries: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the offsets of entries in MiB: below 2**44, so that bytes could pass 64 bits.

    >>> mebibytes(np.array([0x500007, 2], np.uint64)).tolist()
    [5, 0]
    """
    return (entries >> np.uint64(20)).astype(np.int64)


def have_reserved_bits(entries: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which entries have bits set that mean nothing."""
    found: NDArray[np.bool_] = (entries & _RESERVED) != 0
    return found
