"""Writing sectors into one image, allocating blocks as needed.

**Order** of one call, each step durable before the next when `sync` is asked for; what a power cut leaves:

 1. footer at the new end, in a step (a longer file, unused space; where the length survived and the footer did not, the
    step says so, the copy at offset 0 serves, and the next writer puts the footer there; see `footer_update`)
 2. bitmaps and data of new blocks, data of old ones (new blocks unreferenced; old sectors old or new)
 3. BAT entries of new blocks, bitmap bits of old ones (each sector old or new)

**Source**: docs/reference/vhd.md 3.4, B11: all ones where a dynamic disk gets a block, as Windows does, exactly the
written sectors in a differencing one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.disk import sector_bitmap
from vhdkit.disk.image import DiskKind
from vhdkit.units import SECTOR, ceil_div
from vhdkit.vhd import bat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vhdkit.disk.written_sectors import WrittenSectors
    from vhdkit.vhd.sparse_image import SparseImage

# Bits of bitmaps that are looked at together.
_BATCH_BITS = 2 << 20


def write_blocks(image: SparseImage, offset: int, view: memoryview, *, sync: bool) -> None:
    """Write whole sectors at a byte offset of the disk, and allocate the blocks that it lacks."""
    size = image.block_size
    blocks = np.arange(offset // size, ceil_div(offset + len(view), size), dtype=np.int64)
    entries = image.table.entries(int(blocks[0]), int(blocks[-1]) + 1).copy()
    at = bat.offsets(entries)
    missing = np.flatnonzero(entries == bat.UNALLOCATED)
    if len(missing):
        at[missing] = image.placement(len(missing)).offsets(np.arange(len(missing)))
        image.extend(len(missing), reserve=False, sync=sync, folder=image.folder if sync else None)
    low = np.maximum(blocks * size, offset)
    high = np.minimum((blocks + 1) * size, offset + len(view))
    for block, start, end, where in zip(blocks.tolist(), low.tolist(), high.tolist(), at.tolist(), strict=True):
        target = where + image.bitmap_size + start - block * size
        image.write_at(target, view[start - offset : end - offset])
    start, stop = (low - blocks * size) // SECTOR, (high - blocks * size) // SECTOR
    begin_blocks(image, at[missing], start[missing], stop[missing])
    _barrier(image, sync=sync)
    old = np.flatnonzero(entries != bat.UNALLOCATED)
    set_bits(image, at[old], np.arange(len(old)), start[old], stop[old])
    if len(missing):
        link_blocks(image, blocks[missing], at[missing])
    _barrier(image, sync=sync)


def begin_blocks(image: SparseImage, at: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64]) -> None:
    """Write the bitmaps of new blocks of which sectors [start, stop) are written; nothing refers to them yet."""
    for offset, first, last in zip(at.tolist(), start.tolist(), stop.tolist(), strict=True):
        row = sector_bitmap.full(image.block_size)
        if image.is_differencing:
            row[:] = 0
            sector_bitmap.set_runs(row, np.array([0]), np.array([first]), np.array([last]))
        image.write_at(offset, row.tobytes())


def set_bits(
    image: SparseImage,
    at: NDArray[np.int64],
    row: NDArray[np.int64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    *,
    again: bool = False,
) -> None:
    """Set the bits of sectors [start, stop) in the blocks whose bitmaps lie at `at[row]`; others stay untouched.

    Bitmaps that have them all already are written only if `again`.
    """
    bitmaps = image.read_bitmaps(at)
    before = bitmaps.copy()
    sector_bitmap.set_runs(bitmaps, row, start, stop)
    for index in np.flatnonzero((bitmaps != before).any(axis=1) | again).tolist():
        image.write_at(int(at[index]), bitmaps[index].tobytes())


def begin_written(image: SparseImage, written: WrittenSectors) -> None:
    """Write the bitmaps of new blocks: nothing refers to them before their BAT entries."""
    _, at, is_new, row, start, stop = written
    fresh = is_new[row]
    for chosen, rows in _batches(image, row[fresh], len(at)):
        if image.kind is DiskKind.DIFFERENCING:
            bitmaps = np.zeros((rows.stop - rows.start, image.bitmap_size), np.uint8)
            local = row[fresh][chosen] - rows.start
            sector_bitmap.set_runs(bitmaps, local, start[fresh][chosen], stop[fresh][chosen])
        else:
            bitmaps = sector_bitmap.full(image.block_size, rows.stop - rows.start)
        for index in range(rows.start, rows.stop):
            if is_new[index]:
                image.write_at(int(at[index]), bitmaps[index - rows.start].tobytes())


def commit_written(image: SparseImage, written: WrittenSectors, *, again: bool) -> None:
    """Set the bits of sectors in old blocks, then write the BAT entries of new ones; with `again` those of all."""
    blocks, at, is_new, row, start, stop = written
    old = ~is_new[row]
    for chosen, rows in _batches(image, row[old], len(blocks)):
        local = row[old][chosen] - rows.start
        set_bits(image, at[rows], local, start[old][chosen], stop[old][chosen], again=again)
    if is_new.any():
        link_blocks(image, blocks[is_new], at[is_new])
    if again and not is_new.all():
        link_blocks(image, blocks[~is_new], at[~is_new])


def _batches(image: SparseImage, row: NDArray[np.int64], count: int) -> Iterator[tuple[slice, slice]]:
    """Yield (slice of `row`, which ascends, slice of the blocks) so that a batch's bits fit into memory."""
    if not count:
        return
    size = max(1, _BATCH_BITS // (image.bitmap_size * 8))
    for first in range(0, count, size):
        low, high = np.searchsorted(row, [first, first + size]).tolist()
        if low < high:
            yield slice(low, high), slice(first, min(count, first + size))


def link_blocks(image: SparseImage, blocks: NDArray[np.int64], at: NDArray[np.int64]) -> None:
    """Write the BAT entries of new blocks (ascending): from here on the disk has them."""
    image.assign(blocks, at)


def _barrier(image: SparseImage, *, sync: bool) -> None:
    if sync:
        image.sync()
