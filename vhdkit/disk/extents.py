"""Where does each byte of a range come from?

`Extents` answers as arrays, one element a stretch that has a single source, in order and without gaps. An image
resolves a range into what it holds itself, what reads as zeros, and what it leaves to its parent; `overlay` lays
one layer's answer over the next one's. Reading, map, convert, compare and merging all stand on it. Nothing here
reads or opens anything.

All positions are bytes in int64: a virtual disk ends below 2**41 and so does a file that a BAT can address.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


class Kind(IntEnum):
    """What stands behind an extent."""

    ZERO = 0
    DATA = 1
    PARENT = 2


class Extent(NamedTuple):
    """One stretch of the virtual disk; `file_offset` is -1 unless it is data, `depth` counts from the leaf."""

    start: int
    length: int
    kind: Kind
    depth: int
    file_offset: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Extents:
    """Stretches as columns of equal length: int64 starts, stops and file offsets; uint8 kinds; int32 depths."""

    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    kind: NDArray[np.uint8]
    depth: NDArray[np.int32]
    file_offset: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)

    def __iter__(self) -> Iterator[Extent]:
        columns = zip(
            self.start.tolist(),
            (self.stop - self.start).tolist(),
            self.kind.tolist(),
            self.depth.tolist(),
            self.file_offset.tolist(),
            strict=True,
        )
        return (Extent(start, length, Kind(kind), depth, at) for start, length, kind, depth, at in columns)

    def take(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Extents:
        """Return the chosen extents, by mask or by index."""
        return Extents(
            start=self.start[which],
            stop=self.stop[which],
            kind=self.kind[which],
            depth=self.depth[which],
            file_offset=self.file_offset[which],
        )

    def of(self, kind: Kind) -> Extents:
        """Return the extents of one kind."""
        return self.take(self.kind == kind)

    def at_depth(self, depth: int) -> Extents:
        """Return the same extents, said to lie in the layer of that depth."""
        return Extents(
            start=self.start,
            stop=self.stop,
            kind=self.kind,
            depth=np.full(len(self), depth, np.int32),
            file_offset=self.file_offset,
        )

    @property
    def total(self) -> int:
        """Bytes covered."""
        return int((self.stop - self.start).sum())


def single(start: int, stop: int, kind: Kind, file_offset: int = -1) -> Extents:
    """Return one extent, or none if it is empty."""
    return filled(
        np.array([start] if kind is Kind.DATA else [], np.int64),
        np.array([stop] if kind is Kind.DATA else [], np.int64),
        np.array([file_offset] if kind is Kind.DATA else [], np.int64),
        start,
        stop,
        Kind.ZERO if kind is Kind.DATA else kind,
    )


def filled(
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    file_offset: NDArray[np.int64],
    first: int,
    last: int,
    hole: Kind,
    depth: NDArray[np.int32] | None = None,
) -> Extents:
    """Return the data stretches given (ascending, apart or touching), clipped to [first, last), holes filled.

    Stretches of one depth (0 unless said) that touch both on the disk and in the file become one; holes have depth 0.
    """
    begin = np.maximum(start, first)
    end = np.minimum(stop, last)
    at = file_offset + (begin - start)
    layer = np.zeros(len(begin), np.int32) if depth is None else depth
    kept = begin < end
    if not kept.all():
        begin, end, at, layer = begin[kept], end[kept], at[kept], layer[kept]
    joins = begin[1:] == end[:-1]
    if joins.any():
        joins &= (at[1:] - at[:-1] == begin[1:] - begin[:-1]) & (layer[1:] == layer[:-1])
        heads = np.flatnonzero(np.concatenate(([True], ~joins)))
        tails = np.append(heads[1:], len(begin)) - 1
        begin, end, at, layer = begin[heads], end[tails], at[heads], layer[heads]
    count = len(begin)
    # Hole, data, hole, data, ..., hole; then the empty ones go.
    starts = np.empty(2 * count + 1, np.int64)
    starts[0], starts[1::2], starts[2::2] = first, begin, end
    stops = np.empty_like(starts)
    stops[0:-1:2], stops[1::2], stops[-1] = begin, end, last
    kinds = np.full(len(starts), hole, np.uint8)
    kinds[1::2] = Kind.DATA
    offsets = np.full(len(starts), -1, np.int64)
    offsets[1::2] = at
    depths = np.zeros(len(starts), np.int32)
    depths[1::2] = layer
    whole = Extents(start=starts, stop=stops, kind=kinds, depth=depths, file_offset=offsets)
    return whole.take(starts < stops)


def overlay(upper: Extents, lower: Extents) -> Extents:
    """Return `upper` with everything that it leaves to its parent taken from `lower`.

    Both cover the same range. The upper's own stretches stay whole; the lower's boundaries cut only what is
    taken from it.
    """
    above = np.searchsorted(upper.start, lower.start, "right") - 1
    # Where both begin at one place the upper's start is there already. Both ascend: a stable sort merges them in one
    # pass, where `union1d`, which hashes, made all of this 17 times as slow.
    cuts = (upper.kind[above] == Kind.PARENT) & (upper.start[above] < lower.start)
    start = np.sort(np.concatenate((upper.start, lower.start[cuts])), kind="stable")
    above = np.searchsorted(upper.start, start, "right") - 1
    below = np.searchsorted(lower.start, start, "right") - 1
    through = upper.kind[above] == Kind.PARENT
    stop = np.append(start[1:], upper.stop[-1:])
    base = np.where(through, lower.start[below], upper.start[above])
    offset = np.where(through, lower.file_offset[below], upper.file_offset[above])
    return Extents(
        start=start,
        stop=stop,
        kind=np.where(through, lower.kind[below], upper.kind[above]),
        depth=np.where(through, lower.depth[below], upper.depth[above]),
        file_offset=np.where(offset < 0, -1, offset + (start - base)),
    )


def concatenate(parts: list[Extents]) -> Extents:
    """Return extents that follow one another as one."""
    return Extents(
        start=np.concatenate([part.start for part in parts]),
        stop=np.concatenate([part.stop for part in parts]),
        kind=np.concatenate([part.kind for part in parts]),
        depth=np.concatenate([part.depth for part in parts]),
        file_offset=np.concatenate([part.file_offset for part in parts]),
    )


def split(extents: Extents, size: int) -> Extents:
    """Return the extents cut at every multiple of `size`, so that none crosses one."""
    first = extents.start // size
    pieces = (extents.stop - 1) // size - first + 1
    which = np.repeat(np.arange(len(extents)), pieces)
    number = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    cell = (first[which] + number) * size
    found = extents.take(which)
    return _narrowed(found, np.maximum(found.start, cell), np.minimum(found.stop, cell + size))


def intersect(extents: Extents, start: NDArray[np.int64], stop: NDArray[np.int64]) -> Extents:
    """Return what of the extents lies in the stretches [start, stop), which ascend and do not overlap."""
    low = np.searchsorted(extents.stop, start, "right")
    count = np.maximum(np.searchsorted(extents.start, stop, "left") - low, 0)
    stretch = np.repeat(np.arange(len(start)), count)
    which = low[stretch] + np.arange(len(stretch)) - np.repeat(np.cumsum(count) - count, count)
    found = extents.take(which)
    return _narrowed(found, np.maximum(found.start, start[stretch]), np.minimum(found.stop, stop[stretch]))


def clipped(extents: Extents, first: int, last: int) -> Extents:
    """Return what of the extents lies in [first, last)."""
    narrow = _narrowed(extents, np.maximum(extents.start, first), np.minimum(extents.stop, last))
    return narrow.take(narrow.start < narrow.stop)


def with_stops(extents: Extents, stop: NDArray[np.int64]) -> Extents:
    """Return the extents with other ends: their files go on behind them."""
    return _narrowed(extents, extents.start, stop)


def _narrowed(extents: Extents, start: NDArray[np.int64], stop: NDArray[np.int64]) -> Extents:
    offset = extents.file_offset
    return Extents(
        start=start,
        stop=stop,
        kind=extents.kind,
        depth=extents.depth,
        file_offset=np.where(offset < 0, -1, offset + start - extents.start),
    )


def distinct(ascending: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each value of what ascends once: a thousandth of the time of `np.unique`, which hashes a million."""
    kept = np.ones(len(ascending), np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=kept[1:])
    return ascending[kept]


def groups(
    start: NDArray[np.int64], stop: NDArray[np.int64], gap: int, *keys: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (first, past last) indices of neighbours that one positioned call can serve together.

    Neighbours belong together if all their keys are equal (such as the distance from disk to file) and the bytes
    between them are at most `gap`: going over a small gap is cheaper than another call.
    """
    if not len(start):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    apart = start[1:] - stop[:-1] > gap
    for key in keys:
        apart |= key[1:] != key[:-1]
    heads = np.flatnonzero(np.concatenate(([True], apart)))
    return heads, np.append(heads[1:], len(start))
