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

    Edges, bits that differ from the one before, are found in packed bytes, and only bytes that have one are
    unpacked: rows of zeros or of ones cost three operations on a byte.
    """
    used = -(-sectors // 8)
    width = used + 1  # a byte of zeros behind the last sector, so that every run ends
    packed = np.zeros((len(bitmaps), width), np.uint8)
    packed[:, :used] = bitmaps[:, :used]
    if sectors % 8:
        packed[:, used - 1] &= 0xFF << (8 - sectors % 8) & 0xFF
    edges: NDArray[np.uint8] = packed ^ (packed >> np.uint8(1))
    edges[:, 1:] ^= packed[:, :-1] << np.uint8(7)
    byte = np.flatnonzero(edges.ravel() != 0)
    which, bit = np.nonzero(np.unpackbits(edges.ravel()[byte].reshape(-1, 1), axis=1, bitorder="big"))
    row, column = np.divmod(byte[which], width)
    position = column * 8 + bit
    return row[0::2], position[0::2], position[1::2]


def set_runs(
    bitmaps: NDArray[np.uint8],
    row: NDArray[np.int64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
) -> None:
    """Set, in place, the bits [start, stop) of the given rows; up to 32,767 runs may overlap at one bit."""
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
