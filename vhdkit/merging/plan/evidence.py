"""How far the files bear out what a journal says of an earlier run.

A journal, a destination and an undo image may each be put back as they were at another time, with old times or new.
So what a journal says is held against the files themselves: sizes, footers, table entries, bits, and in the end
content. States of files (see `journal.file_state`) only save reading: where they are equal nothing was touched, and
where they differ nothing is known.

**Source**: docs/reference/vhd.md 3.4; docs/guarantees.md.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.disk import extents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vhdkit.chain.merged_layers import MergedLayers
    from vhdkit.disk.extents import Extents
    from vhdkit.disk.image import Image
    from vhdkit.journal.file_state import Seen
    from vhdkit.journal.merge_journal import Journal

    WindowWrites = Iterable[tuple[Extents, Extents, int]]

_PIECE = 4 << 20


def is_untouched(journal: Journal, sources: Sequence[Image], destination: Image) -> bool:
    """Whether neither sources nor destination were touched since the run that stopped, or ended, looked at them."""
    seen = journal.destination_seen
    if seen is None or not seen.proves(destination.storage):
        return False
    return are_as_begun(journal, sources)


def may_be_others(journal: Journal, sources: Sequence[Image]) -> bool:
    """Whether a source may have been put back since the merge began; where there is no clock, times are believed."""
    states = _states_of(journal, sources)
    return not states or not all(
        state.proves(layer.storage) or (not state.now and state.fits(layer.storage))
        for state, layer in zip(states, sources, strict=True)
    )


def are_as_begun(journal: Journal, sources: Sequence[Image]) -> bool:
    """Whether the sources are certainly what they were when the merge began."""
    states = _states_of(journal, sources)
    return bool(states) and all(state.proves(layer.storage) for state, layer in zip(states, sources, strict=True))


def _states_of(journal: Journal, sources: Sequence[Image]) -> list[Seen]:
    """Return what the sources looked like when the merge began, nothing if that is not known of each."""
    begin = journal.begin
    states = [state.seen for state in begin.sources if state.seen is not None]
    return states if len(states) == len(sources) else []


def has_what_sources_hold(
    merged: MergedLayers,
    window_writes: WindowWrites,
    stop: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Whether the destination shows what the sources hold of the disk, up to `stop`.

    `window_writes` are those of the merge. The destination is read as the disk that it will be: as large as the leaf's,
    also before it says so. `check` is called between the pieces.
    """
    chain, last = merged.view(), 0
    stop = chain.size if stop is None else min(stop, chain.size)
    with _as_large_as(merged.destination, chain.size):
        below = merged.destination_view()
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
