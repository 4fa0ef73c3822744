"""The metadata table: which items the metadata region holds, and where in it.

**Source**: docs/reference/vhdx.md 1.6.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vhdkit.errors import CorruptImageError
from vhdkit.vhdx import structs
from vhdkit.vhdx.constants import MAX_ENTRIES, METADATA_SIGNATURE, TABLE_SIZE
from vhdkit.vhdx.corruption import VhdxCorruption


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataEntry:
    """An item: `offset` counts from the region's start, `length` is in bytes, 0 for an item that is empty."""

    item_id: bytes
    offset: int
    length: int
    flags: int
    reserved: int = 0

    @property
    def is_user(self) -> bool:
        """Whether a user of the disk put it there, not the format."""
        return bool(self.flags & 1)

    @property
    def is_required(self) -> bool:
        """Whether who does not know it must not open the file."""
        return bool(self.flags & 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataTable:
    """The items; `rest` is what follows their entries."""

    entries: tuple[MetadataEntry, ...]
    rest: bytes
    reserved: bytes = bytes(2)
    reserved_tail: bytes = bytes(20)

    @classmethod
    def from_bytes(cls, raw: bytes) -> MetadataTable:
        """Read 64 KiB.

        Raises:
            CorruptImageError: no table, or more entries than a table has.

        """
        if len(raw) < TABLE_SIZE or raw[:8] != METADATA_SIGNATURE:
            detail = f"no metadata table: expected {METADATA_SIGNATURE!r}, found {raw[:8]!r}"
            raise CorruptImageError(VhdxCorruption.METADATA_TABLE, detail, offset=0)
        count = int.from_bytes(raw[10:12], "little")
        if count > MAX_ENTRIES:
            detail = f"the metadata table has {count} entries, at most {MAX_ENTRIES} fit"
            raise CorruptImageError(VhdxCorruption.METADATA_TABLE, detail, offset=10)
        fields = structs.parse_record(structs.METADATA_TABLE, raw)
        entries = tuple(MetadataEntry(**entry) for entry in fields["entries"])
        return cls(
            entries=entries,
            rest=fields["rest"],
            reserved=fields["reserved"],
            reserved_tail=fields["reserved_tail"],
        )

    def to_bytes(self) -> bytes:
        """Return the 64 KiB."""
        own = {"signature": METADATA_SIGNATURE, "entry_count": len(self.entries)}
        return structs.build_record(structs.METADATA_TABLE, asdict(self) | own)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileParameters:
    """How the file allocates; the block size is in bytes."""

    block_size: int
    flags: int

    @classmethod
    def from_bytes(cls, raw: bytes) -> FileParameters:
        """Read 8 bytes."""
        return cls(**structs.parse_record(structs.FILE_PARAMETERS, raw))

    def to_bytes(self) -> bytes:
        """Return the 8 bytes."""
        return structs.build_record(structs.FILE_PARAMETERS, asdict(self))

    @property
    def is_fixed(self) -> bool:
        """Whether blocks are to stay allocated; that all of them are is not said."""
        return bool(self.flags & 1)

    @property
    def has_parent(self) -> bool:
        """Whether the disk is a differencing one."""
        return bool(self.flags & 2)
