"""Many layers of one block size, resolved at once by their bitmaps.

Laying one layer's extents over the next one's costs a merge of sorted arrays a layer. Where blocks agree, who owns a
sector can be told from packed bits instead, and extents are made once: 10 layers of 300 blocks with 20 runs each take
two fifths of the time, 2 layers four fifths; a single layer is quicker resolved by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.disk import extents, sector_bitmap
from vhdkit.disk.extents import Kind
from vhdkit.disk.sector_bitmap import HeldSectors
from vhdkit.units import ceil_div

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.disk.extents import Extents
    from vhdkit.disk.image import Image


def stack_of(layers: Sequence[Image], stop: int) -> list[Image]:
    """Return the layers from the leaf down that `resolve_stacked` can take together, for a window that ends at `stop`.

    They have blocks and sectors of one size, none ends before the window, and all but the last have a parent.
    """
    stack: list[Image] = []
    for layer in layers:
        if not layer.block_size or layer.size < stop:
            break
        if stack and _grain(layer) != _grain(stack[0]):
            break
        stack.append(layer)
        if layer.parent is None:
            break
    return stack


def _grain(image: Image) -> tuple[int, int]:
    return image.block_size, image.logical_sector_size


def resolve_stacked(images: Sequence[Image], start: int, stop: int) -> Extents:
    """Return where a window's bytes come from in layers as `stack_of` finds them, leaf first; depths count from 0.

    What none of them holds is of the last layer's depth: PARENT, or ZERO if that has none. Reads tables and bitmaps
    only.
    """
    size, sector = _grain(images[0])
    found = [image.ownership(start, stop) for image in images]
    first_block = start // size
    is_held = np.zeros(ceil_div(stop, size) - first_block, np.bool_)
    for own in found:
        is_held[own.blocks - first_block] = True
    blocks = np.flatnonzero(is_held) + first_block
    layers = []
    payload_at = np.zeros((len(images), len(blocks)), np.int64)
    for depth, own in enumerate(found):
        rows = np.searchsorted(blocks, own.blocks)
        payload_at[depth, rows] = own.payload_offsets
        layers.append(HeldSectors(rows, own.bitmaps, own.order))
    row, first, last, owner = sector_bitmap.owners(len(blocks), layers, size // sector)
    held = owner >= 0
    row, first, last, owner = row[held], first[held], last[held], owner[held]
    base = blocks[row] * size
    data = payload_at[owner, row] + first * sector
    depths = owner.astype(np.int32)
    hole = Kind.ZERO if images[-1].parent is None else Kind.PARENT
    whole = extents.filled(base + first * sector, base + last * sector, data, start, stop, hole, depths)
    whole.depth[whole.kind != Kind.DATA] = len(images) - 1
    is_nowhere = whole.file_offset < -1
    whole.kind[is_nowhere], whole.file_offset[is_nowhere] = Kind.ZERO, -1
    return whole
