"""A header: 4096 bytes at 64 KiB and at 128 KiB, the valid one with the greater sequence number counts.

**Source**: docs/reference/vhdx.md 1.3.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vhdkit.errors import CorruptImageError
from vhdkit.vhdx import checksum, structs
from vhdkit.vhdx.constants import HEADER_FIELDS_SIZE, HEADER_SIGNATURE, HEADER_SIZE, NULL_GUID
from vhdkit.vhdx.corruption import VhdxCorruption


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What changes as a whole: the ids of the file's content, and where the log lies. Offset and length in bytes.

    `data_write_guid` is another one after each change of what the disk shows; children know their parent by it.
    """

    sequence_number: int
    file_write_guid: bytes
    data_write_guid: bytes
    log_guid: bytes
    log_version: int
    version: int
    log_length: int
    log_offset: int
    reserved: bytes = bytes(HEADER_SIZE - HEADER_FIELDS_SIZE)

    @classmethod
    def from_bytes(cls, raw: bytes, *, verify: bool = True) -> Header:
        """Read 4096 bytes; with `verify` false a wrong checksum is tolerated.

        Raises:
            CorruptImageError: no header, or a wrong checksum.

        """
        if len(raw) < HEADER_SIZE or raw[:4] != HEADER_SIGNATURE:
            detail = f"no header: expected {HEADER_SIGNATURE!r}, found {raw[:4]!r}"
            raise CorruptImageError(VhdxCorruption.HEADERS_LOST, detail, offset=0)
        stored, computed = checksum.stored(raw), checksum.computed(raw)
        if verify and stored != computed:
            detail = f"the header's checksum is {stored:#010x}, its bytes have {computed:#010x}"
            raise CorruptImageError(VhdxCorruption.HEADERS_LOST, detail, offset=4)
        fields = structs.parse_record(structs.HEADER, raw)
        del fields["signature"], fields["checksum"]
        return cls(**fields)

    def to_bytes(self) -> bytes:
        """Return the 4096 bytes, checksum included."""
        fields = asdict(self) | {"signature": HEADER_SIGNATURE, "checksum": 0}
        return checksum.sealed(structs.build_record(structs.HEADER, fields))

    @property
    def has_log(self) -> bool:
        """Whether the log is to be replayed before anything else is read."""
        return self.log_guid != NULL_GUID
