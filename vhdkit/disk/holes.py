"""Leaving out the holes of files whose tables do not know them: fixed disks and raw files of terabytes are sparse.

A hole costs a question of the system instead of a read. Stretches are asked about as a whole, and in halves where they
are part hole: a file of few stretches takes a few dozen questions however large it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.disk.extents import Extents, Kind, distinct

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhdkit.disk.image import Image
    from vhdkit.storage.protocols import Storage

# Holes shorter than this are read: a read costs less than the questions.
_GRAIN_BYTES = 1 << 20
_PAGE_BYTES = 4096


def without_holes(extents: Extents, layers: Sequence[Image]) -> Extents:
    """Return the extents with the data that are holes of their files as zeros; only long holes are looked for."""
    is_long = (extents.kind == Kind.DATA) & (extents.stop - extents.start >= _GRAIN_BYTES)
    holes: list[tuple[int, int]] = []
    for long in extents.take(is_long):
        found = _holes(layers[long.depth].storage, long.file_offset, long.length)
        holes += ((long.start + first, long.start + last) for first, last in found)
    if not holes:
        return extents
    low, high = np.array([hole[0] for hole in holes], np.int64), np.array([hole[1] for hole in holes], np.int64)
    start = np.concatenate((extents.start, low, high[high < extents.stop[-1]]))
    start = distinct(np.sort(start, kind="stable"))
    which = np.searchsorted(extents.start, start, "right") - 1
    hole = np.searchsorted(low, start, "right") - 1
    is_hole = (hole >= 0) & (start < high[hole])
    kind = np.where(is_hole, np.uint8(Kind.ZERO), extents.kind[which])
    offset = extents.file_offset[which]
    return Extents(
        start=start,
        stop=np.append(start[1:], extents.stop[-1:]),
        kind=kind,
        depth=extents.depth[which],
        file_offset=np.where(kind == Kind.DATA, offset + start - extents.start[which], np.int64(-1)),
    )


def _holes(storage: Storage, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield the long holes of a range of a file, ascending, as [start, stop) counted from its first byte."""
    todo = [(0, length)]
    while todo:
        start, stop = todo.pop()
        holes = storage.hole_bytes(offset + start, stop - start)
        if holes == stop - start:
            yield start, stop
        elif holes >= _GRAIN_BYTES and stop - start >= 2 * _GRAIN_BYTES:
            middle = start + (stop - start) // 2 // _GRAIN_BYTES * _GRAIN_BYTES
            todo += [(middle, stop), (start, middle)]


def data_pieces(storage: Storage, start: int, stop: int, most_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield what of [start, stop) of a file is no hole, ascending, as [start, stop) of `most_bytes` or less.

    A piece that is part hole is halved, down to a page.
    """
    todo = [(at, min(at + most_bytes, stop)) for at in range(start, stop, most_bytes)][::-1]
    while todo:
        low, high = todo.pop()
        holes = storage.hole_bytes(low, high - low)
        if holes and holes < high - low and high - low > _PAGE_BYTES:
            middle = (low + high) // 2 // _PAGE_BYTES * _PAGE_BYTES
            middle = middle if middle > low else low + _PAGE_BYTES
            todo += [(middle, high), (low, middle)]
        elif holes < high - low:
            yield low, high
