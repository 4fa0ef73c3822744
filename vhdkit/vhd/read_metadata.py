"""Reading what a VHD says of itself: its footers, its dynamic header and its locators, whatever is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.corruption import as_finding
from vhdkit.errors import CorruptImageError, UnsupportedImageError
from vhdkit.vhd import constants
from vhdkit.vhd.checksum import checksum, stored_checksum
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.metadata_rules import MetadataReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.findings import Finding
    from vhdkit.journal.patch import Patch
    from vhdkit.storage.protocols import Storage
    from vhdkit.vhd.metadata import Metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What can be told of a file that may be damaged, and every rule seen broken on the way.

    `metadata` is None without any footer. `entry_count` is how much of the BAT lies in the file, 0 if blocks cannot be
    told.
    """

    metadata: Metadata | None
    entry_count: int
    findings: tuple[Finding, ...]


def has_cookie(storage: Storage) -> bool:
    """Whether a footer seems to be where one could be: a glance, for telling images from a folder's other files."""
    size = storage.size()
    raw = bytearray(8)
    for offset in (size - FOOTER_SIZE, size - FOOTER_SIZE + 1, 0):
        if offset >= 0 and storage.read_into(offset, raw) == len(raw) and raw == constants.FOOTER_COOKIE:
            return True
    return False


def ends_with_footer(storage: Storage) -> bool:
    """Whether a file ends with a footer whose checksum is right."""
    for length in (FOOTER_SIZE, FOOTER_SIZE - 1):
        raw = bytearray(length)
        at = storage.size() - length
        if at < 0 or storage.read_into(at, raw) < length or raw[:8] != constants.FOOTER_COOKIE:
            continue
        whole = bytes(raw).ljust(FOOTER_SIZE, b"\0")
        if checksum(whole) == stored_checksum(whole):
            return True
    return False


def read_metadata(
    storage: Storage, *, verify: bool = True, verify_header: bool = True, patches: Sequence[Patch] = ()
) -> Metadata:
    """Read footer, header and locators.

    With `verify=False`, wrong checksums are tolerated (and reported by `checksum_ok`), so that a damaged file can at
    least be looked at; with `verify_header` false that of the dynamic header alone. `patches` are what a step that was
    cut off would have written: they are read as if it had.

    Raises:
        CorruptImageError: a rule without which nothing can be read is broken.
        UnsupportedImageError: the file is of another format, or of a version that is not known.

    """
    try:
        return MetadataReader(storage, verify=verify, verify_header=verify_header, patches=patches).read()
    except UnsupportedImageError as error:
        error.path = error.path or storage.path
        raise


def examine(storage: Storage, patches: Sequence[Patch] = ()) -> Examination:
    """Read footer, header and locators, continuing past what is wrong as long as anything can be read."""
    reader = MetadataReader(storage, verify=True, patches=patches, keep_going=True)
    try:
        metadata = reader.read()
    except (CorruptImageError, UnsupportedImageError) as error:
        reader.findings.append(as_finding(error, storage.path))
        return Examination(metadata=None, entry_count=0, findings=tuple(reader.findings))
    return Examination(metadata=metadata, entry_count=reader.entry_count, findings=metadata.findings)
