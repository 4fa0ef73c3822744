"""Where each byte of a range of a disk comes from, through all layers of its chain.

Ranges are worked through in windows that hold a bounded number of bitmap sectors, so that memory depends neither on
the size of the disk nor on how scattered its data are, and holes cost next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.chain.stacked import resolve_stacked, stack_of
from vhdkit.disk import extents
from vhdkit.disk.extents import Extents, Kind
from vhdkit.storage.fast_paths import FastPath, is_used

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhdkit.disk.image import Image

# Extents of a window are bounded by the sectors that its bitmaps decide about: 128 full blocks of 2 MiB.
_WINDOW_SECTORS = 524_288
_WINDOW_BYTES = 32 << 30
_WINDOW_BLOCKS = 16384
_SMALLEST_WINDOW_BYTES = 2 << 20
# From so many layers on their bitmaps are looked at together; of fewer, one layer's answer over the next one's is as
# quick, and those below a layer that holds everything are not even asked.
_STACKED = 3


def windows(layers: Sequence[Image], offset: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield [start, end) windows of a range, halved until their bitmaps are few enough to look at together."""
    blocks = [layer.block_size for layer in layers if layer.block_size]
    largest = min([_WINDOW_BYTES, *(size * _WINDOW_BLOCKS for size in blocks)])
    smallest = min(largest, _SMALLEST_WINDOW_BYTES)
    length = largest
    while offset < stop:
        length = min(length * 2, largest)
        while length > smallest and _mapped(layers, offset, min(stop, offset + length)) > _WINDOW_SECTORS:
            length //= 2
        end = min(stop, offset + length)
        yield offset, end
        offset = end


def _mapped(layers: Sequence[Image], offset: int, stop: int) -> int:
    return sum(layer.mapped_sectors(offset, min(stop, layer.size)) for layer in layers if offset < layer.size)


def resolve(layers: Sequence[Image], start: int, stop: int) -> Extents:
    """Return where a window's bytes come from; PARENT where the last of the layers leaves them to its own."""
    stack = stack_of(layers, stop)
    if len(stack) >= _STACKED and is_used(FastPath.STACKED):
        done, result = len(stack), resolve_stacked(stack, start, stop)
    else:
        done, result = 1, layer_extents(layers[0], 0, start, stop)
    for depth, layer in enumerate(layers[done:], done):
        if not (result.kind == Kind.PARENT).any():
            break
        result = extents.overlay(result, layer_extents(layer, depth, start, stop))
    return result


def layer_extents(layer: Image, depth: int, start: int, stop: int) -> Extents:
    """Return one layer's answer; what lies behind its end is zeros, not its parent's."""
    parts = []
    if start < layer.size:
        parts.append(layer.resolve(start, min(stop, layer.size) - start))
    if stop > layer.size:
        parts.append(extents.single(max(start, layer.size), stop, Kind.ZERO))
    whole = parts[0] if len(parts) == 1 else extents.concatenate(parts)
    return whole.at_depth(depth)
