"""Step 3 of the order of writes: room for everything that a merge will write, taken and clean before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.disk.image import DiskKind
from vhdkit.merging.plan.destination_pieces import DestinationBlocks
from vhdkit.merging.plan.evidence import may_be_others

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.journal.merge_journal import Journal
    from vhdkit.merging.run.locked_files import MergeFiles


def fill_holes(files: MergeFiles, check: Callable[[], None]) -> None:
    """Take the space of the destination's holes that the merge will fill; `check` is called between two of them."""
    plan, storage = files.plan, files.destination.storage
    if storage.allocated_size >= storage.size():
        return
    blocks = DestinationBlocks(files.destination, plan.blocks_added, plan.place, plan.blocks_moved)
    for writes, wipes, _ in files.window_writes(plan.mark):
        for offset, length in blocks.places_in_old_blocks(writes, wipes):
            check()
            storage.reserve(offset, length)


def extend_destination(files: MergeFiles) -> None:
    """Take the space of the blocks to come, zeros, and put the footer behind it."""
    plan, destination = files.plan, files.destination
    if destination.kind is DiskKind.FIXED:
        return
    count = plan.blocks_moved + len(plan.blocks_added)
    used_end = plan.place.at(count) if count else destination.data_end
    destination.extend_to(plan.file_end, used_end, reserve=True, sync=True)
    # What lay where the blocks go is zeros now: said only when that is durable, for it is never done again.
    destination.sync()


def clean_room(files: MergeFiles, journal: Journal, check: Callable[[], None]) -> None:
    """Write zeros where blocks are still to come, unless an earlier run did so and copied these very sources there.

    A file that had its new size before may have been put back as it was then, with other bytes there; and what was
    copied from a source that was put back as it was earlier may be a sector that it no longer holds.
    """
    plan, destination = files.plan, files.destination
    if destination.kind is DiskKind.FIXED:
        return
    is_longer = journal.begin.destination.size < plan.destination_size
    if is_longer and not may_be_others(journal, files.merged.sources):
        return
    storage, span = destination.storage, destination.block_span
    for rank, block in enumerate(plan.blocks_added.tolist(), plan.blocks_moved):
        at = plan.place.at(rank)
        is_linked = destination.block_offsets(np.array([block]))[0] >= 0
        if not is_linked and storage.hole_bytes(at, span) < span:
            check()
            destination.write_at(at, bytes(span))
