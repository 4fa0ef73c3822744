"""Reading what a VHDX says about itself: identifier, headers, log, region tables, metadata. No BAT, no blocks.

The order is the format's: the log may change everything behind the headers, so that nothing else is read before it.
Whether a header is right shows in its checksum alone; the right one with the greater number counts.

**Source**: VHDX reference 1.2 to 1.7, 3.1, 5.
"""

from __future__ import annotations

from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn

from vhdkit.disk.unique_id import guid
from vhdkit.errors import CorruptImageError, UnsupportedImageError
from vhdkit.findings import Finding, Level
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import MiB
from vhdkit.vhdx import constants as c
from vhdkit.vhdx.corruption import VhdxCorruption
from vhdkit.vhdx.header import Header
from vhdkit.vhdx.identifier import FileIdentifier
from vhdkit.vhdx.log import Replay, read_log
from vhdkit.vhdx.log_overlay import LogOverlay
from vhdkit.vhdx.metadata import VhdxMetadata
from vhdkit.vhdx.metadata_items import MetadataItems
from vhdkit.vhdx.region_table import Region, RegionTable

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Storage


def read_vhdx(storage: Storage, *, verify: bool = True) -> VhdxMetadata:
    """Read what a file says about itself; its log is replayed in memory.

    With `verify` false a header or a region table with a wrong checksum counts if there is no other.

    Raises:
        CorruptImageError: a rule without which nothing can be read is broken.
        UnsupportedImageError: another version, or something required that is unknown.

    """
    try:
        return _Reader(storage, verify=verify).read()
    except UnsupportedImageError as error:
        error.path = error.path or storage.path
        raise


class _Reader:
    """One pass over one file's structures, gathering what is odd about them."""

    def __init__(self, storage: Storage, *, verify: bool) -> None:
        self.storage = storage
        self.verify = verify
        self.checksum_ok = True
        self.findings: list[Finding] = []
        self.places: list[Region] = []

    def read(self) -> VhdxMetadata:
        real_size = self.storage.size()
        identifier = self._record(FileIdentifier, 0, c.IDENTIFIER_SIZE)
        if real_size < c.FIRST_REGION:
            self.fail(VhdxCorruption.IMAGE_CUT, f"the file has {real_size} bytes, a VHDX has at least {c.FIRST_REGION}")
        header = self._current_header()
        self._check_header(header, real_size)
        replay = self._replay(header)
        regions = self._regions(header)
        items = MetadataItems(self.storage, regions[c.METADATA_REGION])
        parameters, size, sector = items.parameters(), items.disk_size(), items.logical_sector_size()
        if size % sector:
            self.fail(VhdxCorruption.DISK_SIZE, f"the disk has {size} bytes, which are no whole sectors of {sector}")
        texts, parent = items.parent(parameters)
        return VhdxMetadata(
            path=self.storage.path,
            file_size=real_size,
            creator=identifier.creator,
            header=header,
            replay=replay,
            bat=regions[c.BAT_REGION],
            structures=tuple((region.file_offset, region.stop) for region in self.places),
            parameters=parameters,
            size=size,
            logical_sector_size=sector,
            physical_sector_size=items.physical_sector_size(),
            disk_id=items.disk_id(),
            texts=texts,
            parent=parent,
            digest=sha256(header.to_bytes() + items.raw).hexdigest(),
            checksum_ok=self.checksum_ok,
            findings=(*self.findings, *items.findings),
        )

    def note(self, corruption: VhdxCorruption, message: str, offset: int | None = None) -> None:
        """Add a warning."""
        finding = Finding(
            corruption=corruption, path=self.storage.path, message=message, level=Level.WARNING, offset=offset
        )
        self.findings.append(finding)

    def fail(self, corruption: VhdxCorruption, detail: str, offset: int | None = None) -> NoReturn:
        """Refuse the file."""
        raise CorruptImageError(corruption, detail, path=self.storage.path, offset=offset)

    def _record(self, kind: type[FileIdentifier], offset: int, length: int) -> FileIdentifier:
        try:
            return kind.from_bytes(read_bytes(self.storage, offset, length))
        except CorruptImageError as error:
            raise error.located(self.storage.path, offset) from None

    def _current_header(self) -> Header:
        """Return the header that counts."""
        found: list[tuple[Header, int]] = []
        wrong: list[CorruptImageError] = []
        for offset in c.HEADER_OFFSETS:
            try:
                found.append((Header.from_bytes(read_bytes(self.storage, offset, c.HEADER_SIZE)), offset))
            except CorruptImageError as error:
                wrong.append(error.located(self.storage.path, offset))
        if not found:
            if not self.verify:
                return self._unverified_header(wrong[0])
            raise wrong[0]
        for damage in wrong:
            message = f"one of its two headers is damaged, and the other is used: {damage.detail}"
            self.note(VhdxCorruption.HEADER_DAMAGED, message, damage.offset)
        if len(found) == 1:
            return found[0][0]
        (first, _), (second, _) = found
        if first.sequence_number != second.sequence_number:
            return max(first, second, key=lambda header: header.sequence_number)
        if first != second:
            self.fail(
                VhdxCorruption.HEADERS_DIFFER,
                f"both its headers have the number {first.sequence_number} and differ: which counts, nothing tells",
                c.HEADER_OFFSETS[0],
            )
        self.note(VhdxCorruption.HEADERS_ALIKE, "its two headers have one number, and are alike", c.HEADER_OFFSETS[0])
        return first

    def _unverified_header(self, error: CorruptImageError) -> Header:
        self.checksum_ok = False
        found = []
        for offset in c.HEADER_OFFSETS:
            try:
                found.append(Header.from_bytes(read_bytes(self.storage, offset, c.HEADER_SIZE), verify=False))
            except CorruptImageError:
                continue
        if not found:
            raise error
        return max(found, key=lambda header: header.sequence_number)

    def _check_header(self, header: Header, size: int) -> None:
        if header.version != 1:
            raise UnsupportedImageError(f"VHDX version {header.version} is unknown, only 1 is known")
        if not header.has_log and not header.log_length:
            return
        if header.has_log and header.log_version != 0:
            raise UnsupportedImageError(f"log version {header.log_version} is unknown, only 0 is known")
        offset, length = header.log_offset, header.log_length
        is_placed = not offset % MiB and not length % MiB and offset >= c.FIRST_REGION and offset <= size - length
        if not is_placed or not 0 < length <= c.MAX_LOG_BYTES:
            detail = f"its log should be {length} bytes at {offset:#x}: expected whole MiB inside the file"
            self.fail(VhdxCorruption.LOG_PLACE, detail)

    def _replay(self, header: Header) -> Replay | None:
        """Replay the log; what is read from now on is read through it."""
        if not header.has_log:
            return None
        replay = read_log(self.storage, header)
        self.storage = LogOverlay(self.storage, replay)
        message = (
            f"its log was not replayed when it was closed last: entries {replay.first} to {replay.last} are read as if"
            " they had been, and the file stays as it is"
        )
        self.note(VhdxCorruption.LOG_TO_REPLAY, message, header.log_offset)
        return replay

    def _region_table(self) -> RegionTable:
        found: list[RegionTable] = []
        wrong: list[CorruptImageError] = []
        raws = [read_bytes(self.storage, offset, c.TABLE_SIZE) for offset in c.REGION_TABLE_OFFSETS]
        for raw, offset in zip(raws, c.REGION_TABLE_OFFSETS, strict=True):
            try:
                found.append(RegionTable.from_bytes(raw))
            except CorruptImageError as error:
                wrong.append(error.located(self.storage.path, offset))
        if not found and not self.verify:
            self.checksum_ok = False
            return RegionTable.from_bytes(raws[0], verify=False)
        if not found:
            raise wrong[0]
        if wrong or found[0] != found[1]:
            why = "is damaged" if wrong else "differs"
            message = f"one of its two region tables {why}, and the {'other' if wrong else 'first'} is used"
            self.note(
                VhdxCorruption.REGION_TABLES_DIFFER, message, wrong[0].offset if wrong else c.REGION_TABLE_OFFSETS[1]
            )
        return found[0]

    def _regions(self, header: Header) -> dict[bytes, Region]:
        """Return the regions by their ids, all in places of their own."""
        found: dict[bytes, Region] = {}
        for region in self._region_table().entries:
            if region.guid in found:
                self.fail(VhdxCorruption.REGION_TABLE, f"the region {guid(region.guid)} is there twice")
            self._check_region(region)
            found[region.guid] = region
        for name, wanted in (("BAT", c.BAT_REGION), ("metadata", c.METADATA_REGION)):
            if wanted not in found:
                self.fail(VhdxCorruption.REGION_MISSING, f"it has no {name} region")
        self._place(found, header)
        return found

    def _check_region(self, region: Region) -> None:
        name, where = guid(region.guid), f"[{region.file_offset:#x}, {region.stop:#x})"
        if region.guid not in {c.BAT_REGION, c.METADATA_REGION} and region.is_required:
            raise UnsupportedImageError(f"the region {name} is required for reading it, and unknown")
        is_whole = not region.file_offset % MiB and not region.length % MiB and region.length > 0
        if not is_whole or region.file_offset < c.FIRST_REGION or region.stop > self.storage.size():
            self.fail(VhdxCorruption.REGION_PLACE, f"the region {name} is {where}: expected whole MiB inside the file")

    def _place(self, regions: dict[bytes, Region], header: Header) -> None:
        """Note where regions and log lie; none shares bytes with another."""
        log = Region(guid=c.NULL_GUID, file_offset=header.log_offset, length=header.log_length, flags=0)
        logs = [log] if log.length else []
        self.places = sorted([*regions.values(), *logs], key=lambda each: each.file_offset)
        for below, above in pairwise(self.places):
            if below.stop > above.file_offset:
                names = " and ".join("the log" if each is log else guid(each.guid) for each in (below, above))
                self.fail(VhdxCorruption.REGIONS_OVERLAP, f"{names} share bytes", above.file_offset)
