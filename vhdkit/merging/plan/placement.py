"""Where the bytes of a merge go: which sectors, which blocks are added, and where in the file.

Decided afresh, or as an earlier run of the same merge has decided it, so that both end in the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.chain.resolve_layers import resolve, windows
from vhdkit.disk import sector_bitmap
from vhdkit.disk.image import DiskKind
from vhdkit.errors import MergeError, ReadOnlyImageError, VhdError
from vhdkit.findings import Advice
from vhdkit.formats import as_writable
from vhdkit.merging.plan.evidence import has_what_sources_hold, is_untouched
from vhdkit.merging.plan.plan import Resume, Target, choose, missing_blocks
from vhdkit.merging.plan.resume import plan_digest
from vhdkit.storage.fast_paths import FastPath, is_used
from vhdkit.units import ceil_div
from vhdkit.vhd.destination_check import is_reserved, is_room_free, linked_as_planned, may_grow
from vhdkit.vhd.growth_plan import Growth, growth_refusals, plan_growth
from vhdkit.vhd.sparse_image import Placement, SparseImage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vhdkit.chain.merged_layers import MergedLayers
    from vhdkit.disk.extents import Extents
    from vhdkit.disk.image import Image
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.vhd.open_image import Vhd


USE_NEW_FILE = Advice.NEW_FILE.hint("use {}")
# So many bytes of bitmaps are looked at together, of each layer.
_COUNTED_BYTES = 2 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """The payload in bytes, the blocks that the destination gets (uint32), and where they and the footer will lie.

    `digest` is that of everything that decides which bytes go where. Up to `read_back` the destination was read, and
    has what the sources hold. `obstacles` are what stands in the way.
    """

    payload: int
    added: NDArray[np.uint32]
    growth: Growth | None
    place: Placement
    file_end: int
    digest: str
    read_back: int = 0
    obstacles: tuple[VhdError, ...] = ()

    @property
    def moved(self) -> int:
        """The blocks that make way for a longer table; they lie before those that are added."""
        return 0 if self.growth is None else len(self.growth.blocks)


def window_writes(merged: MergedLayers, target: Target, start: int = 0) -> Iterator[tuple[Extents, Extents, int]]:
    """Yield (writes, wipes, end of the window) of a merge, a window of the disk at a time."""
    for first, stop in windows(merged.family, start, merged.size):
        yield *choose(resolve(merged.sources, first, stop), target), stop


def target_of(merged: MergedLayers, size: int | None = None) -> Target:
    """Return what choosing sectors needs to know of the destination; `size` is its disk's before."""
    destination = as_destination(merged.destination)
    below = merged.remaining[1:]
    size = destination.size if size is None else size
    return Target(kind=destination.kind, size=size, parent_size=below[0].size if below else 0)


def as_destination(layer: Image) -> Vhd:
    """Return a layer as one that can be merged into.

    Raises:
        MergeError: its format is not written.

    """
    if layer.kind is DiskKind.RAW:
        raise MergeError("it is a raw file, which is not merged into", path=layer.path, hint=USE_NEW_FILE)
    try:
        return as_writable(layer)
    except ReadOnlyImageError as error:
        raise MergeError(error.message, path=layer.path, hint=USE_NEW_FILE) from error


def lay_out(merged: MergedLayers, target: Target, journal: Journal | None) -> tuple[Layout, Resume | None]:
    """Decide where everything goes: where an earlier run has put it, if its journal still holds."""
    if journal is None:
        return _fresh(merged, target), None
    try:
        laid = _as_before(merged, target, journal)
    except (KeyError, TypeError, ValueError, OverflowError):
        laid = None
    if laid is None:
        return _fresh(merged, target, begun=True), Resume.RESTARTS
    return laid, Resume.CONTINUES


def _as_before(merged: MergedLayers, target: Target, journal: Journal) -> Layout | None:
    """Return what an earlier run has decided, None if the files do not show that it did so.

    The sources' times decide nothing: below the mark what they hold now is held against the destination, and what is
    behind it is copied from them as they are now.
    """
    begin, destination = journal.begin, as_destination(merged.destination)
    if journal.merged:
        return None
    place = Placement(begin.first, begin.stride)
    payload, added = _measure(merged, target, place.at(begin.moved))
    growth = Growth.from_record(begin.growth) if begin.growth is not None else None
    digest = plan_digest(merged.sources, destination, place, growth, added, (target.size, merged.size, begin.file_end))
    if digest != begin.plan or not _is_as_journaled(destination, journal, place, added, growth):
        return None
    read_back = 0
    if not is_untouched(journal, merged.sources, destination):
        if not has_what_sources_hold(merged, window_writes(merged, target), journal.mark):
            return None
        read_back = journal.mark
    return Layout(
        payload=payload,
        added=added,
        growth=growth,
        place=place,
        file_end=begin.file_end,
        digest=digest,
        read_back=read_back,
    )


def _is_as_journaled(
    destination: Vhd, journal: Journal, place: Placement, added: NDArray[np.uint32], growth: Growth | None
) -> bool:
    """Whether the destination's size, footer and table are what `reserved`, `grown` and the mark promise."""
    begin = journal.begin
    if journal.reserved and not is_reserved(destination, begin.file_end):
        return False
    if growth is not None:
        places = place.offsets(np.arange(begin.moved))
        if destination.kind is DiskKind.FIXED or not may_grow(destination, growth, places, grown=journal.grown):
            return False
    own = added.astype(np.int64) if growth is None else np.concatenate([added.astype(np.int64), growth.blocks])
    return is_room_free(destination, own, place.first) and linked_as_planned(
        destination, added, place, begin.moved, journal.mark
    )


def _fresh(merged: MergedLayers, target: Target, *, begun: bool = False) -> Layout:
    destination = as_destination(merged.destination)
    payload, added = _measure(merged, target)
    growth, count = None, len(added)
    refusals: list[str] = []
    if destination.kind is not DiskKind.FIXED and merged.size > destination.size:
        growth = plan_growth(destination, merged.size)
        refusals += growth_refusals(destination, merged.size, growth, begun=begun)
    if growth is not None:
        count += len(growth.blocks)
    place, file_end = Placement(0, 0), destination.metadata.footer_start
    if destination.kind is not DiskKind.FIXED:
        if growth is not None:
            destination.floor = growth.end
        try:
            place, file_end = destination.placement(count), destination.file_end_for(count)
        except OSError as error:
            refusals.append(str(error.strerror))
    sizes = (target.size, merged.size, file_end)
    digest = plan_digest(merged.sources, destination, place, growth, added, sizes)
    obstacles = tuple(MergeError(message, path=destination.path, hint=USE_NEW_FILE) for message in refusals)
    return Layout(
        payload=payload,
        added=added,
        growth=growth,
        place=place,
        file_end=file_end,
        digest=digest,
        obstacles=obstacles,
    )


def _measure(merged: MergedLayers, target: Target, new_from: int | None = None) -> tuple[int, NDArray[np.uint32]]:
    """Return the payload in bytes and the blocks that the destination lacks, or lacked.

    Blocks at the file's offset `new_from` and behind are those that an earlier run has added.
    """
    destination = as_destination(merged.destination)
    if is_used(FastPath.COUNTING) and destination.kind is not DiskKind.FIXED and _are_alike(merged, target):
        return _count(merged.sources, destination, new_from)
    payload, added, last = 0, [np.empty(0, np.uint32)], -1
    for writes, _, _ in window_writes(merged, target):
        payload += writes.total
        if destination.kind is DiskKind.FIXED or not len(writes):
            continue
        size = destination.block_size
        first, stop = int(writes.start[0]) // size, ceil_div(int(writes.stop[-1]), size)
        is_lacking = _is_lacking(destination, np.arange(first, stop), new_from)
        missing = missing_blocks(writes, is_lacking, first, size)
        # A block that the window's edge cuts is met twice.
        missing = missing[missing > last]
        if len(missing):
            last = int(missing[-1])
            added.append(missing.astype(np.uint32))
    return payload, np.concatenate(added)


def _is_lacking(destination: Vhd, blocks: NDArray[np.int64], new_from: int | None) -> NDArray[np.bool_]:
    """Return which blocks (ascending) the destination lacks, or lacked before an earlier run added them."""
    at = destination.block_offsets(blocks)
    is_new = at >= new_from if new_from is not None else np.zeros(len(blocks), np.bool_)
    return (at < 0) | is_new


def _are_alike(merged: MergedLayers, target: Target) -> bool:
    """Whether what is merged is just what any source has a set bit for.

    That is so if all have blocks of one size, and no source or destination is shorter than the leaf.
    """
    size = merged.destination.block_size
    if not size or target.size < merged.size or merged.size % merged.destination.logical_sector_size:
        return False
    return all(
        layer.kind is DiskKind.DIFFERENCING and (layer.block_size, layer.size) == (size, merged.size)
        for layer in merged.sources
    )


def _count(sources: Sequence[Image], destination: SparseImage, new_from: int | None) -> tuple[int, NDArray[np.uint32]]:
    """Do what `_measure` does from the bits alone, without a look at each run of them: thirty times quicker."""
    disk, size, sector = sources[0].size, destination.block_size, destination.logical_sector_size
    block_count = ceil_div(disk, size)
    payload, added = 0, [np.empty(0, np.uint32)]
    step = max(1, _COUNTED_BYTES // destination.bitmap_size)
    for first in range(0, block_count, step):
        stop = min(block_count, first + step)
        is_touched = np.zeros(stop - first, np.bool_)
        for layer in sources:
            is_touched[layer.allocated_blocks(first * size, min(disk, stop * size)) - first] = True
        touched = np.flatnonzero(is_touched) + first
        if not len(touched):
            continue
        rows = np.zeros((len(touched), destination.bitmap_size), np.uint8)
        for layer in sources:
            own = layer.ownership(first * size, min(disk, stop * size))
            rows[np.searchsorted(touched, own.blocks)] |= own.bitmaps
        sectors = sector_bitmap.count(rows, size // sector)
        if touched[-1] == block_count - 1:
            sectors[-1] = sector_bitmap.count(rows[-1:], (disk - (block_count - 1) * size) // sector)[0]
        payload += int(sectors.sum()) * sector
        written = touched[sectors > 0]
        added.append(written[_is_lacking(destination, written, new_from)].astype(np.uint32))
    return payload, np.concatenate(added)
