"""What the undo image of a merge will hold: a child of the destination whose view is the destination as it was.

`merging.run.undo_image` makes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.disk import extents, sector_bitmap
from vhdkit.disk.extents import Extents, Kind
from vhdkit.disk.image import DiskKind, Image
from vhdkit.errors import JournalError
from vhdkit.formats import as_writable
from vhdkit.merging.plan.destination_pieces import PAGE_BYTES, written_pages
from vhdkit.merging.plan.plan import UndoPlan, missing_blocks
from vhdkit.storage.handle import closing_on_error
from vhdkit.units import ceil_div, round_up
from vhdkit.vhd.constants import DEFAULT_BLOCK_SIZE, FOOTER_SIZE
from vhdkit.vhd.create import empty_child_end
from vhdkit.vhd.sparse_image import Placement, SparseImage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from vhdkit.disk.image import WritableImage


_BITMAP_BYTES = 2 << 20


def plan_undo(
    path: str,
    unique_id: bytes,
    destination: WritableImage,
    size_before: int,
    window_writes: Iterable[tuple[Extents, Extents, int]],
    existing: SparseImage | None,
) -> UndoPlan:
    """Return what the undo image will take; `existing` is what an earlier run has made of it."""
    block_size = destination.block_size or DEFAULT_BLOCK_SIZE
    found, last, last_held = [np.empty(0, np.uint32)], -1, -1
    # What a file takes that is made now, and holds all of it.
    taken = round_up(empty_child_end(ceil_div(size_before, block_size)), PAGE_BYTES) + PAGE_BYTES
    # A bitmap ends at a page, as the footer begins at one. The rest of a new file is written from its beginning.
    bitmap_size = sector_bitmap.bitmap_size(block_size)
    bitmap_space = round_up(bitmap_size, PAGE_BYTES)
    for writes, wipes, _ in window_writes:
        touched = affected(writes, wipes, size_before)
        if not len(touched):
            continue
        first, stop = int(touched.start[0]) // block_size, ceil_div(int(touched.stop[-1]), block_size)
        is_lacking = np.ones(stop - first, np.bool_)
        if existing is not None:
            is_lacking = existing.block_offsets(np.arange(first, stop)) < 0
        low, high = written_pages(touched, block_size)
        taken += int((high - low).sum())
        held = extents.distinct(low // block_size)
        held = held[~is_lacking[held - first] & (held > last_held)]
        if len(held):
            last_held = int(held[-1])
            taken += len(held) * bitmap_space
        missing = missing_blocks(touched, is_lacking, first, block_size)
        missing = missing[missing > last]
        if len(missing):
            last = int(missing[-1])
            found.append(missing.astype(np.uint32))
    blocks: NDArray[np.uint32] = np.concatenate(found)
    taken += len(blocks) * bitmap_space
    if existing is not None:
        size, before = existing.file_end_for(len(blocks)) + FOOTER_SIZE, existing.storage.size()
        # Its length says nothing: where an earlier run was cut off before all space was taken it is holes.
        space = max(0, min(size, taken) - existing.storage.allocated_size)
    else:
        free = empty_child_end(ceil_div(size_before, block_size))
        last_at = Placement.behind(free, block_size).at(len(blocks) - 1)
        size, before = (last_at + bitmap_size + block_size if len(blocks) else free) + FOOTER_SIZE, 0
        space = min(size, taken)
    return UndoPlan(
        path=path,
        unique_id=unique_id,
        block_size=block_size,
        blocks=blocks,
        size=size,
        size_before=before,
        space=space,
    )


def affected(writes: Extents, wipes: Extents, size: int) -> Extents:
    """Return what of a disk of `size` bytes is about to be overwritten."""
    if not len(wipes):
        return extents.clipped(writes, 0, size)
    both = extents.concatenate([writes, wipes])
    return extents.clipped(both.take(np.argsort(both.start, kind="stable")), 0, size)


def without_held(wanted: Extents, undo: SparseImage) -> Extents:
    """Return what of some extents, which ascend, the undo image does not hold."""
    start, stop = int(wanted.start[0]), int(wanted.stop[-1])
    held = undo.resolve(start, stop - start).of(Kind.DATA)
    if not len(held):
        return wanted
    # The complement of what is held, within the window.
    low, high = np.append(start, held.stop), np.append(held.start, stop)
    return extents.intersect(wanted, low[low < high], high[low < high])


def bitmaps_of(image: SparseImage) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield (indices, bitmap offsets, bitmaps) of the blocks of an image, so many that their bitmaps take 2 MiB."""
    step = max(1, _BITMAP_BYTES // image.bitmap_size)
    for blocks, at in image.windows():
        for first in range(0, len(blocks), step):
            some = at[first : first + step]
            yield blocks[first : first + step], some, image.read_bitmaps(some)


def as_undo_image(opened: Image) -> SparseImage:
    """Return an open image as one that can be an undo image.

    Raises:
        JournalError: it has no parent whose sectors it could keep.

    """
    with closing_on_error(opened):
        image = as_writable(opened)
    if image.kind is DiskKind.FIXED or image.parent is None:
        image.close()
        raise JournalError("it is no undo image: it has no parent that was merged into", path=image.path)
    return image
