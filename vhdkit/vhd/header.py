"""The dynamic disk header: 1024 bytes that say where the BAT is and who the parent was.

**Source**: docs/reference/vhd.md 1.4, 1.5, 2.2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vhdkit.corruption import Corruption
from vhdkit.errors import CorruptImageError, UnsupportedImageError, WindowsCode
from vhdkit.units import SECTOR, round_up
from vhdkit.vhd import constants, structs
from vhdkit.vhd.checksum import checksum, stored_checksum
from vhdkit.vhd.locator import ParentLocator

_NO_LOCATORS = (ParentLocator(),) * constants.LOCATOR_COUNT


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicHeader:
    """The header's fields; offsets and sizes in bytes, all parent fields zero in a dynamic disk."""

    table_offset: int
    max_table_entries: int
    block_size: int
    parent_unique_id: bytes = bytes(16)
    parent_timestamp: int = 0
    parent_name_bytes: bytes = bytes(constants.PARENT_NAME_BYTES)
    locators: tuple[ParentLocator, ...] = _NO_LOCATORS
    data_offset: int = constants.UNUSED_OFFSET
    version: int = constants.FORMAT_VERSION
    reserved_word: int = 0
    reserved: bytes = bytes(256)

    @classmethod
    def from_bytes(cls, raw: bytes, *, verify: bool = True) -> DynamicHeader:
        """Read 1024 bytes.

        Raises:
            CorruptImageError: another number of bytes, no cookie, or a wrong checksum (unless `verify` is false).
            UnsupportedImageError: a header version other than 1.x.

        """
        if len(raw) != constants.HEADER_SIZE:
            detail = f"no dynamic header: expected {constants.HEADER_SIZE} bytes, found {len(raw)}"
            raise CorruptImageError(Corruption.HEADER_COOKIE, detail, offset=0)
        if raw[:8] != constants.HEADER_COOKIE:
            detail = f"no dynamic header: expected the cookie {constants.HEADER_COOKIE!r}, found {raw[:8]!r}"
            raise CorruptImageError(Corruption.HEADER_COOKIE, detail, offset=0)
        stored, computed = stored_checksum(raw), checksum(raw)
        if verify and stored != computed:
            detail = f"the dynamic header's checksum is {stored:#010x}, its bytes sum to {computed:#010x}"
            raise CorruptImageError(Corruption.HEADER_CHECKSUM, detail, offset=36)
        fields = structs.parse_header(raw)
        if fields["version"] >> 16 != 1:
            message = f"dynamic header version {fields['version']:#010x} is unknown, only 1.x is known"
            raise UnsupportedImageError(message, windows_code=WindowsCode.VHD_SPARSE_HEADER_UNSUPPORTED_VERSION)
        del fields["cookie"], fields["checksum"]
        return cls(**fields | {"locators": tuple(ParentLocator(**entry) for entry in fields["locators"])})

    def to_bytes(self) -> bytes:
        """Return the 1024 bytes, checksum included."""
        return structs.build_header(asdict(self))

    @property
    def parent_name(self) -> str:
        """The parent's name as its writer left it: a base name, a full path, or nothing."""
        text = self.parent_name_bytes.decode("utf-16-be", "surrogatepass")
        return text.partition("\0")[0]

    @property
    def table_bytes(self) -> int:
        """Bytes of the BAT, padding to whole sectors included."""
        return round_up(self.max_table_entries * 4, SECTOR)


def encode_parent_name(name: str) -> bytes:
    """Return the 512 bytes of the name field; a name too long for it keeps its beginning."""
    raw = name.encode("utf-16-be", "surrogatepass")[: constants.PARENT_NAME_BYTES]
    return raw.ljust(constants.PARENT_NAME_BYTES, b"\0")
