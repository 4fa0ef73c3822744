"""Reading what a file says about itself: footer, dynamic header, parent locators. No BAT, no blocks.

The order of trust: the trailing 512 bytes, then the 511 of software before Virtual PC 2004, then the copy at offset
0, which only dynamic and differencing disks have. On a fixed disk offset 0 is the guest's: a guest could put a
footer there, so the copy counts only if it says dynamic or differencing and leads to a dynamic header. Where none is
found, a fixed disk's footer is looked for before the file's end: other tools pad files, or make them longer.

**Source**: docs/reference/vhd.md 1.2 to 1.5, 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING

from vhdkit.disk.image import DiskKind, ImageFormat
from vhdkit.disk.parent_link import ParentLink, ParentPath
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.footer import DiskType, Footer
from vhdkit.vhd.locator import PlatformCode

if TYPE_CHECKING:
    from vhdkit.findings import Finding
    from vhdkit.vhd.header import DynamicHeader


# Where the table of locators begins in the dynamic header, and the bytes of an entry (docs/reference/vhd.md 1.4).
LOCATORS_AT = 576
LOCATOR_SIZE = 24


class FooterPlace(StrEnum):
    """Which of the footers was believed."""

    TRAILING = "trailing"
    TRAILING_511 = "trailing-511"
    COPY = "copy"
    INSIDE = "inside"


# In which order the paths of locators are to be tried (vhd.md 2.3), and the origin of the header's name field.
_ORDER = [
    PlatformCode.WINDOWS_RELATIVE,
    PlatformCode.MAC_URL,
    PlatformCode.WINDOWS_RELATIVE_8BIT,
    PlatformCode.WINDOWS_ABSOLUTE,
    PlatformCode.WINDOWS_ABSOLUTE_8BIT,
]
_NAME_FIELD = "name field"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatorPath:
    """A path that a locator gives; untrusted text."""

    platform_code: bytes
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What the file of a fixed disk says about itself, or that of any disk whose dynamic header cannot be read.

    `copy_ok` says whether the footer copy is what it should be, `tail_is_empty` whether the last sector is zeros.
    """

    path: str
    file_size: int
    footer: Footer
    footer_place: FooterPlace
    checksum_ok: bool
    copy_ok: bool
    tail_is_empty: bool
    findings: tuple[Finding, ...]

    @property
    def size(self) -> int:
        """The disk's size in bytes."""
        return self.footer.current_size

    @property
    def file_format(self) -> ImageFormat:
        """That of VHD."""
        return ImageFormat.VHD

    @property
    def kind(self) -> DiskKind:
        """What the footer says that it is."""
        return DiskKind(self.footer.disk_type.label)

    @property
    def unique_id(self) -> bytes:
        """Its id, 16 bytes."""
        return self.footer.unique_id

    @property
    def timestamp(self) -> int:
        """When it was made."""
        return self.footer.timestamp

    @property
    def parent(self) -> ParentLink | None:
        """What a child says of its parent; nothing is known of others."""
        return None

    @property
    def remembered_parent_id(self) -> bytes | None:
        """The id in the parent's field, whatever a damaged footer says that the disk is; None without a field."""
        return None

    @property
    def digest(self) -> str:
        """The digest of the footer and of the dynamic header, if there is one."""
        return structure_digest(self.footer)

    @property
    def footer_start(self) -> int:
        """Where the trailing footer begins: nothing else may reach beyond; the file's end if it is lost."""
        if self.footer_place is FooterPlace.INSIDE:
            return self.footer.current_size
        length = {FooterPlace.TRAILING: FOOTER_SIZE, FooterPlace.TRAILING_511: FOOTER_SIZE - 1}
        return self.file_size - length.get(self.footer_place, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMetadata(Metadata):
    """What the file of a dynamic or differencing disk says about itself.

    `structures` are the stretches [start, end) of the file that no block may touch: footer copy, header, BAT, and
    `batmap`, blktap's map of full blocks ((0, 0) if there is none). A new block should not begin before
    `reserved_end`, which is behind all of them and behind `locator_rooms`, the stretches that locators have for their
    data.
    """

    header: DynamicHeader
    parent_paths: tuple[LocatorPath, ...]
    structures: tuple[tuple[int, int], ...]
    locator_rooms: tuple[tuple[int, int], ...]
    reserved_end: int
    batmap: tuple[int, int]

    @property
    def parent(self) -> ParentLink | None:
        """What a child says of its parent; None for a dynamic disk."""
        if self.footer.disk_type is not DiskType.DIFFERENCING:
            return None
        by_code = {path.platform_code: path.text for path in reversed(self.parent_paths)}
        found = [ParentPath(text=by_code[code], origin=code.decode()) for code in _ORDER if code in by_code]
        if self.header.parent_name:
            found.append(ParentPath(text=self.header.parent_name, origin=_NAME_FIELD, is_bare_name=True))
        return ParentLink(
            unique_id=self.header.parent_unique_id, timestamp=self.header.parent_timestamp, paths=tuple(found)
        )

    @property
    def remembered_parent_id(self) -> bytes | None:
        """The id in the parent's field, whatever a damaged footer says that the disk is."""
        return self.header.parent_unique_id

    @property
    def digest(self) -> str:
        """The digest of the footer and of the dynamic header."""
        return structure_digest(self.footer, self.header)


def structure_digest(footer: Footer, header: DynamicHeader | None = None) -> str:
    """Return the digest of an image's footer and dynamic header, hexadecimal."""
    return sha256(footer.to_bytes() + (b"" if header is None else header.to_bytes())).hexdigest()
