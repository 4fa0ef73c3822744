"""The region table: 64 KiB at 192 KiB, and a copy at 256 KiB, that say where BAT and metadata lie.

**Source**: docs/reference/vhdx.md 1.5.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vhdkit.errors import CorruptImageError
from vhdkit.vhdx import checksum, structs
from vhdkit.vhdx.constants import MAX_ENTRIES, REGION_SIGNATURE, TABLE_SIZE
from vhdkit.vhdx.corruption import VhdxCorruption


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A stretch of the file, in bytes; bit 0 of `flags` says that who does not know it must not open the file."""

    guid: bytes
    file_offset: int
    length: int
    flags: int

    @property
    def is_required(self) -> bool:
        """Whether a reader has to know it."""
        return bool(self.flags & 1)

    @property
    def stop(self) -> int:
        """Where it ends."""
        return self.file_offset + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionTable:
    """The regions; `rest` is what follows their entries, zeros in all files known."""

    entries: tuple[Region, ...]
    rest: bytes
    reserved: int = 0

    @classmethod
    def from_bytes(cls, raw: bytes, *, verify: bool = True) -> RegionTable:
        """Read 64 KiB; with `verify` false a wrong checksum is tolerated.

        Raises:
            CorruptImageError: no table, a wrong checksum, or more entries than a table has.

        """
        if len(raw) < TABLE_SIZE or raw[:4] != REGION_SIGNATURE:
            detail = f"no region table: expected {REGION_SIGNATURE!r}, found {raw[:4]!r}"
            raise CorruptImageError(VhdxCorruption.REGION_TABLES_LOST, detail, offset=0)
        stored, computed = checksum.stored(raw), checksum.computed(raw)
        if verify and stored != computed:
            detail = f"the region table's checksum is {stored:#010x}, its bytes have {computed:#010x}"
            raise CorruptImageError(VhdxCorruption.REGION_TABLES_LOST, detail, offset=4)
        count = int.from_bytes(raw[8:12], "little")
        if count > MAX_ENTRIES:
            detail = f"the region table has {count} entries, at most {MAX_ENTRIES} fit"
            raise CorruptImageError(VhdxCorruption.REGION_TABLE, detail, offset=8)
        fields = structs.parse_record(structs.REGION_TABLE, raw)
        entries = tuple(Region(**entry) for entry in fields["entries"])
        return cls(entries=entries, rest=fields["rest"], reserved=fields["reserved"])

    def to_bytes(self) -> bytes:
        """Return the 64 KiB, checksum included."""
        own = {"signature": REGION_SIGNATURE, "checksum": 0, "entry_count": len(self.entries)}
        return checksum.sealed(structs.build_record(structs.REGION_TABLE, asdict(self) | own))
