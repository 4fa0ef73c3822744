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
from vhdkit.units import SECTOR
from vhdkit.vhd.image import VhdImage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.disk.extents import Extents
    from vhdkit.disk.image import Image


def stack_of(layers: Sequence[Image], stop: int) -> list[VhdImage]:
    """Return the layers from the leaf down that `resolve_stacked` can take together, for a window that ends at `stop`.

    They have blocks of one size, none ends before the window, and all but the last are differencing.
    """
    stack: list[VhdImage] = []
    for layer in layers:
        if not isinstance(layer, VhdImage) or layer.is_fixed or layer.size < stop:
            break
        if stack and layer.block_size != stack[0].block_size:
            break
        stack.append(layer)
        if not layer.is_differencing:
            break
    return stack


def resolve_stacked(images: Sequence[VhdImage], start: int, stop: int) -> Extents:
    """Return where a window's bytes come from in layers as `stack_of` finds them, leaf first; depths count from 0.

    What none of them holds is of the last layer's depth: PARENT, or ZERO if that is a dynamic disk. Reads tables and
    bitmaps only.
    """
    found = [image.allocated(start, stop) for image in images]
    first_block = start // images[0].block_size
    is_held = np.zeros(-(-stop // images[0].block_size) - first_block, np.bool_)
    for inside, _ in found:
        is_held[inside - first_block] = True
    blocks = np.flatnonzero(is_held) + first_block
    layers = []
    bitmaps_at = np.zeros((len(images), len(blocks)), np.int64)
    for depth, (image, (inside, at)) in enumerate(zip(images, found, strict=True)):
        rows = np.searchsorted(blocks, inside)
        bitmaps_at[depth, rows] = at
        layers.append((rows, image.read_bitmaps(at)))
    row, first, last, owner = sector_bitmap.owners(len(blocks), layers, images[0].sectors_per_block)
    held = owner >= 0
    row, first, last, owner = row[held], first[held], last[held], owner[held]
    base = blocks[row] * images[0].block_size
    data = bitmaps_at[owner, row] + images[0].bitmap_size + first * SECTOR
    depths = owner.astype(np.int32)
    whole = extents.filled(base + first * SECTOR, base + last * SECTOR, data, start, stop, images[-1].hole, depths)
    whole.depth[whole.kind != Kind.DATA] = len(images) - 1
    return whole
