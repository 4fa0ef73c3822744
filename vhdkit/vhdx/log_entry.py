"""The records of the log: the header of an entry, its descriptors, and what its data pages have to look like.

**Source**: docs/reference/vhdx.md 1.11.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

from vhdkit.errors import CorruptImageError
from vhdkit.units import ceil_div
from vhdkit.vhdx import structs
from vhdkit.vhdx.constants import DATA_DESCRIPTOR_SIGNATURE, DATA_SIGNATURE, LOG_SIGNATURE, PAGE, ZERO_SIGNATURE
from vhdkit.vhdx.corruption import VhdxCorruption

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY_HEADER_SIZE = 64
DESCRIPTOR_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntryHeader:
    """What an entry says of itself. Lengths and offsets are in bytes, `tail` counts from the log's start.

    `checksum` is over the whole entry, which is not at hand here: it is kept as it is.
    """

    checksum: int
    entry_length: int
    tail: int
    sequence_number: int
    descriptor_count: int
    log_guid: bytes
    flushed_file_offset: int
    last_file_offset: int
    reserved: int = 0

    @classmethod
    def from_bytes(cls, raw: bytes) -> LogEntryHeader:
        """Read 64 bytes.

        Raises:
            CorruptImageError: no entry begins with them.

        """
        if len(raw) < ENTRY_HEADER_SIZE or raw[:4] != LOG_SIGNATURE:
            detail = f"no log entry: expected {LOG_SIGNATURE!r}, found {raw[:4]!r}"
            raise CorruptImageError(VhdxCorruption.LOG_WITHOUT_ENTRIES, detail, offset=0)
        fields = structs.parse_record(structs.LOG_ENTRY, raw)
        del fields["signature"]
        return cls(**fields)

    def to_bytes(self) -> bytes:
        """Return the 64 bytes."""
        return structs.build_record(structs.LOG_ENTRY, asdict(self) | {"signature": LOG_SIGNATURE})

    @property
    def descriptor_pages(self) -> int:
        """Pages that hold the header and the descriptors: 126 of them in the first page, 128 in each further one."""
        return ceil_div(self.descriptor_count + 2, PAGE // DESCRIPTOR_SIZE)

    def is_plausible(self, log_guid: bytes, log_length: int) -> bool:
        """Whether an entry of this log could have this header."""
        return (
            self.log_guid == log_guid
            and self.sequence_number > 0
            and self.entry_length % PAGE == 0
            and self.descriptor_pages * PAGE <= self.entry_length <= log_length
            and self.tail % PAGE == 0
            and self.tail < log_length
        )


class Descriptor(NamedTuple):
    """A change of the file: `length` zeros at `file_offset`, or a page, which lacks its first 8 and last 4 bytes."""

    is_data: bool
    file_offset: int
    length: int
    sequence_number: int
    leading: bytes
    trailing: bytes

    @classmethod
    def from_bytes(cls, raw: bytes) -> Descriptor | None:
        """Read 32 bytes; None if they are no descriptor of a change of whole pages."""
        signature, is_data = raw[:4], raw[:4] == DATA_DESCRIPTOR_SIGNATURE
        if not is_data and signature != ZERO_SIGNATURE:
            return None
        number = int.from_bytes
        found = cls(
            is_data=is_data,
            file_offset=number(raw[16:24], "little"),
            length=PAGE if is_data else number(raw[8:16], "little"),
            sequence_number=number(raw[24:32], "little"),
            leading=raw[8:16],
            trailing=raw[4:8],
        )
        return None if found.file_offset % PAGE or found.length % PAGE else found

    def to_bytes(self) -> bytes:
        """Return the 32 bytes."""
        fields = self._asdict() | {"signature": DATA_DESCRIPTOR_SIGNATURE if self.is_data else ZERO_SIGNATURE}
        return structs.build_record(structs.LOG_DESCRIPTOR, fields)


def is_data_page(page: bytes, sequence_number: int) -> bool:
    """Whether a page holds the data of a descriptor of an entry with this number."""
    high, low = sequence_number >> 32, sequence_number & 0xFFFF_FFFF
    return (
        page[:4] == DATA_SIGNATURE
        and int.from_bytes(page[4:8], "little") == high
        and int.from_bytes(page[-4:], "little") == low
    )


def descriptors_in(pages: Iterator[bytes], count: int) -> Iterator[Descriptor | None]:
    """Yield the descriptors of an entry from its first pages; None for bytes that are none."""
    left, start = count, ENTRY_HEADER_SIZE
    for page in pages:
        for at in range(start, PAGE, DESCRIPTOR_SIZE):
            if not left:
                return
            yield Descriptor.from_bytes(page[at : at + DESCRIPTOR_SIZE])
            left -= 1
        start = 0
