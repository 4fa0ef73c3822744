"""An open dynamic or differencing VHD: where its blocks lie, and where the next ones go."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple
from zlib import crc32

import numpy as np

from vhdkit.corruption import Corruption, as_finding
from vhdkit.disk import extents, sector_bitmap
from vhdkit.disk.extents import Extents, Kind
from vhdkit.disk.holes import data_pieces
from vhdkit.disk.image import BlockPlaces, DiskKind, StructureChecksums
from vhdkit.disk.ownership import Ownership
from vhdkit.errors import CorruptImageError
from vhdkit.findings import Advice, Finding
from vhdkit.storage.prefetch import prefetch
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import SECTOR, ceil_div, round_up
from vhdkit.vhd import bat
from vhdkit.vhd.bat_window import Room, Table, check_placement, holds_data_from
from vhdkit.vhd.constants import FOOTER_SIZE, HEADER_SIZE
from vhdkit.vhd.footer_update import step_of_length
from vhdkit.vhd.image import VhdImage
from vhdkit.vhd.metadata import FooterPlace, SparseMetadata, structure_digest
from vhdkit.vhd.parent_change import is_parent_change, parent_patches
from vhdkit.vhd.write import begin_written, commit_written, write_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vhdkit.disk.parent_link import ParentChange
    from vhdkit.disk.written_sectors import WrittenSectors
    from vhdkit.journal.patch import Patch
    from vhdkit.storage.protocols import Folder, Storage

_PAGE = 4096
_ZEROS = 1 << 20

# A bitmap takes a sector of the file, and 512 bytes of memory, however few sectors it is about.
_TINY_SECTORS = 128


class Placement(NamedTuple):
    """Where new blocks lie in a file: bitmaps at `first`, `first + stride`, ..., data right behind each."""

    first: int
    stride: int

    @classmethod
    def behind(cls, free: int, block_size: int) -> Placement:
        """Return the placement for blocks from `free` on that puts their data at 4 KiB boundaries."""
        bitmap_size = sector_bitmap.bitmap_size(block_size)
        step = _PAGE if block_size >= _PAGE else SECTOR
        first = round_up(free + bitmap_size, step) - bitmap_size
        return cls(first, round_up(bitmap_size + block_size, step))

    def at(self, rank: int) -> int:
        """Return the file offset of the bitmap of the block of that rank."""
        return self.first + rank * self.stride

    def offsets(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the same for many, int64."""
        return self.first + ranks * self.stride


class SparseImage(VhdImage):
    """A dynamic or differencing VHD. Sizes and offsets are in bytes."""

    kind: Literal[DiskKind.DYNAMIC, DiskKind.DIFFERENCING]
    metadata: SparseMetadata

    def __init__(self, storage: Storage, metadata: SparseMetadata) -> None:
        super().__init__(storage, metadata)
        self.header = metadata.header
        self.parent = metadata.parent
        self.floor = metadata.reserved_end
        self.block_size = self.header.block_size
        self.bitmap_size = self.block_lead = sector_bitmap.bitmap_size(self.block_size)
        self.sectors_per_block = self.block_size // SECTOR
        self.table = Table(self.storage, self.header.table_offset, self.header.max_table_entries)
        self.placed = check_placement(self.table, self._room(), path=self.path)
        self.data_end = self.placed.end
        for error in (self.placed.unreadable, self.placed.doubtful):
            if error is not None:
                self.findings += (as_finding(error, self.path),)
        if self.placed.stray:
            message = f"{self.placed.stray} entries of its BAT lie behind the disk's end and lead nowhere; none is read"
            self.findings += (Finding(corruption=Corruption.BLOCK_BEYOND_DISK, path=self.path, message=message),)

    def _room(self) -> Room:
        last = (self.size - 1) // self.block_size
        metadata = self.metadata
        return Room(
            structures=metadata.structures,
            locators=metadata.locator_rooms if self.is_differencing else (),
            block_span=self.block_span,
            last_span=self.bitmap_size + self.size - last * self.block_size,
            needed=last + 1,
            limit=metadata.footer_start,
        )

    @property
    def digest(self) -> str:
        """The digest of the footer and of the dynamic header."""
        return structure_digest(self.footer, self.header)

    def checksums(self) -> StructureChecksums:
        """Return the CRC-32s of the file's footer, dynamic header and BAT as they are now."""
        header = read_bytes(self.storage, self.footer.data_offset, HEADER_SIZE)
        table = read_bytes(self.storage, self.header.table_offset, self.header.max_table_entries * 4)
        return super().checksums()._replace(header=crc32(header), table=crc32(table))

    def is_empty(self) -> bool:
        """Whether no block is allocated."""
        return not any(len(blocks) for blocks, _ in self.windows())

    def parent_patches(self, change: ParentChange) -> tuple[Patch, ...]:
        """Return what changes in the file when the parent is another, the header last.

        Raises:
            MergeError: the new path does not fit into its locator.

        """
        self.check_open()
        return parent_patches(self, change)

    def is_parent_change(self, patches: Sequence[Patch], unique_id: bytes) -> bool:
        """Whether patches make the image with an id the parent, and change nothing else."""
        self.check_open()
        return is_parent_change(self, patches, unique_id)

    def drop_tables(self) -> None:
        """Keep no window of the BAT."""
        self.check_open()
        self.table.forget()

    @property
    def block_span(self) -> int:
        """Bytes that a block takes in the file: bitmap and data."""
        return self.bitmap_size + self.block_size

    @property
    def hole(self) -> Kind:
        """What stands where this image holds nothing."""
        return Kind.PARENT if self.is_differencing else Kind.ZERO

    def check_readable(self) -> None:
        """Refuse an image whose blocks lie on one another: which of them has the right data, nothing tells.

        Raises:
            CorruptImageError: naming them.

        """
        self.check_open()
        if self.placed.unreadable is not None:
            raise self.placed.unreadable

    def check_sound(self) -> None:
        """Refuse an image that can be read at best; to be called before anything is written or removed.

        Raises:
            CorruptImageError: as `check_readable`; or a block lies on a locator's room, or where a lost footer should
                be.

        """
        self.check_readable()
        if self.placed.doubtful is not None:
            raise self.placed.doubtful
        self._check_last_sector()

    def _check_last_sector(self) -> None:
        """Refuse an image that lost its footer, and with it perhaps the last sector of its last block."""
        at, end = self.placed.farthest, self.metadata.footer_start
        if at < 0 or self.metadata.footer_place is not FooterPlace.COPY:
            return
        first = (end - FOOTER_SIZE - at - self.bitmap_size) // SECTOR
        row = self.read_bitmaps(np.array([at], np.int64))[0]
        if first < self.sectors_per_block and holds_data_from(row, first, self.sectors_per_block):
            detail = (
                f"its last block has data up to the file's end at {end:#x}, where its lost footer should be: the last"
                " sector may be lost too"
            )
            hint = Advice.REPAIR_FOOTERS.hint("if it is not, {} mends that", path=self.path)
            raise CorruptImageError(
                Corruption.BLOCK_IN_FOOTER, detail, path=self.path, offset=end - FOOTER_SIZE, hint=hint
            )

    def resolve(self, offset: int, length: int) -> Extents:
        """Return where each byte of a range inside the disk comes from, by BAT and sector bitmaps.

        A clear bit means zeros in a dynamic disk and the parent in a differencing one. Reads tables and bitmaps only.
        """
        blocks, at = self.allocated(offset, offset + length)
        row, start, stop = sector_bitmap.runs(self.read_bitmaps(at), self.sectors_per_block)
        base = blocks[row] * self.block_size
        data = at[row] + self.bitmap_size + start * SECTOR
        return extents.filled(base + start * SECTOR, base + stop * SECTOR, data, offset, offset + length, self.hole)

    def allocated(self, offset: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the allocated blocks that touch a range: their indices and their bitmaps' file offsets.

        Raises:
            CorruptImageError: as `check_readable`.

        """
        self.check_readable()
        first = offset // self.block_size
        entries = self.table.entries(first, ceil_div(stop, self.block_size))
        inside = bat.allocated(entries)
        return inside + first, bat.offsets(entries[inside])

    def allocated_blocks(self, offset: int, stop: int) -> NDArray[np.int64]:
        """Return the indices of the allocated blocks that touch a range."""
        return self.allocated(offset, stop)[0]

    def block_places(self, offset: int, stop: int) -> BlockPlaces:
        """Return where the allocated blocks that touch a range lie in the file, bitmaps included."""
        return BlockPlaces(self.allocated(offset, stop)[1], self.block_span)

    def ownership(self, offset: int, stop: int) -> Ownership:
        """Return which sectors of a range the image holds."""
        blocks, at = self.allocated(offset, stop)
        return Ownership(blocks, self.read_bitmaps(at), at + self.bitmap_size)

    def read_bitmaps(self, offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the bitmaps at the given file offsets, one row each."""
        self.check_open()
        rows = np.empty((len(offsets), self.bitmap_size), np.uint8)
        prefetch(self.storage, offsets.tolist(), self.bitmap_size)
        for row, offset in zip(rows, offsets.tolist(), strict=True):
            if self.storage.read_into(offset, row.data) < self.bitmap_size:
                detail = "the file ends inside a sector bitmap"
                raise CorruptImageError(Corruption.BLOCK_OUTSIDE_FILE, detail, path=self.path, offset=offset)
        return rows

    def mapped_sectors(self, offset: int, stop: int) -> int:
        """Return the sectors of allocated blocks in a range; of tiny blocks as many as their bitmaps cost."""
        self.check_open()
        blocks, _ = self.allocated(offset, stop)
        return len(blocks) * max(_TINY_SECTORS, min(self.sectors_per_block, (stop - offset) // SECTOR + 1))

    def _write(self, offset: int, view: memoryview, *, sync: bool) -> None:
        write_blocks(self, offset, view, sync=sync)

    def block_offsets(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where the bitmaps of blocks (ascending) lie in the file, -1 where they are not allocated."""
        self.check_open()
        if not len(blocks):
            return np.empty(0, np.int64)
        first = int(blocks[0])
        entries = self.table.entries(first, int(blocks[-1]) + 1)[blocks - first]
        return np.where(entries == bat.UNALLOCATED, np.int64(-1), bat.offsets(entries))

    def begin_blocks(self, written: WrittenSectors) -> None:
        """Write the bitmaps of new blocks: nothing refers to them before their BAT entries."""
        self.check_writable()
        begin_written(self, written)

    def commit(self, written: WrittenSectors, *, again: bool = False) -> None:
        """Set the bits of sectors in old blocks, then write the BAT entries of new ones.

        With `again` bits and entries are written even if the file seems to have them.
        """
        self.check_writable()
        commit_written(self, written, again=again)

    def windows(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield (indices, bitmap offsets) of all allocated blocks, a window of the table at a time.

        What lies beyond the disk's end counts where it could be a block: a disk that grows has some.
        """
        self.check_open()
        room = self._room()
        for base, entries in self.table.windows():
            inside = bat.allocated(entries)
            at = bat.offsets(entries[inside])
            kept = (inside + base < room.needed) | room.is_usable(at)
            yield inside[kept] + base, at[kept]

    def entries_beyond(self, size: int) -> tuple[int, int]:
        """Return how many entries lie behind the disk's end, up to `size`: that could be blocks, and that could not."""
        self.check_open()
        first, stop = ceil_div(self.size, self.block_size), ceil_div(size, self.block_size)
        entries = self.table.entries(first, min(stop, self.table.entry_count))
        usable = self._room().is_usable(bat.offsets(entries[bat.allocated(entries)]))
        return int(usable.sum()), int((~usable).sum())

    def assign(self, blocks: NDArray[np.int64], offsets: NDArray[np.int64]) -> None:
        """Write the BAT entries of blocks (ascending), whose bitmaps lie at the offsets."""
        with self._changing():
            self.table.assign(blocks, (offsets // SECTOR).astype(np.uint32))
        self.data_end = max(self.data_end, int(offsets.max()) + self.block_span)

    def placement(self, count: int) -> Placement:
        """Return where the bitmaps of the next `count` new blocks will lie.

        Data begin at 4 KiB boundaries, as Windows 8 and later place them; space that nothing refers to behind the last
        block is used again. Nothing is placed before `floor`.

        Raises:
            OSError: EFBIG, a BAT cannot address what lies beyond 2 TiB.

        """
        self.check_open()
        place = Placement.behind(max(self.data_end, self.floor), self.block_size)
        if place.at(count) // SECTOR >= bat.UNALLOCATED:
            raise OSError(errno.EFBIG, "the file would pass 2 TiB, which a BAT cannot address", self.path)
        return place

    def file_end_for(self, new_blocks: int) -> int:
        """Return where the footer goes once `new_blocks` more are placed; a file never shrinks here."""
        self.check_open()
        end = self.metadata.footer_start
        if self.metadata.tail_is_empty and not self.has_whole_footer:
            # Room for a footer that a power cut kept from being written: it is used, not added to.
            end -= FOOTER_SIZE
        end = max(end, self.data_end, self.floor)
        if new_blocks:
            end = max(end, self.placement(new_blocks).at(new_blocks - 1) + self.block_span)
        return round_up(end, SECTOR)

    def extend(self, new_blocks: int, *, reserve: bool, sync: bool, folder: Folder | None = None) -> None:
        """Make room for blocks where `placement` puts them, and let the file end with a footer behind them.

        **Order**: 1 the footer copy, if it is not what it should be, sync · 2 the footer at the new end, sync (a cut
        leaves the old file, or a longer one that ends with the footer; where only the length survived, the copy at
        offset 0 serves, and a step file in `folder` or a merge's journal explains it) · 3 the space between taken, if
        `reserve`, and zeros over what lay where the blocks go (unused bytes; holes stay). The syncs are done if `sync`.
        """
        self.check_writable()
        used_end = self.placement(new_blocks).at(new_blocks) if new_blocks else self.data_end
        self.extend_to(self.file_end_for(new_blocks), used_end, reserve=reserve, sync=sync, folder=folder)

    def extend_to(
        self, new_end: int, used_end: int, *, reserve: bool, sync: bool, folder: Folder | None = None
    ) -> None:
        """Do what `extend` does, with the footer at `new_end` and room for blocks up to `used_end`."""
        self.check_writable()
        old_size = self.metadata.file_size
        old_end = min(max(self.data_end, self.metadata.reserved_end), self.metadata.footer_start)
        if not self.metadata.copy_ok:
            self.write_at(0, self.footer.to_bytes())
            self._sync_if(wanted=sync)
        with self._changing(), step_of_length(folder if new_end >= old_size else None, self, new_end):
            try:
                self.write_footer(new_end)
                self._sync_if(wanted=sync)
                if reserve and new_end > old_size:
                    self.storage.reserve(old_size, new_end - old_size)
            except OSError:
                # The old footer is still in its place: the file is what it was.
                if new_end >= old_size:
                    self.storage.truncate(old_size)
                raise
        stale = min(old_size, used_end, new_end)
        for start, stop in data_pieces(self.storage, old_end, stale, _ZEROS):
            self.write_at(start, bytes(stop - start))
        self.metadata = replace(
            self.metadata, file_size=new_end + FOOTER_SIZE, footer_place=FooterPlace.TRAILING, copy_ok=True
        )
