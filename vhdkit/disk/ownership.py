"""What an image holds of a window of the disk, as the kernels over sector bitmaps take it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vhdkit.disk.sector_bitmap import BitOrder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Far enough below zero that no sector of a block lies in a file.
NOWHERE: Final = -(1 << 62)


class Ownership(NamedTuple):
    """The allocated blocks of a window, one row each.

    `blocks` (int64, ascending) are their indices, `bitmaps` (uint8) has a row of bits a block, one bit a sector
    in the order of `order`, and
    `payload_offsets` (int64) is where the first sector of each lies in the file, `NOWHERE` of a block of zeros that
    hides the parent and takes no space.
    """

    blocks: NDArray[np.int64]
    bitmaps: NDArray[np.uint8]
    payload_offsets: NDArray[np.int64]
    order: BitOrder = BitOrder.MSB_FIRST
