"""What sector bitmaps say that need not be said: blocks with all sectors or none, and bits behind the disk's end.

**Source**: docs/reference/vhdx.md 1.10, 5 rows 66, 67, 80.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.findings import Level
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import MiB
from vhdkit.vhdx import bat
from vhdkit.vhdx.bat import BITMAP_PRESENT, State
from vhdkit.vhdx.constants import CHUNK_SECTORS
from vhdkit.vhdx.corruption import VhdxCorruption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vhdkit.disk.file_check import Tally
    from vhdkit.storage.protocols import Storage
    from vhdkit.vhdx.bat_window import EntryTable
    from vhdkit.vhdx.metadata import VhdxMetadata


class BitmapCheck:
    """The bitmap blocks of one differencing disk; those that are missing were reported."""

    def __init__(self, storage: Storage, metadata: VhdxMetadata, table: EntryTable, tally: Tally) -> None:
        self._storage = storage
        self._metadata = metadata
        self._table = table
        self._tally = tally

    def check_end(self) -> None:
        """Tell of bits for sectors that the disk does not have; only the last bitmap block can have them."""
        sectors = self._metadata.size // self._metadata.logical_sector_size
        chunk = (sectors - 1) // CHUNK_SECTORS
        at = self._place(chunk)
        if at is None:
            return
        used = sectors - chunk * CHUNK_SECTORS
        raw = np.frombuffer(read_bytes(self._storage, at + used // 8, MiB - used // 8), np.uint8)
        count = int(np.bitwise_count(raw[1:]).sum()) + (int(raw[0]) >> used % 8).bit_count() if len(raw) else 0
        if count:
            message = f"{count} bits of the last bitmap block are set beyond the disk's end, as Windows sets them"
            self._tally.add(VhdxCorruption.BITS_BEYOND_END, Level.INFO, message, at + used // 8)

    def check_partial_blocks(self) -> None:
        """Tell which blocks are present in part and have all of their sectors, or none; all bitmaps are read."""
        sector, block_size = self._metadata.logical_sector_size, self._metadata.block_size
        width = block_size // sector // 8
        last = self._table.layout.block_count - 1
        in_last = (self._metadata.size - last * block_size) // sector
        for chunk, blocks in self._partial():
            at = self._place(chunk)
            if at is None:
                continue
            raw = np.frombuffer(read_bytes(self._storage, at, MiB).ljust(MiB, b"\0"), np.uint8)
            rows = raw.reshape(-1, width)[blocks % self._table.layout.ratio]
            counts = np.bitwise_count(rows).sum(axis=1, dtype=np.int64)
            sizes = np.full(len(blocks), block_size // sector)
            if blocks[-1] == last:
                counts[-1] = np.unpackbits(rows[-1], bitorder="little")[:in_last].sum()
                sizes[-1] = in_last
            self._tell(VhdxCorruption.BITMAP_FULL, "has all of its sectors", blocks[counts == sizes])
            self._tell(VhdxCorruption.BITMAP_EMPTY, "has none of its sectors", blocks[counts == 0])

    def _partial(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield (chunk, indices of its blocks that are present in part), those of one chunk perhaps in two goes."""
        layout = self._table.layout
        for base, entries in self._table.windows():
            index = base + np.flatnonzero(bat.states(entries) == State.PARTIALLY_PRESENT)
            blocks = layout.blocks_of(index[~layout.is_bitmap(index)])
            blocks = blocks[blocks < layout.block_count]
            for chunk in np.unique(blocks // layout.ratio).tolist():
                yield chunk, blocks[blocks // layout.ratio == chunk]

    def _place(self, chunk: int) -> int | None:
        """Return where a bitmap block lies, None if there is none inside the file."""
        entry = self._table.bitmaps(np.array([chunk]))
        mebibyte = int(bat.mebibytes(entry)[0])
        is_there = bat.states(entry)[0] == BITMAP_PRESENT and 0 < mebibyte < self._storage.size() // MiB
        return mebibyte * MiB if is_there else None

    def _tell(self, rule: VhdxCorruption, what: str, blocks: NDArray[np.int64]) -> None:
        at, layout = self._metadata.bat.file_offset, self._table.layout

        def tell(i: int) -> tuple[str, int]:
            block = int(blocks[i])
            return f"block {block} is present in part, and {what}", at + layout.index(block) * bat.ENTRY_SIZE

        self._tally.add_many(rule, Level.INFO, len(blocks), tell)
