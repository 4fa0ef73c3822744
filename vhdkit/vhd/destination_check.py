"""Whether a file that is merged into is as far as its journal says: its end, its table, and where blocks lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.disk.image import DiskKind
from vhdkit.vhd.metadata import FooterPlace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhdkit.vhd.growth_plan import Growth
    from vhdkit.vhd.open_image import Vhd
    from vhdkit.vhd.sparse_image import Placement, SparseImage

_ENTRIES = 1 << 14


def is_reserved(destination: Vhd, file_end: int) -> bool:
    """Whether the file has the size and the footer that making room leaves it with."""
    metadata = destination.metadata
    is_ended = metadata.footer_place is FooterPlace.TRAILING and metadata.footer_start == file_end
    return destination.kind is DiskKind.FIXED or is_ended


def may_grow(destination: SparseImage, growth: Growth, places: NDArray[np.int64], *, grown: bool) -> bool:
    """Whether a table may be made longer as planned: it is as it was before, as it is to be, or on the way.

    If it is said to be `grown`, all of it must be done. No block may lie in the way but those that are to be moved, and
    those nowhere but in their old places or their new ones.
    """
    header = destination.header
    if header.max_table_entries not in {growth.old_count, growth.entry_count}:
        return False
    span, moving = destination.block_span, growth.blocks
    # One by one: a journal may name any blocks, in any order.
    lie_at = [destination.block_offsets(moving[number : number + 1])[0] for number in range(len(moving))]
    is_moved = np.array(lie_at, np.int64) == places if len(moving) else np.ones(0, np.bool_)
    if grown:
        is_placed = all(header.locators[slot].data_offset == at for slot, at in growth.locator_offsets.items())
        return header.max_table_entries == growth.entry_count and is_placed and bool(is_moved.all())
    for blocks, at in destination.windows():
        in_the_way = blocks[(at < growth.end) & (at + span > header.table_offset)]
        if not np.isin(in_the_way, moving[~is_moved]).all():
            return False
    return True


def linked_as_planned(destination: Vhd, added: NDArray[np.uint32], place: Placement, rank: int, mark: int) -> bool:
    """Whether the added blocks lie where they were to be, those below `mark` certainly, the others if at all.

    A block that was added otherwise since would share its place with one that is still to come.
    """
    if destination.kind is DiskKind.FIXED or not len(added):
        return True
    size = destination.block_size
    for first in range(0, len(added), _ENTRIES):
        blocks = added[first : first + _ENTRIES].astype(np.int64)
        at = destination.block_offsets(blocks)
        is_placed = at == place.offsets(rank + first + np.arange(len(blocks)))
        may_lack = (at < 0) & (blocks * size + size > mark)
        if not (is_placed | may_lack).all():
            return False
    return True


def is_room_free(destination: Vhd, own: NDArray[np.int64], first: int) -> bool:
    """Whether no block lies where the merge's were to be, from the file's offset `first` on, but its own.

    Another program that writes to the destination puts its blocks there as well: behind the last one that it finds.
    """
    if destination.kind is DiskKind.FIXED:
        return True
    own = np.unique(own)
    for blocks, at in destination.windows():
        behind = blocks[at + destination.block_span > first]
        if not np.isin(behind, own, assume_unique=True).all():
            return False
    return True
