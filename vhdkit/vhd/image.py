"""An open image: what it holds of a range, and the changes that one image alone can make.

A `VhdImage` is one of the few mutable things here: it owns a storage, and when it is writable it knows where the
next block goes. It never looks for a parent; `chain` does that.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vhdkit.arguments import checked
from vhdkit.disk import extents, sector_bitmap
from vhdkit.disk.extents import Extents, Kind
from vhdkit.disk.file_image import FileImage
from vhdkit.disk.image import DiskKind
from vhdkit.errors import CorruptImageError, ReadOnlyImageError
from vhdkit.findings import Finding
from vhdkit.journal.merge_journal import command
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.units import SECTOR, as_text
from vhdkit.vhd import bat
from vhdkit.vhd.bat_window import Placed, Room, Table, check_placement, holds_data_from
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.corruption import Corruption, as_finding
from vhdkit.vhd.file_name import note_raw_disk
from vhdkit.vhd.footer import DiskType, Footer
from vhdkit.vhd.header_update import finish, pending
from vhdkit.vhd.metadata import FooterPlace, Metadata, read_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vhdkit.journal.patch import Patch
    from vhdkit.storage.protocols import Folder, Storage
    from vhdkit.units import StrPath
    from vhdkit.vhd.header import DynamicHeader

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
        first = -(-(free + bitmap_size) // step) * step - bitmap_size
        return cls(first, -(-(bitmap_size + block_size) // step) * step)

    def at(self, rank: int) -> int:
        """Return the file offset of the bitmap of the block of that rank."""
        return self.first + rank * self.stride

    def offsets(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the same for many, int64."""
        return self.first + ranks * self.stride


class VhdImage(FileImage):
    """A fixed, dynamic or differencing VHD. Sizes and offsets are in bytes."""

    def __init__(self, storage: Storage, metadata: Metadata) -> None:
        footer = metadata.footer
        super().__init__(storage, footer.current_size, DiskKind(footer.disk_type.label), metadata.findings)
        self.metadata = metadata
        self.footer: Footer = footer
        self.header: DynamicHeader | None = metadata.header
        self.unique_id = footer.unique_id
        self.disk_type = footer.disk_type
        # A change of its header that was cut off, by which it is read.
        self.step_patches: tuple[Patch, ...] = ()
        self.data_end = self.size
        self.placed = Placed(end=self.size, farthest=-1, stray=0, unreadable=None, doubtful=None)
        self.floor = metadata.reserved_end
        self.bitmap_size = self.sectors_per_block = 0
        if self.header is not None:
            self.block_size = self.header.block_size
            self.bitmap_size = sector_bitmap.bitmap_size(self.block_size)
            self.sectors_per_block = self.block_size // SECTOR
            self._open_table(self.header)

    def _open_table(self, header: DynamicHeader) -> None:
        self.table = Table(self.storage, header.table_offset, header.max_table_entries)
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
    def is_fixed(self) -> bool:
        """Whether the disk has no blocks."""
        return self.disk_type is DiskType.FIXED

    @property
    def is_differencing(self) -> bool:
        """Whether what it does not hold is looked for in a parent."""
        return self.disk_type is DiskType.DIFFERENCING

    @property
    def has_whole_footer(self) -> bool:
        """Whether the file ends with a valid footer of 512 bytes."""
        return self.metadata.footer_place is FooterPlace.TRAILING

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
                be; or a fixed disk's footer is not at its file's end.

        """
        self.check_readable()
        if self.placed.doubtful is not None:
            raise self.placed.doubtful
        self._check_last_sector()
        if self.metadata.footer_place is FooterPlace.INSIDE:
            detail = f"its footer is not at its end; {command('check', '--repair-footers', self.path)} mends that"
            raise CorruptImageError(Corruption.FOOTER_MISPLACED, detail, path=self.path, offset=self.size)

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
                f" sector may be lost too; if it is not, {command('check', '--repair-footers', self.path)} mends that"
            )
            raise CorruptImageError(Corruption.BLOCK_IN_FOOTER, detail, path=self.path, offset=end - FOOTER_SIZE)

    def resolve(self, offset: int, length: int) -> Extents:
        """Return where each byte of a range inside the disk comes from, by BAT and sector bitmaps.

        A clear bit means zeros in a dynamic disk and the parent in a differencing one. Reads tables and bitmaps only.
        """
        if self.is_fixed:
            self.check_open()
            return extents.single(offset, offset + length, Kind.DATA, offset)
        blocks, at = self.allocated(offset, offset + length)
        row, start, stop = sector_bitmap.runs(self.read_bitmaps(at), self.sectors_per_block)
        base = blocks[row] * self.block_size
        data = at[row] + self.bitmap_size + start * SECTOR
        return extents.filled(base + start * SECTOR, base + stop * SECTOR, data, offset, offset + length, self.hole)

    def fill_past_end(self, offset: int, rest: memoryview) -> None:
        """Refuse to make up what the file lacks of a block."""
        self.check_open()
        del rest
        detail = f"the file ends at {offset:#x}, inside the data of a block"
        raise CorruptImageError(Corruption.BLOCK_OUTSIDE_FILE, detail, path=self.path, offset=offset)

    def check_writable(self) -> None:
        """Refuse to write to what was opened for reading, or failed before.

        Raises:
            ReadOnlyImageError: either is so, or a change of its header is to be finished first.
            ValueError: it is closed.

        """
        super().check_writable()
        if self.step_patches:
            message = "a change of its header was cut off, and is to be finished before anything else is written"
            raise ReadOnlyImageError(message, path=self.path)

    def allocated(self, offset: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the allocated blocks that touch a range: their indices and their bitmaps' file offsets.

        Raises:
            CorruptImageError: as `check_readable`.

        """
        self.check_readable()
        first = offset // self.block_size
        entries = self.table.entries(first, -(-stop // self.block_size))
        inside = bat.allocated(entries)
        return inside + first, bat.offsets(entries[inside])

    def read_bitmaps(self, offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the bitmaps at the given file offsets, one row each."""
        self.check_open()
        rows = np.empty((len(offsets), self.bitmap_size), np.uint8)
        for row, offset in zip(rows, offsets.tolist(), strict=True):
            if self.storage.read_into(offset, row.data) < self.bitmap_size:
                detail = "the file ends inside a sector bitmap"
                raise CorruptImageError(Corruption.BLOCK_OUTSIDE_FILE, detail, path=self.path, offset=offset)
        return rows

    def mapped_sectors(self, offset: int, stop: int) -> int:
        """Return the sectors of allocated blocks in a range; of tiny blocks as many as their bitmaps cost."""
        self.check_open()
        if self.is_fixed:
            return 0
        blocks, _ = self.allocated(offset, stop)
        return len(blocks) * max(_TINY_SECTORS, min(self.sectors_per_block, (stop - offset) // SECTOR + 1))

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
        first, stop = -(-self.size // self.block_size), -(-size // self.block_size)
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

    def finish_step(self, folder: Folder) -> None:
        """Finish a change of the header that was cut off, by which the image is read already; it is held exclusively.

        Raises:
            ImageInUseError: somebody else holds it.

        """
        self.check_open()
        if self.step_patches:
            self.storage.lock(exclusive=True)
            finish(folder, self.storage)
            self.step_patches = ()

    def write_footer(self, offset: int) -> None:
        """Write the footer so that the file ends with it, extending the file as far as needed."""
        self.write_at(offset, self.footer.to_bytes())

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
        return -(-end // SECTOR) * SECTOR

    def extend(self, new_blocks: int, *, reserve: bool, sync: bool) -> None:
        """Make room for blocks where `placement` puts them, and let the file end with a footer behind them.

        **Order**: 1 the footer copy, if it is not what it should be, sync · 2 the footer at the new end, sync (a cut
        leaves the old file, or a longer one that ends with the footer; where only the length survived, the copy at
        offset 0 serves) · 3 the space between taken, if `reserve`, and zeros over what lay where the blocks go (unused
        bytes). The syncs are done if `sync`.
        """
        self.check_writable()
        used_end = self.placement(new_blocks).at(new_blocks) if new_blocks else self.data_end
        self.extend_to(self.file_end_for(new_blocks), used_end, reserve=reserve, sync=sync)

    def extend_to(self, new_end: int, used_end: int, *, reserve: bool, sync: bool) -> None:
        """Do what `extend` does, with the footer at `new_end` and room for blocks up to `used_end`."""
        self.check_writable()
        old_size = self.metadata.file_size
        old_end = min(max(self.data_end, self.metadata.reserved_end), self.metadata.footer_start)
        if not self.metadata.copy_ok:
            self.write_at(0, self.footer.to_bytes())
            self._sync_if(wanted=sync)
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
        for at in range(old_end, stale, _ZEROS):
            self.write_at(at, bytes(min(_ZEROS, stale - at)))
        self.metadata = replace(
            self.metadata, file_size=new_end + FOOTER_SIZE, footer_place=FooterPlace.TRAILING, copy_ok=True
        )

    def _sync_if(self, *, wanted: bool) -> None:
        if wanted:
            self.sync()


@checked
def open_image(
    path: StrPath,
    *,
    writable: bool = False,
    verify: bool = True,
    verify_header: bool = True,
    exclusive: bool | None = None,
    finish_step: bool = True,
    follow_links: bool = True,
    folder: Folder | None = None,
) -> VhdImage:
    """Open one image, without its parents; with `verify` false wrong checksums are put up with.

    With `verify_header` false that of the dynamic header alone is.
    With `follow_links` false the last component of the path must be no symbolic link: for names from side files.

    Unless `exclusive` is None it is locked before anything in it is believed: for nobody else to use, or to write.
    A change of its header that was cut off is finished if it is opened to be written and `finish_step` is true; until
    then the image is read as if it were finished, and cannot be written.

    Raises:
        CorruptImageError, UnsupportedImageError: the file is no VHD that can be read safely.
        ReadOnlyImageError: it should be written and is marked read-only.
        ImageInUseError: somebody else holds it.
        OSError: the file cannot be opened.

    """
    place = folder or LocalFolder()
    path = place.real(as_text(path)) if follow_links else as_text(path)
    if writable and place.exists(path) and not place.may_write(path):
        raise _read_only(place, path)
    storage = place.open(path, writable=writable)
    try:
        if exclusive is not None:
            storage.lock(exclusive=exclusive)
        if writable and storage.is_protected:
            # Between the look above and the lock it was frozen.
            raise _read_only(place, path)
        patches = pending(place, storage)
        metadata = read_metadata(storage, verify=verify, verify_header=verify_header, patches=patches)
        image = VhdImage(storage, metadata)
        image.step_patches = patches
        if writable and finish_step:
            image.finish_step(place)
    except CorruptImageError as error:
        note_raw_disk(error, storage)
        storage.close()
        raise
    except BaseException:
        storage.close()
        raise
    return image


def _read_only(folder: Folder, path: str) -> ReadOnlyImageError:
    from vhdkit.journal.claims import frozen_text  # noqa: PLC0415 - where a file is refused, and only there

    why = frozen_text(folder, path) or "the file is read-only; allow writing to it first"
    return ReadOnlyImageError(why, path=path)
