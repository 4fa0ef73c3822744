"""Sector bitmaps, many at once: the hot path.

A block's bitmap has one bit a sector, padded to whole sectors; the first sector's is the most significant bit of its
byte in a VHD, the least significant one in a VHDX (`BitOrder`). `bitmaps` below is always uint8 of shape (blocks,
bytes): one row a block. Kernels take arrays and give arrays; what each means is
said again by a loop in the tests. They look at words of 64 sectors, a slab of rows at a time, so that what they
make on the way stays in the processor's cache however many rows there are.

**Source**: docs/reference/vhd.md 1.7.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vhdkit.units import SECTOR, ceil_div

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Words = NDArray[np.uint64]
    Columns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

# Bytes of bitmaps looked at together. Counting keeps an eighth of them, finding runs several times as much; smaller
# slabs pay for the calls (64 KiB: half as slow again; counting 1 MiB: 1.07 of the time), larger ones leave the
# second-level cache.
_COUNT_SLAB = 7 << 18
_RUN_SLAB = 256 << 10
# Edges in a word from which on unpacking its bits is quicker than taking them out one by one: measured equal at 6.
_DENSE = 8
_ONE, _LAST = np.uint64(1), np.uint64(63)
_EVEN_BYTES = np.uint64(0x00FF_00FF_00FF_00FF)


class BitOrder(Enum):
    """Which bit of a byte is that of its first sector."""

    MSB_FIRST = "big"
    LSB_FIRST = "little"


# Each byte with its bits in the other order: 0b0000_0110 becomes 0b0110_0000.
_TURNED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1), axis=1, bitorder="little").ravel()


class HeldSectors(NamedTuple):
    """What a layer holds of some blocks: `bitmaps` of the blocks whose numbers are `rows`, each at most once."""

    rows: NDArray[np.int64]
    bitmaps: NDArray[np.uint8]
    order: BitOrder = BitOrder.MSB_FIRST


def bitmap_size(block_size: int) -> int:
    """Return the bytes that a block's bitmap takes in the file.

    >>> bitmap_size(2 << 20), bitmap_size(512 << 10), bitmap_size(4 << 20)
    (512, 512, 1024)
    """
    bits = block_size // SECTOR
    return ceil_div(bits, 8 * SECTOR) * SECTOR


def runs(bitmaps: NDArray[np.uint8], sectors: int, order: BitOrder = BitOrder.MSB_FIRST) -> Columns:
    """Return the runs of set bits as (row, first sector, sector past the last), in order, all int64.

    `order` says which bit of a byte comes first. Bits from `sectors` on are padding and do not count. A run never
    crosses a row.

    Edges, bits that differ from the one before, are found in words, and only words that have one are looked into:
    rows of zeros or of ones cost a few operations on 64 words.
    """
    width = ceil_div(sectors, 64) + 1  # a word of zeros behind the last sector, so that every run ends
    parts: list[tuple[int, NDArray[np.int64], NDArray[np.int32]]] = []
    for first, words in _slabs(bitmaps, sectors, _RUN_SLAB, order):
        flat = np.zeros(len(words) * width + 1, np.uint64)
        flat[1:].reshape(-1, width)[:, :-1] = words.view(">u8")
        edges = _edges(flat)
        position = _positions(edges)
        if len(position):
            parts.append((first, _row_counts(edges.reshape(-1, width)) >> 1, position.astype(np.int32)))
    # Edges wait as int32, a third of what is returned, so that nothing is held twice.
    total = sum(len(edge) for _, _, edge in parts) // 2
    row, start, stop = (np.empty(total, np.int64) for _ in range(3))
    done = 0
    for first, counts, edge in parts:
        here = slice(done, done := done + len(edge) // 2)
        row[here] = np.repeat(np.arange(first, first + len(counts)), counts)
        base = np.repeat(np.arange(len(counts), dtype=np.int32) * np.int32(64 * width), counts)
        np.subtract(edge[0::2], base, out=start[here])
        np.subtract(edge[1::2], base, out=stop[here])
    return row, start, stop


def set_runs(
    bitmaps: NDArray[np.uint8],
    row: NDArray[np.int64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
) -> None:
    """Set, in place, the bits [start, stop) of the given rows; runs may overlap and come in any order."""
    width = bitmaps.shape[1] * 8
    start, stop = _apart(row * width + start, row * width + stop)
    cuts = np.arange(0, len(bitmaps) + 1, max(1, _RUN_SLAB * 8 // max(1, width)))
    for low, high in zip(cuts.tolist(), [*cuts[1:].tolist(), len(bitmaps)], strict=True):
        # What lies in the slab: runs that begin before it or end behind it are cut to it, and never cross a row.
        head, tail = np.searchsorted(start, [low * width, high * width]).tolist()
        if head == tail:
            continue
        edges = np.zeros(ceil_div((high - low) * width, 64) + 1, np.uint64)
        for position in (start[head:tail] - low * width, stop[head:tail] - low * width):
            np.bitwise_xor.at(edges, position >> 6, _ONE << (_LAST - (position & 63).astype(np.uint64)))
        covered = _prefix_xor(edges).astype(">u8").view(np.uint8)
        bitmaps[low:high] |= covered[: (high - low) * width // 8].reshape(high - low, -1)


def count(bitmaps: NDArray[np.uint8], sectors: int, order: BitOrder = BitOrder.MSB_FIRST) -> NDArray[np.int64]:
    """Return the number of set bits (int64, one a row) below `sectors`."""
    total = np.empty(len(bitmaps), np.int64)
    for first, words in _slabs(bitmaps, sectors, _COUNT_SLAB, order):
        total[first : first + len(words)] = _row_counts(words)
    return total


def owners(
    row_count: int, layers: Sequence[HeldSectors], sectors: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the stretches of `row_count` blocks that have one owner, as (row, first sector, past the last, layer).

    `layers` says, leaf first, for which rows (each at most once) a layer has which bitmaps. The first layer whose bit
    is set owns a sector; where none has, the layer is -1. All int64, in order; the stretches of a row cover it.

    The owner's number is kept as bits in planes of words, so that ten layers cost four planes and not ten merges.
    Memory is one bit a sector and plane: callers go through the disk by windows.
    """
    width = ceil_div(sectors, 64)
    planes = np.zeros((max(1, len(layers).bit_length()), row_count, width), np.uint64)
    seen = np.zeros((row_count, width), np.uint64)
    for number, (rows, bitmaps, order) in enumerate(layers, 1):
        for first, words in _slabs(bitmaps, sectors, _RUN_SLAB, order):
            here = rows[first : first + len(words)]
            own = words.view(">u8") & ~seen[here]
            seen[here] |= own
            for bit in range(number.bit_length()):
                if number >> bit & 1:
                    planes[bit, here] |= own
    cuts = np.zeros(row_count * width, np.uint64)
    for plane in planes:
        cuts |= _edges(np.concatenate(([np.uint64(0)], plane.ravel())))
    _close_rows(cuts.reshape(row_count, width), sectors)
    position = _positions(cuts)
    row = np.repeat(np.arange(row_count), _row_counts(cuts.reshape(row_count, width)))
    start = position - row * (64 * width)
    stop = np.append(start[1:], 0)[: len(start)]
    stop[stop == 0] = sectors
    word, shift = position >> 6, _LAST - (position & 63).astype(np.uint64)
    owner = np.full(len(position), -1, np.int64)
    for bit, plane in enumerate(planes):
        owner += ((plane.ravel()[word] >> shift & _ONE) << np.uint64(bit)).astype(np.int64)
    return row, start, stop, owner


def merge_sectors(out: NDArray[np.uint8], other: NDArray[np.uint8], wanted: NDArray[np.bool_]) -> None:
    """Put, in place, the wanted sectors of `other` into `out`: contiguous bytes, and one bool a sector.

    A sector is one element of 512 bytes, so that a mask costs one decision a sector and not one a byte.
    """
    whole = np.dtype(f"V{SECTOR}")
    np.copyto(out.view(whole), other.view(whole), where=wanted)


def full(block_size: int, rows: int = 1) -> NDArray[np.uint8]:
    """Return `rows` bitmaps with every sector's bit set and the padding clear."""
    sectors = block_size // SECTOR
    bitmaps = np.zeros((rows, bitmap_size(block_size)), np.uint8)
    bitmaps[:, : sectors // 8] = 0xFF
    if sectors % 8:
        bitmaps[:, sectors // 8] = 0xFF << (8 - sectors % 8) & 0xFF
    return bitmaps


def _slabs(bitmaps: NDArray[np.uint8], sectors: int, size: int, order: BitOrder) -> Iterator[tuple[int, Words]]:
    """Yield (first row, words) by slabs of `size` bytes: words as they lie in memory, their padding clear.

    They are a view where they can be, and must not be written to.
    """
    used, width = ceil_div(sectors, 8), ceil_div(sectors, 64)
    rows = max(1, size // max(1, 8 * width))
    is_plain = not sectors % 64 and not bitmaps.shape[1] % 8 and bitmaps.strides[1] == 1
    for first in range(0, len(bitmaps), rows):
        slab = bitmaps[first : first + rows]
        if order is BitOrder.LSB_FIRST:
            slab = _TURNED[slab]
        if not is_plain:
            found, slab = slab, np.zeros((len(slab), 8 * width), np.uint8)
            slab[:, :used] = found[:, :used]
            if sectors % 8:
                slab[:, used - 1] &= 0xFF << (8 - sectors % 8) & 0xFF
        yield first, slab.view(np.uint64)[:, :width]


def _edges(flat: Words) -> Words:
    """Return, for all words but the first, the bits that differ from the one before, sectors from the top bit down."""
    here = flat[1:]
    edges = here >> _ONE
    edges ^= here
    edges ^= flat[:-1] << _LAST
    return edges


def _positions(words: Words) -> NDArray[np.int64]:
    """Return the numbers (int64, ascending) of the set bits of words, from the top bit down.

    Few bits a word are taken out one a round, the lowest of every word that has one left; many are unpacked.
    """
    at = np.flatnonzero(words != 0)
    found = words[at]
    end = np.cumsum(np.bitwise_count(found), dtype=np.int64)
    if len(at) and end[-1] >= _DENSE * len(at):
        return np.flatnonzero(np.unpackbits(words.astype(">u8").view(np.uint8)).view(np.bool_))
    position = np.empty(int(end[-1]) if len(at) else 0, np.int64)
    base, slot = 64 * at + 64, end - 1
    while len(found):
        less = found - _ONE
        position[slot] = base - np.bitwise_count(found ^ less)
        found &= less
        left = np.flatnonzero(found)
        found, base, slot = found[left], base[left], slot[left] - 1
    return position


def _row_counts(words: Words) -> NDArray[np.int64]:
    """Return the number of set bits (int64) of each row of words.

    The counts of eight words are bytes of one; two of them fit into a byte, and all that are added after that into
    lanes of 16 bits. Each step halves the row: a sum along rows of 64 bytes would cost as much as the counting.
    """
    counts = np.bitwise_count(words)
    if not words.size or words.shape[1] % 8 or words.shape[1] >= 1024:  # wider sums would leave their lanes
        plain: NDArray[np.int64] = counts.sum(axis=1, dtype=np.int64)
        return plain
    lanes, left = counts.view(np.uint64).ravel(), words.shape[1] // 8
    if left % 2 == 0:
        lanes, left = lanes[0::2] + lanes[1::2], left // 2
    odd = lanes >> np.uint64(8)
    odd &= _EVEN_BYTES
    lanes &= _EVEN_BYTES
    lanes += odd
    while left % 2 == 0:
        lanes, left = lanes[0::2] + lanes[1::2], left // 2
    total = lanes.reshape(-1, left).sum(axis=1) if left > 1 else lanes
    total *= np.uint64(0x0001_0001_0001_0001)
    total >>= np.uint64(48)
    return total.view(np.int64)


def _prefix_xor(edges: Words) -> Words:
    """Return words whose bit says whether an odd number of edges lies at it or before it."""
    words = edges.copy()
    for shift in (1, 2, 4, 8, 16, 32):
        words ^= words >> np.uint64(shift)
    odd = np.bitwise_xor.accumulate(words & _ONE)
    words[1:] ^= np.uint64(0) - odd[:-1]
    return words


def _apart(start: NDArray[np.int64], stop: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the same stretches in order and without overlap; in general they are so already."""
    if (start[1:] >= stop[:-1]).all() and (start <= stop).all():
        return start, stop
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(stop[order])
    heads = np.flatnonzero(np.concatenate(([True], start[1:] > reach[:-1])))
    return start[heads], reach[np.append(heads[1:], len(start)) - 1]


def _close_rows(cuts: Words, sectors: int) -> None:
    """Let every row begin with a cut and have none behind its last sector."""
    cuts[:, :1] |= _ONE << _LAST
    if sectors % 64:
        cuts[:, -1] &= np.uint64((1 << 64) - (1 << (64 - sectors % 64)))
