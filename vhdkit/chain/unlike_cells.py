"""Where two disks can differ: the cells of both in which a layer of either holds bytes that are not the same file's.

Nothing is read for it. What both have at one place of one file is equal, as far as that file goes: two children of one
parent are compared by what they hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vhdkit.chain.resolve_layers import resolve, windows
from vhdkit.disk import extents
from vhdkit.disk.extents import Extents, Kind
from vhdkit.disk.holes import without_holes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vhdkit.chain.disk_view import DiskView


class Cell(NamedTuple):
    """A stretch of both disks; a disk that holds nothing there reads as zeros."""

    offset: int
    length: int
    is_held_by_a: bool
    is_held_by_b: bool


def unlike_cells(a: DiskView, b: DiskView, cell_bytes: int) -> Iterator[Cell]:
    """Yield the cells in which two disks can differ, ascending; none crosses a multiple of `cell_bytes`."""
    size = max(a.size, b.size)
    shared = _SharedFiles(a, b)
    for start, stop in windows((*a.layers, *b.layers), 0, size):
        one, other = _held(a, start, stop), _held(b, start, stop)
        held_a, held_b = (_numbers(view.of(Kind.DATA), cell_bytes) for view in (one, other))
        number = _numbers(shared.unlike(one, other), cell_bytes) if shared else _union(held_a, held_b)
        offset = np.maximum(number * cell_bytes, start)
        length = np.minimum((number + 1) * cell_bytes, stop) - offset
        columns = offset, length, _are_in(number, held_a), _are_in(number, held_b)
        yield from map(Cell._make, zip(*(column.tolist() for column in columns), strict=True))


class _SharedFiles:
    """The files that are layers of both disks."""

    def __init__(self, a: DiskView, b: DiskView) -> None:
        files: dict[tuple[int, int], int] = {}
        numbers = [[files.setdefault(layer.storage.identity, len(files)) for layer in view.layers] for view in (a, b)]
        self._a, self._b = (np.array(each, np.int64) for each in numbers)
        self._length = np.zeros(len(files), np.int64)
        for view, each in zip((a, b), numbers, strict=True):
            self._length[each] = [layer.storage.size() for layer in view.layers]
        self._are_any = len(files) < len(a.layers) + len(b.layers)

    def __bool__(self) -> bool:
        return self._are_any

    def unlike(self, one: Extents, other: Extents) -> Extents:
        """Return the stretches, those of `one`, that either view holds, and that are not of one place of one file."""
        start = _union(one.start, other.start)
        stop = np.append(start[1:], one.stop[-1:])
        one, other = extents.intersect(one, start, stop), extents.intersect(other, start, stop)
        file = self._a[one.depth]
        end = one.file_offset + (one.stop - one.start)
        same = (file == self._b[other.depth]) & (one.file_offset == other.file_offset) & (end <= self._length[file])
        is_data, is_data_too = one.kind == Kind.DATA, other.kind == Kind.DATA
        return one.take((is_data | is_data_too) & ~(is_data & is_data_too & same))


def _held(view: DiskView, start: int, stop: int) -> Extents:
    """Return what a view holds of a window, long holes of its files left out; behind its end there are zeros."""
    end = min(stop, view.size)
    parts = []
    if start < end:
        parts.append(without_holes(resolve(view.layers, start, end), view.layers))
    if end < stop:
        parts.append(extents.single(max(start, end), stop, Kind.ZERO))
    return parts[0] if len(parts) == 1 else extents.concatenate(parts)


def _numbers(stretches: Extents, cell_bytes: int) -> NDArray[np.int64]:
    """Return the numbers of the cells that stretches lie in, each once."""
    return extents.distinct(extents.split(stretches, cell_bytes).start // cell_bytes)


def _union(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what is in either of two ascending arrays, each once."""
    return extents.distinct(np.sort(np.concatenate((one, other)), kind="stable"))


def _are_in(number: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return, one a number, whether it is among those that ascend."""
    if not len(among):
        return np.zeros(len(number), np.bool_)
    found: NDArray[np.bool_] = among[np.minimum(np.searchsorted(among, number), len(among) - 1)] == number
    return found
