"""Reading what a VHDX says about itself: identifier, headers, log, region tables, metadata. No BAT, no blocks.

The order is the format's: the log may change everything behind the headers, so that nothing else is read before it.
Whether a header is right shows in its checksum alone; the right one with the greater number counts.

**Source**: docs/reference/vhdx.md 1.2 to 1.7, 3.1, 5.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from vhdkit.corruption import as_finding
from vhdkit.errors import CorruptImageError, UnsupportedImageError
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import MiB
from vhdkit.vhdx import constants as c
from vhdkit.vhdx.corruption import VhdxCorruption
from vhdkit.vhdx.header import Header
from vhdkit.vhdx.identifier import FileIdentifier
from vhdkit.vhdx.judge import Judge
from vhdkit.vhdx.log import Replay, read_log
from vhdkit.vhdx.log_overlay import LogOverlay
from vhdkit.vhdx.metadata import VhdxMetadata
from vhdkit.vhdx.metadata_items import MetadataItems
from vhdkit.vhdx.region_reader import RegionReader

if TYPE_CHECKING:
    from vhdkit.findings import Finding
    from vhdkit.storage.protocols import Storage
    from vhdkit.vhdx.metadata_table import MetadataEntry
    from vhdkit.vhdx.region_table import Region


@dataclass(frozen=True, slots=True, kw_only=True)
class VhdxExamination:
    """What is known of a file that may be damaged, and every rule seen broken on the way.

    `metadata` is None if it says nothing about its disk that can be read. `regions` and `items` are the entries of the
    two tables, which lie at `region_table` and `metadata_table`.
    """

    metadata: VhdxMetadata | None
    findings: tuple[Finding, ...]
    regions: tuple[Region, ...] = ()
    region_table: int = 0
    items: tuple[MetadataEntry, ...] = ()
    metadata_table: int = 0


def read_vhdx(storage: Storage, *, verify: bool = True) -> VhdxMetadata:
    """Read what a file says about itself; its log is replayed in memory.

    With `verify` false a header or a region table with a wrong checksum counts if there is no other.

    Raises:
        CorruptImageError: a rule without which nothing can be read is broken.
        UnsupportedImageError: another version, or something required that is unknown.

    """
    return _Reader(storage, Judge(storage.path), verify=verify).read()


def examine_vhdx(storage: Storage) -> VhdxExamination:
    """Read the same, continuing past what is wrong as long as anything can be read."""
    judge = Judge(storage.path, keep_going=True)
    reader = _Reader(storage, judge, verify=True)
    metadata = None
    # What is valid and unknown was noted already.
    with suppress(UnsupportedImageError):
        try:
            metadata = reader.read()
        except CorruptImageError as error:
            judge.findings.append(as_finding(error, storage.path))
    regions, items = reader.regions, reader.items
    return VhdxExamination(
        metadata=metadata,
        findings=tuple(judge.findings),
        regions=() if regions is None else regions.entries,
        region_table=0 if regions is None else regions.table_offset,
        items=() if items is None else items.entries,
        metadata_table=0 if items is None else items.offset,
    )


class _Reader:
    """One pass over one file's structures."""

    def __init__(self, storage: Storage, judge: Judge, *, verify: bool) -> None:
        self.storage = storage
        self.judge = judge
        self.verify = verify
        self.checksum_ok = True
        self.regions: RegionReader | None = None
        self.items: MetadataItems | None = None

    def read(self) -> VhdxMetadata:
        real_size = self.storage.size()
        identifier = self._identifier()
        if real_size < c.FIRST_REGION:
            detail = f"the file has {real_size} bytes, a VHDX has at least {c.FIRST_REGION}"
            self.judge.give_up(VhdxCorruption.IMAGE_CUT, detail)
        header = self._placed(self._current_header(), real_size)
        replay = self._replay(header)
        self.regions = RegionReader(self.storage, self.judge, verify=self.verify)
        regions = self.regions.read(header)
        self.checksum_ok = self.checksum_ok and self.regions.checksum_ok
        self.items = items = MetadataItems(self.storage, regions[c.METADATA_REGION], self.judge)
        items.read_table()
        parameters, size, sector = items.parameters(), items.disk_size(), items.logical_sector_size()
        if size % sector:
            detail = f"the disk has {size} bytes, which are no whole sectors of {sector}"
            self.judge.refuse(VhdxCorruption.DISK_SIZE, detail)
        texts, parent = items.parent(parameters)
        return VhdxMetadata(
            path=self.storage.path,
            file_size=real_size,
            creator="" if identifier is None else identifier.creator,
            header=header,
            replay=replay,
            bat=regions[c.BAT_REGION],
            structures=tuple((region.file_offset, region.stop) for region in self.regions.places),
            parameters=parameters,
            size=size,
            logical_sector_size=sector,
            physical_sector_size=items.physical_sector_size(),
            disk_id=items.disk_id(),
            texts=texts,
            parent=parent,
            digest=sha256(header.to_bytes() + items.raw).hexdigest(),
            checksum_ok=self.checksum_ok,
            findings=tuple(self.judge.findings),
        )

    def _identifier(self) -> FileIdentifier | None:
        try:
            return FileIdentifier.from_bytes(read_bytes(self.storage, 0, c.IDENTIFIER_SIZE))
        except CorruptImageError as error:
            self.judge.refuse_for(error.located(self.storage.path, 0))
            return None

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
            if self.verify:
                self.judge.refuse_for(wrong[0])
            return self._unverified_header(wrong[0])
        for damage in wrong:
            message = f"one of its two headers is damaged, and the other is used: {damage.detail}"
            self.judge.note(VhdxCorruption.HEADER_DAMAGED, message, damage.offset)
        if len(found) == 1:
            return found[0][0]
        (first, _), (second, _) = found
        if first.sequence_number != second.sequence_number:
            return max(first, second, key=lambda header: header.sequence_number)
        if first != second:
            self.judge.refuse(
                VhdxCorruption.HEADERS_DIFFER,
                f"both its headers have the number {first.sequence_number} and differ: which counts, nothing tells",
                c.HEADER_OFFSETS[0],
            )
        self.judge.note(
            VhdxCorruption.HEADERS_ALIKE, "its two headers have one number, and are alike", c.HEADER_OFFSETS[0]
        )
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

    def _placed(self, header: Header, size: int) -> Header:
        """Return a header whose log has a place, or none; what it says otherwise is judged."""
        if header.version != 1:
            message = f"VHDX version {header.version} is unknown, only 1 is known"
            self.judge.give_up_unknown(VhdxCorruption.FORMAT_VERSION, message)
        if not header.has_log and not header.log_length:
            return header
        if header.has_log and header.log_version != 0:
            message = f"log version {header.log_version} is unknown, only 0 is known"
            self.judge.give_up_unknown(VhdxCorruption.LOG_VERSION, message)
        offset, length = header.log_offset, header.log_length
        if not length:
            detail = "its header asks for a log to be replayed, and gives it no bytes"
            self.judge.give_up(VhdxCorruption.LOG_LENGTH_NULL, detail)
        is_placed = not offset % MiB and not length % MiB and c.FIRST_REGION <= offset <= size - length
        if is_placed and length <= c.MAX_LOG_BYTES:
            return header
        detail = f"its log should be {length} bytes at {offset:#x}: expected whole MiB inside the file"
        if header.has_log:
            self.judge.give_up(VhdxCorruption.LOG_PLACE, detail)
        self.judge.refuse(VhdxCorruption.LOG_PLACE, detail)
        return replace(header, log_offset=0, log_length=0)

    def _replay(self, header: Header) -> Replay | None:
        """Replay the log; what is read from now on is read through it."""
        if not header.has_log:
            return None
        try:
            replay = read_log(self.storage, header)
        except CorruptImageError as error:
            # Where no entry was begun the file is as it was before; behind any other log it is not what it should be.
            if error.corruption is not VhdxCorruption.LOG_WITHOUT_ENTRIES:
                raise
            self.judge.refuse_for(error)
            return None
        self.storage = LogOverlay(self.storage, replay)
        message = (
            f"its log was not replayed when it was closed last: entries {replay.first} to {replay.last} are read as if"
            " they had been, and the file stays as it is"
        )
        self.judge.note(VhdxCorruption.LOG_TO_REPLAY, message, header.log_offset)
        return replay
