"""What the file of a VHDX says about itself, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.disk.image import DiskKind, ImageFormat

if TYPE_CHECKING:
    from vhdkit.disk.parent_link import ParentLink
    from vhdkit.findings import Finding
    from vhdkit.vhdx.header import Header
    from vhdkit.vhdx.log import Replay
    from vhdkit.vhdx.metadata_table import FileParameters
    from vhdkit.vhdx.region_table import Region


@dataclass(frozen=True, slots=True, kw_only=True)
class VhdxMetadata:
    """What the file of a VHDX says about itself, its log replayed. Sizes are in bytes.

    `structures` are the stretches [start, stop) of the file that no block may touch, `texts` what the parent locator
    says. `replay` is what the log changes, None if there is nothing to replay.
    """

    path: str
    file_size: int
    creator: str
    header: Header
    replay: Replay | None
    bat: Region
    structures: tuple[tuple[int, int], ...]
    parameters: FileParameters
    size: int
    logical_sector_size: int
    physical_sector_size: int | None
    disk_id: bytes | None
    texts: dict[str, str]
    parent: ParentLink | None
    digest: str
    checksum_ok: bool
    findings: tuple[Finding, ...]

    @property
    def file_format(self) -> ImageFormat:
        """That of VHDX."""
        return ImageFormat.VHDX

    @property
    def kind(self) -> DiskKind:
        """What it is; a fixed one may lack blocks as well."""
        if self.parameters.has_parent:
            return DiskKind.DIFFERENCING
        return DiskKind.FIXED if self.parameters.is_fixed else DiskKind.DYNAMIC

    @property
    def block_size(self) -> int:
        """The bytes of the disk that are allocated at once."""
        return self.parameters.block_size

    @property
    def unique_id(self) -> bytes:
        """The id by which children know it: another one after each change of what the disk shows."""
        return self.header.data_write_guid

    @property
    def timestamp(self) -> int:
        """Nothing: the format has no time."""
        return 0

    @property
    def remembered_parent_id(self) -> bytes | None:
        """The parent's id; None without a parent."""
        return None if self.parent is None else self.parent.unique_id
