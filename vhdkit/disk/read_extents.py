"""Moving the bytes of extents into a buffer, megabytes at a time.

Stretches that lie equally in the file and are only a little apart are read together, gaps included. The wanted sectors
are picked out by a mask where they are many and short; elsewhere each stretch is read into its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.disk.extents import Extents, Kind, groups
from vhdkit.disk.sector_bitmap import merge_sectors
from vhdkit.storage.read_many import GAP_BYTES
from vhdkit.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vhdkit.disk.image import Image

# Stretches of fewer bytes on average, a little apart, are picked out of one read by a mask: those of 1 KiB take 0.7 of
# the time of a buffer each, those of 4 KiB as long, those of 16 KiB 1.4 times as long.
_MASKED_BYTES = 4096
# Where a read this long is all hole, asking first saves it; elsewhere the question costs a thousandth of the read.
_LONG = 1 << 20


def read_extents(extents: Extents, layers: Sequence[Image], first: int, out: NDArray[np.uint8]) -> None:
    """Fill `out`, which stands for the disk from byte `first` on, with what the extents say; whole sectors.

    Extents of kind PARENT leave their bytes of `out` as they are.
    """
    zeros = extents.of(Kind.ZERO)
    for start, stop in zip((zeros.start - first).tolist(), (zeros.stop - first).tolist(), strict=True):
        out[start:stop] = 0
    data = extents.of(Kind.DATA)
    for depth in np.flatnonzero(np.bincount(data.depth)).tolist():
        _read_layer(data.take(data.depth == depth), layers[depth], first, out)


def _read_layer(data: Extents, layer: Image, first: int, out: NDArray[np.uint8]) -> None:
    heads, tails = groups(data.start, data.stop, GAP_BYTES, data.file_offset - data.start)
    length = data.stop - data.start
    total = np.add.reduceat(length, heads) if len(heads) else length
    is_alone = (tails - heads == 1) & (total >= _LONG)
    is_masked = (tails - heads > 1) & (total < (tails - heads) * _MASKED_BYTES)
    for head in heads[is_alone].tolist():
        start, stop = int(data.start[head]) - first, int(data.stop[head]) - first
        read_exactly(layer, int(data.file_offset[head]), out[start:stop])
    for head, tail in zip(heads[is_masked].tolist(), tails[is_masked].tolist(), strict=True):
        start, stop = int(data.start[head]) - first, int(data.stop[tail - 1]) - first
        scratch = np.empty(stop - start, np.uint8)
        read_exactly(layer, int(data.file_offset[head]), scratch)
        wanted = covered(data.start[head:tail] - first - start, data.stop[head:tail] - first - start, stop - start)
        merge_sectors(out[start:stop], scratch, wanted)
    others = np.repeat(~(is_alone | is_masked), tails - heads)
    if others.any():
        _read_many(data.take(others), layer, first, out)


def _read_many(data: Extents, layer: Image, first: int, out: NDArray[np.uint8]) -> None:
    """Read stretches of one file, each into its place, by as few calls as there can be."""
    # A file may have its blocks in another order than the disk.
    data = data.take(np.argsort(data.file_offset, kind="stable"))
    offsets, whole = data.file_offset.tolist(), out.data
    places = zip((data.start - first).tolist(), (data.stop - first).tolist(), strict=True)
    buffers = [whole[start:stop] for start, stop in places]
    got = layer.storage.read_many_into(offsets, buffers)
    for offset, buffer, count in zip(offsets, buffers, got, strict=True):
        if count < len(buffer):
            layer.fill_past_end(offset + count, buffer[count:])


def covered(start: NDArray[np.int64], stop: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
    """Return, one a sector of `length` bytes, whether it lies in one of the stretches (bytes, ascending, apart)."""
    steps = np.zeros(length // SECTOR + 1, np.int8)
    # No two begin, and no two end, at one place.
    steps[start // SECTOR] += 1
    steps[stop // SECTOR] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8) > 0


def read_exactly(layer: Image, offset: int, buffer: NDArray[np.uint8]) -> None:
    """Read payload; the image's format says what stands for bytes behind its file's end."""
    if len(buffer) >= _LONG and layer.storage.hole_bytes(offset, len(buffer)) == len(buffer):
        buffer[:] = 0
        return
    got = layer.storage.read_into(offset, buffer.data)
    if got < len(buffer):
        layer.fill_past_end(offset + got, buffer.data[got:])
