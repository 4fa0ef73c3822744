"""How sectors are written into a destination: cut at its blocks, each piece at its place in the file.

Most pieces are copied file to file, each alone. Where many lie close together, every other sector for example, they
become one write, a span, that goes over the gaps between them. Nothing here reads payload or writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vhdkit.disk import extents
from vhdkit.disk.image import DiskKind
from vhdkit.storage.fast_paths import FastPath, is_used
from vhdkit.vhd.sparse_image import Placement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vhdkit.disk.extents import Extents
    from vhdkit.disk.image import WritableImage

# A span is put together in a buffer of this size.
STAGING_BYTES = 4 << 20
# A piece copied alone takes two calls, 5 us. Going over a gap takes reading, masking, writing and syncing it: pieces
# less than a page apart dirty the same pages anyway, and from eight of them on one write is the quicker way.
GAP_BYTES = 4096
_MANY_PIECES = 8
# Space of a file is taken in pages; the data of a block begin at one.
PAGE_BYTES = 4096
# Where no block is placed: no offset of a sector, so that no piece seems to lie beside it.
UNPLACED = Placement(-1, 0)


class Pieces(NamedTuple):
    """What is to be written, none of it across a block's edge: the file offset of each piece, whether its block is new.

    `at` is int64, `is_new` bool.
    """

    found: Extents
    at: NDArray[np.int64]
    is_new: NDArray[np.bool_]

    def spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return [head, tail) of the pieces that one write serves: near each other, and within the staging buffer.

        Of those that are not `are_many` each is a span of its own.
        """
        start, stop = self.found.start, self.found.stop
        heads, tails = extents.groups(start, stop, GAP_BYTES, self.at - start, start // STAGING_BYTES)
        is_head = np.repeat(~are_many(tails - heads), tails - heads)
        is_head[heads] = True
        heads = np.flatnonzero(is_head)
        return heads, np.append(heads[1:], len(self.found))[: len(heads)]


def are_many(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which numbers of pieces near each other are put together in the staging buffer."""
    if not is_used(FastPath.TOGETHER):
        return np.zeros(len(counts), np.bool_)
    return counts >= (_MANY_PIECES if is_used(FastPath.ALONE) else 1)


@dataclass(frozen=True, slots=True, eq=False)
class DestinationBlocks:
    """Where the blocks of a destination lie: those that it has, and those that a merge adds.

    `added` (uint32, ascending) are the blocks that are added; the first of them has the rank `rank` in `place`.
    """

    image: WritableImage
    added: NDArray[np.uint32]
    place: Placement = UNPLACED
    rank: int = 0

    def locate(self, blocks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the file offsets of blocks (ascending), and which of them the destination does not have yet."""
        if not len(blocks):
            return np.empty(0, np.int64), np.empty(0, np.bool_)
        at = self.image.block_offsets(blocks)
        is_new = at < 0
        at[is_new] = self.place.offsets(self.rank + np.searchsorted(self.added, blocks[is_new]))
        return at, is_new

    def pieces(self, writes: Extents, wipes: Extents) -> Pieces:
        """Return what a window's writes and wipes are in the file."""
        image = self.image
        if len(wipes):
            writes = in_order(writes, self._held(wipes))
        if image.kind is DiskKind.FIXED:
            found = extents.split(writes, STAGING_BYTES)
            return Pieces(found, found.start, np.zeros(len(found), np.bool_))
        found = extents.split(writes, min(image.block_size, STAGING_BYTES))
        block = found.start // image.block_size
        blocks, row = np.unique(block, return_inverse=True)
        at, is_new = self.locate(blocks)
        return Pieces(found, at[row] + image.block_lead + found.start - block * image.block_size, is_new[row])

    def places_in_old_blocks(self, writes: Extents, wipes: Extents) -> Iterator[tuple[int, int]]:
        """Yield (file offset, length) of what a window's sectors take of blocks that are there already."""
        pieces = self.pieces(writes, wipes)
        for head, tail in zip(*pieces.spans(), strict=True):
            if not pieces.is_new[head]:
                yield int(pieces.at[head]), int(pieces.found.stop[tail - 1] - pieces.found.start[head])

    def pages(self, writes: Extents) -> Iterator[tuple[int, int]]:
        """Yield (file offset, length) of the space that a window's sectors take, with the bitmaps of new blocks."""
        start, stop = written_pages(writes, self.image.block_size)
        blocks, row = np.unique(start // self.image.block_size, return_inverse=True)
        at, is_new = self.locate(blocks)
        for offset in at[is_new].tolist():
            yield offset, self.image.block_lead
        offsets = at[row] + self.image.block_lead + start - blocks[row] * self.image.block_size
        yield from zip(offsets.tolist(), (stop - start).tolist(), strict=True)

    def _held(self, wipes: Extents) -> Extents:
        """Return what of the zeros lies in blocks that the destination has: elsewhere it has zeros already."""
        image = self.image
        if image.kind is DiskKind.FIXED:
            return wipes
        blocks = image.allocated_blocks(int(wipes.start[0]), int(wipes.stop[-1]))
        return extents.intersect(wipes, blocks * image.block_size, (blocks + 1) * image.block_size)


def written_pages(writes: Extents, block_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return [start, stop) (int64) of what writing sectors takes of a disk, in whole pages, cut at the edges of blocks.

    What a span goes over is part of it.

    >>> both = extents.concatenate([extents.single(at, at + 512, extents.Kind.DATA, at) for at in (512, 9216)])
    >>> [array.tolist() for array in written_pages(both, 1 << 21)]
    [[0, 8192], [4096, 12288]]
    """
    found = extents.split(writes, block_size)
    block = found.start // block_size
    heads, tails = extents.groups(found.start, found.stop, GAP_BYTES, block)
    start = found.start[heads] // PAGE_BYTES * PAGE_BYTES
    stop = -(-found.stop[tails - 1] // PAGE_BYTES) * PAGE_BYTES
    edge = block[heads] * block_size
    return np.maximum(start, edge), np.minimum(stop, edge + block_size)


def in_order(writes: Extents, wipes: Extents) -> Extents:
    """Return both in the order of the disk; they do not overlap."""
    if not len(wipes):
        return writes
    both = extents.concatenate([writes, wipes])
    return both.take(np.argsort(both.start, kind="stable"))
