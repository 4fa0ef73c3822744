"""A file that is nothing but a disk's content: the parent at the bottom of a chain, or a disk to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.disk import extents
from vhdkit.disk.extents import Kind
from vhdkit.disk.file_image import FileImage
from vhdkit.disk.image import DiskKind
from vhdkit.units import SECTOR, round_up

if TYPE_CHECKING:
    from vhdkit.disk.extents import Extents
    from vhdkit.storage.protocols import Storage


class RawImage(FileImage):
    """A raw file, only ever read; its last sector may be cut, and reads as if it were whole."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage, round_up(storage.size(), SECTOR), DiskKind.RAW)

    def resolve(self, offset: int, length: int) -> Extents:
        """Return one extent: every byte lies in the file where it lies on the disk."""
        self.check_open()
        return extents.single(offset, offset + length, Kind.DATA, offset)

    def fill_past_end(self, offset: int, rest: memoryview) -> None:
        """Fill the rest with zeros."""
        self.check_open()
        del offset
        rest[:] = bytes(len(rest))
