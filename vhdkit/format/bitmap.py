"""Sector bitmaps, many at once: the hot path.

A block's bitmap has one bit a sector, most significant bit first, padded to whole sectors. `bitmaps` below is
always uint8 of shape (blocks, bytes): one row a block. Kernels take arrays and give arrays; what each means is
said again by a loop in the tests.

**Source**: reference 1.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.format.layout import SECTOR

if TYPE_CHECKING:
    from numpy.typing import NDArray


def bitmap_size(block_size: int) -> int:
    """Return the bytes that a block's bitmap takes in the file.

    >>> bitmap_size(2 << 20), bitmap_size(512 << 10), bitmap_size(4 << 20)
    (512, 512, 1024)
    """
    bits = block_size // SECTOR
    return -(-bits // (8 * SECTOR)) * SECTOR


def runs(bitmaps: NDArray[np.uint8], sectors: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the runs of set bits as (row, first sector, sector past the last), in order, all int64.

    Bits from `sectors` on are padding and do not count. A run never crosses a row.

    Edges are found in packed 64-bit words (a bit that differs from the one before it), and only the words that
    have an edge are unpacked: rows of zeros or of ones cost one exclusive-or a word.
    """
    rows = len(bitmaps)
    word_count = sectors // 64 + 1  # at least one zero bit behind the last sector, so that every run ends
    packed = np.zeros((rows, word_count * 8), np.uint8)
    used = -(-sectors // 8)
    packed[:, :used] = bitmaps[:, :used]
    if sectors % 8:
        packed[:, used - 1] &= 0xFF << (8 - sectors % 8) & 0xFF
    words = packed.view(">u8").astype(np.uint64)
    edges = words ^ (words >> np.uint64(1))
    edges[:, 1:] ^= words[:, :-1] << np.uint64(63)
    row, word = np.nonzero(edges)
    bits = np.unpackbits(edges[row, word].astype(">u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="big")
    which, bit = np.nonzero(bits)
    position = word[which] * 64 + bit
    return row[which][0::2], position[0::2], position[1::2]


def set_runs(
    bitmaps: NDArray[np.uint8],
    row: NDArray[np.int64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
) -> None:
    """Set, in place, the bits [start, stop) of the given rows; runs may touch or overlap."""
    bits = bitmaps.shape[1] * 8
    # +1 where a run starts and -1 where it stops; the running sum counts the runs that cover a bit.
    steps = np.zeros((len(bitmaps), bits + 1), np.int16)
    np.add.at(steps, (row, start), 1)
    np.add.at(steps, (row, stop), -1)
    covered = np.cumsum(steps[:, :-1], axis=1, dtype=np.int16) > 0
    bitmaps |= np.packbits(covered, axis=1, bitorder="big")


def count(bitmaps: NDArray[np.uint8], sectors: int) -> NDArray[np.int64]:
    """Return the number of set bits (int64, one a row) below `sectors`."""
    whole, rest = divmod(sectors, 8)
    total: NDArray[np.int64] = np.bitwise_count(bitmaps[:, :whole]).sum(axis=1, dtype=np.int64)
    if rest:
        total += np.bitwise_count(bitmaps[:, whole] & (0xFF << (8 - rest) & 0xFF))
    return total


def full(block_size: int, rows: int = 1) -> NDArray[np.uint8]:
    """Return `rows` bitmaps with every sector's bit set and the padding clear."""
    sectors = block_size // SECTOR
    bitmaps = np.zeros((rows, bitmap_size(block_size)), np.uint8)
    bitmaps[:, : sectors // 8] = 0xFF
    if sectors % 8:
        bitmaps[:, sectors // 8] = 0xFF << (8 - sectors % 8) & 0xFF
    return bitmaps
