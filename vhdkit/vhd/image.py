"""What open VHDs of all types share, and fixed disks.

A `VhdImage` is one of the few mutable things here: it owns a storage, and when it is writable it knows where the next
block goes. It never looks for a parent; `chain` does that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from zlib import crc32

import numpy as np

from vhdkit.corruption import Corruption
from vhdkit.debug_log import debug
from vhdkit.disk import extents
from vhdkit.disk.extents import Extents, Kind
from vhdkit.disk.file_image import FileImage
from vhdkit.disk.image import DiskKind, ImageFormat, StructureChecksums
from vhdkit.errors import CorruptImageError, MergeError, ReadOnlyImageError
from vhdkit.findings import Advice
from vhdkit.storage.protocols import read_bytes
from vhdkit.vhd import header_update
from vhdkit.vhd.constants import FOOTER_SIZE, UNDO_IMAGE_VERSION
from vhdkit.vhd.footer import DiskType, Footer
from vhdkit.vhd.metadata import FooterPlace, Metadata, structure_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vhdkit.disk.parent_link import ParentChange
    from vhdkit.disk.written_sectors import WrittenSectors
    from vhdkit.journal.patch import Patch
    from vhdkit.storage.protocols import Folder, Storage


class VhdImage(FileImage):
    """A fixed, dynamic or differencing VHD. Sizes and offsets are in bytes."""

    file_format = ImageFormat.VHD

    def __init__(self, storage: Storage, metadata: Metadata) -> None:
        super().__init__(storage, metadata.size, metadata.kind, metadata.findings)
        self.metadata = metadata
        self.footer: Footer = metadata.footer
        self.unique_id = metadata.unique_id
        self.timestamp = metadata.timestamp
        self.is_saved_state = bool(metadata.footer.saved_state)
        self.is_undo_image = metadata.footer.creator_version == UNDO_IMAGE_VERSION
        self.disk_type = metadata.footer.disk_type
        # Bytes of the file between where a block lies and its first sector.
        self.block_lead = 0
        # A change of its header that was cut off, by which it is read.
        self.step_patches: tuple[Patch, ...] = ()
        # Where the step files of its changes go; None for an image that is only looked at.
        self.folder: Folder | None = None

    @property
    def digest(self) -> str:
        """The digest of the footer, and of the dynamic header if there is one."""
        return structure_digest(self.footer)

    def checksums(self) -> StructureChecksums:
        """Return the CRC-32s of the file's footer, dynamic header and BAT as they are now."""
        at = max(0, self.storage.size() - FOOTER_SIZE)
        return StructureChecksums(footer=crc32(read_bytes(self.storage, at, FOOTER_SIZE)), header=0, table=0)

    @property
    def is_differencing(self) -> bool:
        """Whether what it does not hold is looked for in a parent."""
        return self.disk_type is DiskType.DIFFERENCING

    @property
    def has_step(self) -> bool:
        """Whether a change of its header was cut off: it is read as if that were finished, and not written before."""
        return bool(self.step_patches)

    @property
    def is_sealed(self) -> bool:
        """Whether the checksums of footer and dynamic header were right."""
        return self.metadata.checksum_ok

    @property
    def has_whole_footer(self) -> bool:
        """Whether the file ends with a valid footer of 512 bytes."""
        return self.metadata.footer_place is FooterPlace.TRAILING

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

    def finish_step(self, folder: Folder) -> None:
        """Finish a change of the header that was cut off, by which the image is read already; it is held exclusively.

        Raises:
            ImageInUseError: somebody else holds it.

        """
        self.check_open()
        if self.step_patches:
            self.storage.lock(exclusive=True)
            debug("vhd", "%s: a change of its header that was cut off is finished", self.path)
            header_update.finish(folder, self.storage)
            self.step_patches = ()

    def parent_patches(self, change: ParentChange) -> tuple[Patch, ...]:
        """Return what changes in the file when the parent is another, the header last.

        Raises:
            MergeError: it has no parent, or the new path does not fit.

        """
        raise NotImplementedError

    def is_parent_change(self, patches: Sequence[Patch], unique_id: bytes) -> bool:
        """Whether patches make the image with an id the parent, and change nothing else."""
        raise NotImplementedError

    def apply(self, folder: Folder, patches: Sequence[Patch]) -> None:
        """Write durably what `parent_patches` returned, in one step that a power cut cannot halve."""
        self.check_writable()
        header_update.apply(folder, self.storage, patches)

    def is_step_changed(self, folder: Folder) -> bool:
        """Whether somebody has begun or finished such a step since the image was opened."""
        self.check_open()
        return header_update.pending(folder, self.storage) != self.step_patches

    def forget_step(self, folder: Folder) -> None:
        """Remove what is left of such a step that was done."""
        self.check_open()
        header_update.forget(folder, self.path)

    def write(self, offset: int, data: bytes | memoryview, *, sync: bool = False) -> None:
        """Write whole sectors at a byte offset of the disk; with `sync` each step is durable before the next.

        Raises:
            ValueError: the range is not of whole sectors or leaves the disk.
            ReadOnlyImageError: the image may not be written.
            OSError: from the file; the image then refuses further writes.

        """
        view, sector = memoryview(data).cast("B"), self.logical_sector_size
        if offset % sector or len(view) % sector or offset < 0 or offset + len(view) > self.size:
            raise ValueError(f"[{offset}, {offset + len(view)}) is not of whole sectors inside {self.size} bytes")
        self.check_writable()
        if len(view):
            self._write(offset, view, sync=sync)

    def _write(self, offset: int, view: memoryview, *, sync: bool) -> None:
        raise NotImplementedError

    def block_offsets(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where blocks (ascending) lie in the file, -1 where they are not allocated."""
        self.check_open()
        return np.full(len(blocks), -1, np.int64)

    def begin_blocks(self, written: WrittenSectors) -> None:
        """Write what the file needs of new blocks besides their payload; nothing refers to them yet."""
        self.check_writable()
        del written

    def commit(self, written: WrittenSectors, *, again: bool = False) -> None:
        """Write what refers to sectors whose payload, and whose blocks' beginnings, are durable.

        With `again` what seems to be written already is written once more.
        """
        self.check_writable()
        del written, again

    def write_footer(self, offset: int) -> None:
        """Write the footer so that the file ends with it, extending the file as far as needed."""
        self.write_at(offset, self.footer.to_bytes())

    def _sync_if(self, *, wanted: bool) -> None:
        if wanted:
            self.sync()


class FixedImage(VhdImage):
    """A fixed disk: its content, and a footer behind it."""

    kind: Literal[DiskKind.FIXED]

    def check_sound(self) -> None:
        """Refuse an image that can be read at best; to be called before anything is written or removed.

        Raises:
            CorruptImageError: its footer is not at its file's end.

        """
        self.check_readable()
        if self.metadata.footer_place is FooterPlace.INSIDE:
            detail, hint = "its footer is not at its end", Advice.REPAIR_FOOTERS.hint("{} mends that", path=self.path)
            raise CorruptImageError(Corruption.FOOTER_MISPLACED, detail, path=self.path, offset=self.size, hint=hint)

    def parent_patches(self, change: ParentChange) -> tuple[Patch, ...]:
        """Refuse."""
        self.check_open()
        del change
        raise MergeError("a fixed disk has no parent to relink", path=self.path)

    def is_parent_change(self, patches: Sequence[Patch], unique_id: bytes) -> bool:
        """Return False: it has no parent."""
        self.check_open()
        del patches, unique_id
        return False

    def _write(self, offset: int, view: memoryview, *, sync: bool) -> None:
        self.write_at(offset, view)
        self._sync_if(wanted=sync)

    def resolve(self, offset: int, length: int) -> Extents:
        """Return one extent: every byte lies in the file where it lies on the disk."""
        self.check_open()
        return extents.single(offset, offset + length, Kind.DATA, offset)
