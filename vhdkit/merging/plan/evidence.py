"""How far the files bear out what a journal says of an earlier run.

A journal, a destination and an undo image may each be put back as they were at another time, with old times or new. So
what a journal says is held against the files themselves: sizes, footers, table entries, bits, and in the end content.
States of files (see `image.seen`) only save reading: where they are equal nothing was touched, and where they differ
nothing is known.

**Source**: reference 3.8; DESIGN P7.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.chain.disk_view import DiskView
from vhdkit.disk import extents
from vhdkit.disk.image import DiskKind
from vhdkit.vhd import bat
from vhdkit.vhd.metadata import FooterPlace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from vhdkit.disk.extents import Extents
    from vhdkit.disk.image import Image
    from vhdkit.journal.file_state import Seen
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.vhd.growth import Growth
    from vhdkit.vhd.open_image import Vhd
    from vhdkit.vhd.sparse_image import Placement, SparseImage

    WindowWrites = Iterable[tuple[Extents, Extents, int]]

_PIECE = 4 << 20
_ENTRIES = 1 << 14


def is_untouched(journal: Journal, sources: Sequence[Image], destination: Image) -> bool:
    """Whether neither sources nor destination were touched since the run that stopped, or ended, looked at them."""
    seen = journal.destination_seen
    if seen is None or not seen.proves(destination.storage):
        return False
    states = _states_of(journal, sources)
    return bool(states) and all(state.proves(layer.storage) for state, layer in zip(states, sources, strict=True))


def may_be_others(journal: Journal, sources: Sequence[Image]) -> bool:
    """Whether a source may have been put back since the merge began; where there is no clock, times are believed."""
    states = _states_of(journal, sources)
    return not states or not all(
        state.proves(layer.storage) or (not state.now and state.fits(layer.storage))
        for state, layer in zip(states, sources, strict=True)
    )


def _states_of(journal: Journal, sources: Sequence[Image]) -> list[Seen]:
    """Return what the sources looked like when the merge began, nothing if that is not known of each."""
    begin = journal.begin
    states = [state.seen for state in begin.sources if state.seen is not None]
    return states if len(states) == len(sources) else []


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
    entries = [destination.table.entries(block, block + 1)[0] for block in moving.tolist()]
    is_moved = bat.offsets(np.array(entries, np.uint32)) == places if len(moving) else np.ones(0, np.bool_)
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
        entries = destination.table.entries(int(blocks[0]), int(blocks[-1]) + 1)[blocks - int(blocks[0])]
        is_placed = bat.offsets(entries) == place.offsets(rank + first + np.arange(len(blocks)))
        may_lack = (entries == bat.UNALLOCATED) & (blocks * size + size > mark)
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


def has_what_sources_hold(
    layers: Sequence[Image],
    depth: int,
    window_writes: WindowWrites,
    stop: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Whether the layer at `depth` shows what the layers above it hold of the disk, up to `stop`.

    `window_writes` are those of the merge. The destination is read as the disk that it will be: as large as the leaf's,
    also before it says so. `check` is called between the pieces.
    """
    chain, last = DiskView(layers), 0
    stop = chain.size if stop is None else min(stop, chain.size)
    with _as_large_as(layers[depth], chain.size):
        below = DiskView(layers[depth:])
        for writes, wipes, _ in window_writes:
            if len(writes) and int(writes.start[0]) >= stop:
                return True
            for at, end in _stretches(writes, wipes, last, stop):
                check()
                if chain.read(at, end - at) != below.read(at, end - at):
                    return False
                last = end
    return True


@contextmanager
def _as_large_as(destination: Image, size: int) -> Iterator[None]:
    before = destination.size
    destination.size = max(size, before)
    try:
        yield
    finally:
        destination.size = before


def _stretches(writes: Extents, wipes: Extents, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of what lies in each piece of the disk, the gaps within it included."""
    both = extents.concatenate([writes, wipes]) if len(wipes) else writes
    both = extents.split(extents.clipped(both.take(np.argsort(both.start, kind="stable")), start, stop), _PIECE)
    index = both.start // _PIECE
    for piece in extents.distinct(index).tolist():
        first, last = np.searchsorted(index, [piece, piece + 1]).tolist()
        yield int(both.start[first]), int(both.stop[first:last].max())
