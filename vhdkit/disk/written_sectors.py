"""Sectors whose payload was written into blocks of an image, and that nothing in the image refers to yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class WrittenSectors(NamedTuple):
    """Runs of sectors [start, stop), counted from the start of the block `blocks[row]`, ascending.

    `blocks` (int64, ascending) are indices, `offsets` where they lie in the file, and `is_new` which of them the image
    does not have yet.
    """

    blocks: NDArray[np.int64]
    offsets: NDArray[np.int64]
    is_new: NDArray[np.bool_]
    row: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
