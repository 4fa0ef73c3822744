"""Which layer owns each byte of a disk, worked out once a window and kept in bounded memory.

A read takes three steps, and none of them depends on the number of layers:

 1. the window's map, from a dictionary; a window that is met first is resolved through all layers at once
 2. the stretch that holds the position, by bisection of the map's starts
 3. one positioned read from the stretch's file into the caller's buffer

A range of few stretches is read stretch by stretch. A range of many is read as arrays (see `disk.read_extents`), which
goes over small gaps instead of making one call for each stretch. Maps hold positions only, never payload.

A map is valid as long as no layer is written. Only layers that were opened for writing can be: each counts its
writes, and the index drops its maps when a count has moved on. A write through the chain updates the maps in place.

Threads may read through one index at once: a map is complete before it is published, and never changes afterwards.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Final

import numpy as np

from vhdkit.chain.resolve_layers import layer_extents, resolve
from vhdkit.disk import extents
from vhdkit.disk.extents import Extents, Kind
from vhdkit.disk.read_extents import read_extents
from vhdkit.units import ceil_div, round_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.disk.image import Image

# The bytes of a disk that one map describes. Resolving ten layers takes 0.26 ms for 2 MiB, 0.56 ms for 32 MiB and
# 1.3 ms for 128 MiB: larger windows would favour sequential reads, smaller ones the first read at a random place.
WINDOW_BYTES: Final = 32 << 20
# Memory of all maps together: 800,000 stretches.
MAX_BYTES: Final = 16 << 20
# Ranges of more stretches are read as arrays: from here on numpy's fixed cost is less than that of the single reads.
_FEW_STRETCHES: Final = 24
# What an entry of the dictionary costs besides its arrays, and a stretch in them.
_MAP_BYTES: Final = 1024
_STRETCH_BYTES: Final = 20


class WindowMap:
    """One window: `starts` of its stretches and the window's end, the `depth` of each (-1: zeros) and its `delta`.

    `delta` is the distance from the position on the disk to the position in the file. All are memory views of
    integers: an element of an array of numpy would be an object of numpy.
    """

    __slots__ = ("byte_count", "delta", "depth", "starts")

    def __init__(self, extents: Extents) -> None:
        self.starts = np.append(extents.start, extents.stop[-1:]).data
        self.depth = np.where(extents.kind == Kind.DATA, extents.depth, np.int32(-1)).data
        self.delta = (extents.file_offset - extents.start).data
        self.byte_count = _MAP_BYTES + len(extents) * _STRETCH_BYTES

    def extents(self, first: int, last: int) -> Extents:
        """Return the stretches [first, last)."""
        start, depth = np.asarray(self.starts)[first : last + 1], np.asarray(self.depth)[first:last]
        is_data = depth >= 0
        offset = np.where(is_data, start[:-1] + np.asarray(self.delta)[first:last], -1)
        kind = np.where(is_data, np.uint8(Kind.DATA), np.uint8(Kind.ZERO))
        depth = np.maximum(depth, np.int32(0))
        return Extents(start=start[:-1], stop=start[1:], kind=kind, depth=depth, file_offset=offset)


class ChainIndex:
    """The maps of the layers of one chain, leaf first; the least recently used is dropped when memory is short."""

    def __init__(self, layers: Sequence[Image], max_bytes: int = MAX_BYTES) -> None:
        self._layers = tuple(layers)
        self._size = self._layers[0].size
        self._max_bytes = max_bytes
        self._byte_count = 0
        self._maps: OrderedDict[int, WindowMap] = OrderedDict()
        self._resolving = Lock()
        self._changing = tuple(layer for layer in layers if layer.storage.writable)
        self._changes = self._change_count()

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill a view of bytes with the disk's bytes from `offset`; the whole range lies inside the disk."""
        if self._changing and self._changes != self._change_count():
            self.clear()
        done, length = 0, len(view)
        while done < length:
            position = offset + done
            number = position // WINDOW_BYTES
            window = self._map(number)
            count = min(length - done, (number + 1) * WINDOW_BYTES - position)
            self._read_window(window, position, view[done : done + count] if count < length else view)
            done += count

    def update(self, offset: int, length: int) -> None:
        """Follow a write into the leaf, which now owns the range: the maps that are kept stay right."""
        # A map that is being worked out may be of before the write: it is waited for, and changed as well.
        with self._resolving:
            self._changes = self._change_count()
            for number in range(offset // WINDOW_BYTES, ceil_div(offset + length, WINDOW_BYTES)):
                known = self._maps.get(number)
                if known is not None:
                    self._keep(number, self._written(known, offset, offset + length))

    def _written(self, known: WindowMap, start: int, stop: int) -> WindowMap:
        """Return a map in which the leaf owns what was written."""
        first, last = known.starts[0], known.starts[-1]
        start, stop = max(first, start), min(last, stop)
        parts = [
            extents.single(first, start, Kind.PARENT),
            layer_extents(self._layers[0], 0, start, stop),
            extents.single(stop, last, Kind.PARENT),
        ]
        upper = extents.concatenate([part for part in parts if len(part) and part.start[0] < part.stop[0]])
        return WindowMap(extents.overlay(upper, known.extents(0, len(known.depth))))

    def clear(self) -> None:
        """Drop every map: something was written in a way that the index did not follow."""
        with self._resolving:
            self._maps.clear()
            self._byte_count = 0
            self._changes = self._change_count()

    def _change_count(self) -> int:
        return sum(image.change_count for image in self._changing)

    def _map(self, number: int) -> WindowMap:
        found = self._maps.get(number)
        if found is None:
            # Threads that share a long read come to a new window at once: one of them works it out for all.
            with self._resolving:
                found = self._maps.get(number)
                if found is None:
                    start = number * WINDOW_BYTES
                    found = WindowMap(resolve(self._layers, start, min(self._size, start + WINDOW_BYTES)))
                    self._keep(number, found)
            return found
        try:
            self._maps.move_to_end(number)
        except KeyError:
            return found  # another thread has dropped it from the dictionary; it is as good as it was
        return found

    def _keep(self, number: int, window: WindowMap) -> None:
        earlier = self._maps.pop(number, None)
        self._maps[number] = window
        self._byte_count += window.byte_count - (earlier.byte_count if earlier is not None else 0)
        while self._byte_count > self._max_bytes and len(self._maps) > 1:
            try:
                _, dropped = self._maps.popitem(last=False)
            except KeyError:
                break  # another thread has emptied it
            self._byte_count -= dropped.byte_count

    def _read_window(self, window: WindowMap, position: int, view: memoryview) -> None:
        starts = window.starts
        stop = position + len(view)
        first = bisect_right(starts, position) - 1
        if stop <= starts[first + 1]:
            self._read_stretch(window, first, position, view)
            return
        last = bisect_right(starts, stop - 1, first)
        if last - first > _FEW_STRETCHES:
            self._read_arrays(window, first, last, position, view)
            return
        # Written out, since most of a long read through many layers is spent here.
        low, layers, depths, deltas = position, self._layers, window.depth, window.delta
        for index in range(first, last):
            high = starts[index + 1] if index + 1 < last else stop
            part, depth = view[low - position : high - position], depths[index]
            if depth < 0:
                part[:] = bytes(high - low)
            else:
                layer, offset = layers[depth], low + deltas[index]
                got = layer.storage.read_into(offset, part)
                if got < high - low:
                    layer.fill_past_end(offset + got, part[got:])
            low = high

    def _read_stretch(self, window: WindowMap, index: int, position: int, view: memoryview) -> None:
        depth = window.depth[index]
        if depth < 0:
            view[:] = bytes(len(view))
            return
        layer = self._layers[depth]
        offset = position + window.delta[index]
        got = layer.storage.read_into(offset, view)
        if got < len(view):
            layer.fill_past_end(offset + got, view[got:])

    def _read_arrays(self, window: WindowMap, first: int, last: int, position: int, view: memoryview) -> None:
        """Read many stretches; the parts of sectors at either end are read by themselves."""
        stop = position + len(view)
        sector = self._layers[0].logical_sector_size
        low, high = round_up(position, sector), stop // sector * sector
        if position < low:
            self._read_window(window, position, view[: low - position])
        if high < stop:
            self._read_window(window, high, view[high - position :])
        some = window.extents(first, last)
        out = np.frombuffer(view, np.uint8)[low - position : high - position]
        read_extents(extents.clipped(some, low, high), self._layers, low, out)
