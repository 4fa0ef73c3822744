"""The items of the metadata region, each held against what the format allows.

**Source**: docs/reference/vhdx.md 1.6, 5.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn

from vhdkit.disk.unique_id import guid
from vhdkit.errors import CorruptImageError, UnsupportedImageError
from vhdkit.storage.protocols import read_bytes
from vhdkit.vhdx import constants as c
from vhdkit.vhdx.corruption import VhdxCorruption
from vhdkit.vhdx.metadata_table import FileParameters, MetadataEntry, MetadataTable
from vhdkit.vhdx.parent_locator import SECOND_LINKAGE, VhdxLocator, parent_link

if TYPE_CHECKING:
    from vhdkit.disk.parent_link import ParentLink
    from vhdkit.storage.protocols import Storage
    from vhdkit.vhdx.judge import Judge
    from vhdkit.vhdx.region_table import Region


class MetadataItems:
    """The items of the metadata region; unknown ones are passed over unless they are required."""

    def __init__(self, storage: Storage, region: Region, judge: Judge) -> None:
        self._storage = storage
        self._region = region
        self._judge = judge
        self._own: dict[bytes, MetadataEntry] = {}
        self.offset = region.file_offset
        self.entries: tuple[MetadataEntry, ...] = ()
        self.raw = b""

    def read_table(self) -> None:
        """Read the table; nothing else is asked for before.

        Raises:
            CorruptImageError, UnsupportedImageError: the items cannot be read, or one is required and unknown.

        """
        self.raw = read_bytes(self._storage, self.offset, c.TABLE_SIZE)
        try:
            table = MetadataTable.from_bytes(self.raw)
        except CorruptImageError as error:
            raise error.located(self._storage.path, self.offset) from None
        if any(table.reserved) or any(table.reserved_tail):
            detail = "the metadata table's reserved fields are not zero"
            self._judge.refuse(VhdxCorruption.METADATA_TABLE, detail, self.offset + 8)
        self.entries = table.entries
        self._own = self._checked(table)

    def _give_up(self, corruption: VhdxCorruption, detail: str) -> NoReturn:
        self._judge.give_up(corruption, detail, self.offset)

    def _checked(self, table: MetadataTable) -> dict[bytes, MetadataEntry]:
        """Return the items of the format by their ids, all entries of the table having been looked at."""
        seen: set[tuple[bytes, bool]] = set()
        usable: list[MetadataEntry] = []
        for entry in table.entries:
            if (entry.item_id, entry.is_user) in seen:
                detail = f"the metadata item {guid(entry.item_id)} is there twice"
                self._judge.refuse(VhdxCorruption.ITEM_DUPLICATE, detail, self.offset)
            elif self._is_usable(entry):
                usable.append(entry)
            seen.add((entry.item_id, entry.is_user))
        held = sorted((entry.offset, entry.offset + entry.length) for entry in usable if entry.length)
        for (_, below_stop), (above_start, _) in pairwise(held):
            if below_stop > above_start:
                detail = f"two metadata items share the bytes at {above_start:#x}"
                self._judge.refuse(VhdxCorruption.ITEM_PLACE, detail, self.offset + above_start)
        own = {entry.item_id: entry for entry in usable if not entry.is_user}
        if c.INCOMPLETE_FILE in own:
            detail = "the program that made the file did not finish making it"
            self._judge.refuse(VhdxCorruption.FILE_INCOMPLETE, detail, self.offset)
        return own

    def _is_usable(self, entry: MetadataEntry) -> bool:
        name, stop = guid(entry.item_id), entry.offset + entry.length
        is_known = not entry.is_user and entry.item_id in c.KNOWN_ITEMS
        if entry.is_required and not is_known:
            message = f"the metadata item {name} is required for reading it, and unknown"
            self._judge.refuse_unknown(VhdxCorruption.ITEM_REQUIRED, message, self.offset)
        is_inside = entry.offset >= c.TABLE_SIZE and stop <= self._region.length
        if entry.length and not (is_inside and entry.length <= c.MAX_ITEM_BYTES):
            detail = f"the metadata item {name} is [{entry.offset:#x}, {stop:#x}), outside of its region"
            self._judge.refuse(VhdxCorruption.ITEM_PLACE, detail, self.offset)
            return False
        return True

    def _bytes(self, item_id: bytes) -> bytes | None:
        entry = self._own.get(item_id)
        if entry is None:
            return None
        raw = read_bytes(self._storage, self._region.file_offset + entry.offset, entry.length)
        self.raw += raw
        return raw

    def _sized(self, item_id: bytes, length: int, name: str) -> bytes | None:
        raw = self._bytes(item_id)
        if raw is not None and len(raw) != length:
            self._give_up(VhdxCorruption.ITEM_LENGTH, f"its {name} has {len(raw)} bytes, expected {length}")
        return raw

    def _needed(self, item_id: bytes, length: int, name: str) -> bytes:
        raw = self._sized(item_id, length, name)
        if raw is None:
            self._give_up(VhdxCorruption.METADATA_MISSING, f"it does not say its {name}")
        return raw

    def parameters(self) -> FileParameters:
        """Return how the file allocates."""
        found = FileParameters.from_bytes(self._needed(c.FILE_PARAMETERS, 8, "block size"))
        block = found.block_size
        if not c.MIN_BLOCK_SIZE <= block <= c.MAX_BLOCK_SIZE or block & (block - 1):
            expected = f"expected a power of two from {c.MIN_BLOCK_SIZE} to {c.MAX_BLOCK_SIZE}"
            self._give_up(VhdxCorruption.BLOCK_SIZE, f"the block size is {block}: {expected}")
        if found.flags & ~3:
            detail = f"the file parameters have the flags {found.flags:#x}, of which only the lowest two are known"
            self._judge.refuse(VhdxCorruption.PARAMETER_FLAGS, detail, self.offset)
        return found

    def disk_size(self) -> int:
        """Return the disk's size in bytes."""
        size = int.from_bytes(self._needed(c.VIRTUAL_DISK_SIZE, 8, "size"), "little")
        if not 0 < size <= c.MAX_DISK_SIZE:
            self._give_up(VhdxCorruption.DISK_SIZE, f"the disk's size is {size}: expected up to {c.MAX_DISK_SIZE}")
        return size

    def logical_sector_size(self) -> int:
        """Return what a guest sees as a sector, in bytes."""
        return self._sector(self._needed(c.LOGICAL_SECTOR_SIZE, 4, "logical sector size"))

    def physical_sector_size(self) -> int | None:
        """Return what a guest may know of the medium's sectors, in bytes; None if the file does not say."""
        raw = self._sized(c.PHYSICAL_SECTOR_SIZE, 4, "physical sector size")
        if raw is None:
            self._judge.note(VhdxCorruption.PHYSICAL_SIZE_MISSING, "it does not say its physical sector size")
            return None
        return self._sector(raw)

    def _sector(self, raw: bytes) -> int:
        size = int.from_bytes(raw, "little")
        if size not in c.SECTOR_SIZES:
            self._give_up(VhdxCorruption.SECTOR_SIZE, f"a sector size is {size}: expected 512 or 4096")
        return size

    def disk_id(self) -> bytes | None:
        """Return the id that the disk shows to a guest, which its children have as well; None if it has none."""
        raw = self._sized(c.VIRTUAL_DISK_ID, 16, "disk id")
        if raw is None:
            self._judge.note(VhdxCorruption.DISK_ID_MISSING, "it does not say its disk's id")
        return raw

    def parent(self, parameters: FileParameters) -> tuple[dict[str, str], ParentLink | None]:
        """Return the texts of the parent locator, and what they say."""
        raw = self._bytes(c.PARENT_LOCATOR)
        if not parameters.has_parent:
            if raw is not None:
                self._judge.note(VhdxCorruption.LOCATOR_UNUSED, "it says where a parent is, and that it has none")
            return {}, None
        if not raw:
            self._judge.refuse(VhdxCorruption.LOCATOR_MISSING, "it has a parent, and does not say which", self.offset)
            return {}, None
        return self._located_parent(raw, self.offset + self._own[c.PARENT_LOCATOR].offset)

    def _located_parent(self, raw: bytes, at: int) -> tuple[dict[str, str], ParentLink | None]:
        texts: dict[str, str] = {}
        link = None
        try:
            texts = VhdxLocator.from_bytes(raw).texts()
            link = parent_link(texts)
        except UnsupportedImageError as error:
            self._judge.refuse_unknown(VhdxCorruption.LOCATOR_TYPE, error.message, at)
        except CorruptImageError as error:
            self._judge.refuse_for(error.located(self._storage.path, at))
        if link is not None and link.other_ids:
            message = f"it has a second id of its parent ({SECOND_LINKAGE}): a change of the parent was not finished"
            self._judge.note(VhdxCorruption.LOCATOR_SECOND_LINKAGE, message, at)
        return texts, link
