"""The 512 bytes that end every VHD, and that dynamic and differencing disks repeat at offset 0.

**Source**: docs/reference/vhd.md 1.2, 1.3, 1.8.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum

from vhdkit.corruption import Corruption
from vhdkit.errors import CorruptImageError, UnsupportedImageError, WindowsCode
from vhdkit.vhd import constants, structs
from vhdkit.vhd.checksum import checksum, stored_checksum
from vhdkit.vhd.geometry import Geometry


class DiskType(IntEnum):
    """How the bytes of a disk are kept; the values are the format's."""

    FIXED = 2
    DYNAMIC = 3
    DIFFERENCING = 4

    @property
    def label(self) -> str:
        """The word for it, in lower case."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """A footer's fields, raw enough that every valid one comes back byte for byte.

    Sizes and offsets are in bytes; `timestamp` is in seconds since 2000 (UTC); `original_size` is history only.
    `reserved` keeps what some makers store there (byte 0 of it is blktap's hidden flag).
    """

    disk_type: DiskType
    current_size: int
    original_size: int
    data_offset: int
    timestamp: int
    unique_id: bytes
    geometry: Geometry
    creator_application: bytes
    creator_version: int
    creator_host_os: bytes
    features: int = 2
    version: int = constants.FORMAT_VERSION
    saved_state: int = 0
    reserved: bytes = bytes(427)

    @classmethod
    def from_bytes(cls, raw: bytes, *, verify: bool = True) -> Footer:
        """Read 512 bytes; of the old 511-byte form, hand in the bytes with a zero appended.

        Raises:
            CorruptImageError: another number of bytes, no cookie, a poisoned cookie, a wrong checksum (unless `verify`
                is false), or a disk type that does not exist.
            UnsupportedImageError: a format version other than 1.x.

        """
        if len(raw) != constants.FOOTER_SIZE:
            detail = f"no footer: expected {constants.FOOTER_SIZE} bytes, found {len(raw)}"
            raise CorruptImageError(Corruption.NOT_A_VHD, detail, offset=0)
        if raw[:8] == constants.POISONED_COOKIE:
            detail = "the image was disabled by a resize that did not finish; finish it with the tool that began it"
            raise CorruptImageError(Corruption.FOOTER_POISONED, detail, offset=0)
        if raw[:8] != constants.FOOTER_COOKIE:
            detail = f"no footer: expected the cookie {constants.FOOTER_COOKIE!r}, found {raw[:8]!r}"
            raise CorruptImageError(Corruption.NOT_A_VHD, detail, offset=0)
        stored, computed = stored_checksum(raw), checksum(raw)
        if verify and stored != computed:
            detail = f"the footer's checksum is {stored:#010x}, its bytes sum to {computed:#010x}"
            raise CorruptImageError(Corruption.FOOTER_CHECKSUM, detail, offset=64)
        fields = structs.parse_footer(raw)
        if fields["version"] >> 16 != 1:
            message = f"format version {fields['version']:#010x} is unknown, only 1.x is known"
            raise UnsupportedImageError(message, windows_code=WindowsCode.VHD_FORMAT_UNSUPPORTED_VERSION)
        if fields["disk_type"] not in {2, 3, 4}:
            detail = f"disk type {fields['disk_type']} is none of 2 (fixed), 3 (dynamic), 4 (differencing)"
            raise CorruptImageError(Corruption.DISK_TYPE, detail, offset=60)
        geometry = Geometry(fields.pop("cylinders"), fields.pop("heads"), fields.pop("sectors_per_track"))
        del fields["cookie"], fields["checksum"]
        return cls(**fields | {"disk_type": DiskType(fields["disk_type"]), "geometry": geometry})

    def to_bytes(self) -> bytes:
        """Return the 512 bytes, checksum included."""
        return structs.build_footer(asdict(self) | self.geometry._asdict())
