"""An open VHDX: where the bytes of its disk lie. It is only read.

**Source**: docs/reference/vhdx.md 1.8 to 1.10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from zlib import crc32

import numpy as np

from vhdkit.disk import extents, sector_bitmap
from vhdkit.disk.extents import Extents, Kind
from vhdkit.disk.file_image import FileImage
from vhdkit.disk.image import BlockPlaces, ImageFormat, StructureChecksums
from vhdkit.disk.ownership import NOWHERE, Ownership
from vhdkit.disk.sector_bitmap import BitOrder
from vhdkit.errors import CorruptImageError
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import MiB, ceil_div
from vhdkit.vhdx import bat
from vhdkit.vhdx.bat import BITMAP_PRESENT, BatLayout, State
from vhdkit.vhdx.bat_window import BlockRoom, Blocks, EntryTable, find_overlap
from vhdkit.vhdx.constants import TABLE_SIZE
from vhdkit.vhdx.corruption import VhdxCorruption
from vhdkit.vhdx.log_overlay import LogOverlay
from vhdkit.vhdx.refusal import not_written

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhdkit.storage.protocols import Storage
    from vhdkit.vhdx.metadata import VhdxMetadata

_CHECKSUM_PIECE: Final = 1 << 20


class VhdxImage(FileImage):
    """A fixed, dynamic or differencing VHDX; what it does not hold is looked for in a parent, or reads as zeros.

    Its blocks may lie on one another without keeping it from being opened: who reads it learns of that, once the whole
    table was looked through.
    """

    file_format = ImageFormat.VHDX

    def __init__(self, storage: Storage, metadata: VhdxMetadata) -> None:
        whole = storage if metadata.replay is None else LogOverlay(storage, metadata.replay)
        super().__init__(whole, metadata.size, metadata.kind, metadata.findings)
        self.metadata = metadata
        self.logical_sector_size = metadata.logical_sector_size
        self.block_size = metadata.block_size
        self.unique_id = metadata.unique_id
        self.parent = metadata.parent
        self.sectors_per_block = self.block_size // self.logical_sector_size
        has_parent = metadata.parameters.has_parent
        layout = BatLayout.of(self.size, self.block_size, self.logical_sector_size, has_bitmaps=has_parent)
        if layout.entry_count * bat.ENTRY_SIZE > metadata.bat.length:
            detail = (
                f"the BAT has room for {metadata.bat.length // bat.ENTRY_SIZE} entries, {layout.entry_count} are needed"
            )
            raise CorruptImageError(
                VhdxCorruption.BAT_TOO_SHORT, detail, path=self.path, offset=metadata.bat.file_offset
            )
        self.table = EntryTable(whole, metadata.bat.file_offset, layout)
        last = layout.block_count - 1
        self._room = BlockRoom(
            path=self.path,
            file_size=whole.size(),
            block_size=self.block_size,
            last_block=last,
            last_size=self.size - last * self.block_size,
            has_parent=has_parent,
        )
        self._is_looked_through = False
        self._unreadable: CorruptImageError | None = None

    @property
    def digest(self) -> str:
        """The digest of the current header and of the metadata."""
        return self.metadata.digest

    @property
    def hole(self) -> Kind:
        """What stands where this image holds nothing."""
        return Kind.PARENT if self._room.has_parent else Kind.ZERO

    def checksums(self) -> StructureChecksums:
        """Return the CRC-32s of the current header, of the metadata table and of the BAT."""
        self.check_open()
        region, length = self.metadata.bat, self.table.layout.entry_count * bat.ENTRY_SIZE
        table = 0
        for done in range(0, length, _CHECKSUM_PIECE):
            piece = min(_CHECKSUM_PIECE, length - done)
            table = crc32(read_bytes(self.storage, region.file_offset + done, piece), table)
        metadata = b"".join(read_bytes(self.storage, start, TABLE_SIZE) for start, _ in self.metadata.structures)
        return StructureChecksums(footer=crc32(self.metadata.header.to_bytes()), header=crc32(metadata), table=table)

    def is_empty(self) -> bool:
        """Whether no block is in any state but that of one that is not there."""
        self.check_open()
        count = self.table.layout.block_count
        return not any(
            (bat.states(entries[~self.table.layout.is_bitmap(index)]) != State.NOT_PRESENT)[: max(0, count)].any()
            for base, entries in self.table.windows()
            for index in (np.arange(base, base + len(entries)),)
        )

    def drop_tables(self) -> None:
        """Keep no window of the BAT."""
        self.check_open()
        self.table.forget()

    def check_readable(self) -> None:
        """Refuse an image whose blocks lie on one another, or on tables: which of them is right, nothing tells.

        Raises:
            CorruptImageError: saying where.

        """
        self.check_open()
        if not self._is_looked_through:
            self._unreadable = find_overlap(self.table, self._room, self.metadata.structures)
            self._is_looked_through = True
        if self._unreadable is not None:
            raise self._unreadable

    def check_writable(self) -> None:
        """Refuse."""
        self.check_open()
        raise not_written(self.path)

    def fill_past_end(self, offset: int, rest: memoryview) -> None:
        """Refuse to make up what the file lacks of a block."""
        self.check_open()
        del rest
        detail = f"the file ends at {offset:#x}, inside the data of a block"
        raise CorruptImageError(VhdxCorruption.BLOCK_OUTSIDE_FILE, detail, path=self.path, offset=offset)

    def _blocks(self, offset: int, stop: int) -> Blocks:
        """Return the blocks that touch a range and are in any state but that of one that is not there."""
        self.check_readable()
        first = offset // self.block_size
        return self._room.judged(first, self.table.payload(first, ceil_div(stop, self.block_size)))

    def resolve(self, offset: int, length: int) -> Extents:
        """Return where each byte of a range inside the disk comes from. Reads tables and bitmaps only.

        A block that is undefined, zero or unmapped reads as zeros and hides the parent.
        """
        found = self._blocks(offset, offset + length)
        full = found.take(found.states == State.FULLY_PRESENT)
        start, file_offset = full.blocks * self.block_size, full.offsets
        stop = start + self.block_size
        partial = found.take(found.states == State.PARTIALLY_PRESENT)
        if len(partial.blocks):
            sector = self.logical_sector_size
            row, low, high = sector_bitmap.runs(
                self._read_bitmaps(partial.blocks), self.sectors_per_block, BitOrder.LSB_FIRST
            )
            base = partial.blocks[row] * self.block_size
            start = np.concatenate((start, base + low * sector))
            stop = np.concatenate((stop, base + high * sector))
            file_offset = np.concatenate((file_offset, partial.offsets[row] + low * sector))
            order = np.argsort(start, kind="stable")
            start, stop, file_offset = start[order], stop[order], file_offset[order]
        held = extents.filled(start, stop, file_offset, offset, offset + length, self.hole)
        zeros = found.blocks[_are_zeros(found.states)] * self.block_size
        if self.hole is Kind.ZERO or not len(zeros):
            return held
        above = extents.filled(zeros, zeros + self.block_size, zeros, offset, offset + length, Kind.PARENT)
        return extents.overlay(_as_zeros(above), held)

    def allocated_blocks(self, offset: int, stop: int) -> NDArray[np.int64]:
        """Return the indices of the blocks with payload that touch a range."""
        found = self._blocks(offset, stop)
        return found.blocks[found.offsets >= 0]

    def block_places(self, offset: int, stop: int) -> BlockPlaces:
        """Return where the blocks with payload that touch a range lie in the file."""
        found = self._blocks(offset, stop)
        return BlockPlaces(found.offsets[found.offsets >= 0], self.block_size)

    def ownership(self, offset: int, stop: int) -> Ownership:
        """Return which sectors of a range the image holds; blocks of zeros that hide the parent lie nowhere."""
        found = self._blocks(offset, stop)
        bitmaps = np.full((len(found.blocks), self.sectors_per_block // 8), 0xFF, np.uint8)
        is_partial = found.states == State.PARTIALLY_PRESENT
        bitmaps[is_partial] = self._read_bitmaps(found.blocks[is_partial])
        at = np.where(_are_zeros(found.states), NOWHERE, found.offsets)
        return Ownership(found.blocks, bitmaps, at, BitOrder.LSB_FIRST)

    def mapped_sectors(self, offset: int, stop: int) -> int:
        """Return the sectors of a range that bitmaps decide about, and one for each other block."""
        found = self._blocks(offset, stop)
        partial = int((found.states == State.PARTIALLY_PRESENT).sum())
        most = min(self.sectors_per_block, (stop - offset) // self.logical_sector_size + 1)
        return partial * most + len(found.blocks) - partial

    def _read_bitmaps(self, blocks: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the bitmaps of blocks (ascending), one row each.

        Raises:
            CorruptImageError: one is not there.

        """
        width = self.sectors_per_block // 8
        rows = np.empty((len(blocks), width), np.uint8)
        if not len(blocks):
            return rows
        offsets = self._bitmap_offsets(blocks)
        # Neighbours in a chunk have neighbouring bitmaps.
        heads = np.flatnonzero(np.concatenate(([True], np.diff(offsets) != width)))
        for head, tail in zip(heads.tolist(), [*heads[1:].tolist(), len(blocks)], strict=True):
            piece = rows[head:tail]
            at = int(offsets[head])
            if self.storage.read_into(at, piece.data.cast("B")) < piece.size:
                detail = "the file ends inside a sector bitmap"
                raise CorruptImageError(VhdxCorruption.BITMAP_MISSING, detail, path=self.path, offset=at)
        return rows

    def _bitmap_offsets(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where the bitmaps of blocks (ascending) lie in the file."""
        ratio = self.table.layout.ratio
        chunks = extents.distinct(blocks // ratio)
        entries = self.table.bitmaps(chunks)
        mebibytes = bat.mebibytes(entries)
        wrong = (bat.states(entries) != BITMAP_PRESENT) | bat.have_reserved_bits(entries) | (mebibytes < 1)
        wrong |= mebibytes >= self._room.file_size // MiB
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            detail = (
                f"blocks from {chunks[at] * ratio} on are present in part, and the BAT entry of their bitmap block is"
                f" {int(entries[at]):#x}: expected one inside the file"
            )
            raise CorruptImageError(VhdxCorruption.BITMAP_MISSING, detail, path=self.path)
        of_block = np.searchsorted(chunks, blocks // ratio)
        return mebibytes[of_block] * MiB + blocks % ratio * (self.sectors_per_block // 8)


def _are_zeros(states: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which states read as zeros and hide the parent, whatever the block had before."""
    zeros: NDArray[np.bool_] = (states == State.UNDEFINED) | (states == State.ZERO) | (states == State.UNMAPPED)
    return zeros


def _as_zeros(found: Extents) -> Extents:
    """Return extents with zeros in place of data."""
    kind = np.where(found.kind == Kind.DATA, np.uint8(Kind.ZERO), found.kind)
    return Extents(
        start=found.start,
        stop=found.stop,
        kind=kind,
        depth=found.depth,
        file_offset=np.full(len(found), -1, np.int64),
    )
