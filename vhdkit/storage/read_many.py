"""Read many ranges of one file into as many buffers.

Ranges that lie near each other are one call, which goes over the gaps between them: it fills their buffers and, for the
gaps, a buffer that is thrown away.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhdkit.storage.protocols import Storage

# Reading a gap of this size costs about what another call costs.
GAP_BYTES = 16 << 10
# Linux takes 1,024 buffers a call.
_MOST_BUFFERS = 1000
_UNWANTED = memoryview(bytearray(GAP_BYTES))


def read_one_by_one(storage: Storage, offsets: Sequence[int], buffers: Sequence[memoryview]) -> list[int]:
    """Read many ranges by as many calls; return what each got."""
    return [storage.read_into(offset, buffer) for offset, buffer in zip(offsets, buffers, strict=True)]


def read_by_runs(storage: Storage, descriptor: int, offsets: Sequence[int], buffers: Sequence[memoryview]) -> list[int]:
    """Read many ranges of a file, which ascend and do not overlap, by one call for those near each other."""
    got: list[int] = []
    for first, last in _runs(offsets, buffers):
        some_offsets, some = offsets[first:last], buffers[first:last]
        if len(some) > 1 and _read_run(descriptor, some_offsets, some):
            got += map(len, some)
        else:
            # Where the file ends early each range has its own answer.
            got += read_one_by_one(storage, some_offsets, some)
    return got


def _runs(offsets: Sequence[int], buffers: Sequence[memoryview]) -> Iterator[tuple[int, int]]:
    """Yield [first, last) of ranges with small gaps between them."""
    first = 0
    for number in range(1, len(offsets)):
        gap = offsets[number] - offsets[number - 1] - len(buffers[number - 1])
        if not 0 <= gap <= GAP_BYTES or number - first >= _MOST_BUFFERS // 2:
            yield first, number
            first = number
    if len(offsets):
        yield first, len(offsets)


def _read_run(descriptor: int, offsets: Sequence[int], buffers: Sequence[memoryview]) -> bool:
    """Read ranges by one call; return whether it filled all of their buffers."""
    views, at = [], offsets[0]
    for offset, buffer in zip(offsets, buffers, strict=True):
        if offset > at:
            views.append(_UNWANTED[: offset - at])
        views.append(buffer)
        at = offset + len(buffer)
    return os.preadv(descriptor, views, offsets[0]) == at - offsets[0]
