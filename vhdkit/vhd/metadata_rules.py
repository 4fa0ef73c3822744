"""Following a file from footer to locators: what each part says, and every rule that it breaks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn, TypedDict

from vhdkit.corruption import Corruption, as_finding
from vhdkit.errors import CorruptImageError, UnsupportedImageError
from vhdkit.findings import Advice, Finding, Level
from vhdkit.storage import paths
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import SECTOR, ceil_div
from vhdkit.vhd import constants, structs
from vhdkit.vhd.checksum import checksum, stored_checksum
from vhdkit.vhd.constants import FOOTER_SIZE, HEADER_SIZE
from vhdkit.vhd.footer import DiskType, Footer
from vhdkit.vhd.header import DynamicHeader
from vhdkit.vhd.locator import MAX_LOCATOR_BYTES, PlatformCode, decode_locator
from vhdkit.vhd.metadata import LOCATOR_SIZE, LOCATORS_AT, FooterPlace, LocatorPath, Metadata, SparseMetadata
from vhdkit.vhd.misplaced_footer import find_misplaced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.journal.patch import Patch
    from vhdkit.storage.protocols import Storage


_Stretches = tuple[tuple[int, int], ...]

_HEAD_BYTES = FOOTER_SIZE + HEADER_SIZE
# Longer names are no paths on any system (docs/reference/vhd.md 4.4).
_MAX_PATH = 4096
_CODES_WITH_TEXT = frozenset(PlatformCode) - {PlatformCode.NONE, PlatformCode.MAC_ALIAS}
_VHDX_MAGIC = b"vhdxfile"
_VHDX_SUFFIXES = frozenset({".vhdx", ".avhdx"})
_OTHER_FORMATS = {
    _VHDX_MAGIC: "a VHDX image",
    b"QFI\xfb": "a qcow2 image",
    b"KDMV": "a VMDK image",
    b"# Disk DescriptorFile": "a VMDK descriptor",
    b"7z\xbc\xaf": "a 7z archive",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
}


class _Common(TypedDict):
    """The fields of `Metadata` that every file has from the start."""

    path: str
    file_size: int
    footer: Footer
    footer_place: FooterPlace
    tail_is_empty: bool


class _Noted(TypedDict):
    """The fields of `Metadata` that gather while a file is read."""

    checksum_ok: bool
    copy_ok: bool
    findings: tuple[Finding, ...]


class MetadataReader:
    """One pass over one file's structures, gathering what is odd about them.

    With `keep_going` what is wrong is noted, not raised, wherever something behind it can still be read.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        verify: bool,
        verify_header: bool = True,
        patches: Sequence[Patch],
        keep_going: bool = False,
    ) -> None:
        self.verify_header = verify_header
        self.storage = storage
        self.patches = patches
        self.verify = verify
        self.keep_going = keep_going
        self.footer_at = self.entry_count = 0
        self.size = storage.size()
        self._head = b""
        self.findings: list[Finding] = []
        self.checksum_ok = True
        self.copy_ok = True

    def read(self) -> Metadata:
        """Return what the file says.

        Raises:
            CorruptImageError, UnsupportedImageError: as `read_metadata`.

        """
        footer, place = self._footer()
        self._check_footer(footer, place)
        common = _Common(
            path=self.storage.path,
            file_size=self.size,
            footer=footer,
            footer_place=place,
            tail_is_empty=self.size % SECTOR == 0 and not any(self._bytes(self.size - SECTOR, SECTOR)),
        )
        header = None if footer.disk_type is DiskType.FIXED else self._header_if_any(footer)
        if header is None:
            return Metadata(**common, **self._noted())
        self._check_table(footer, header)
        batmap = self._batmap(footer, header)
        structures = (
            (0, FOOTER_SIZE),
            (footer.data_offset, footer.data_offset + HEADER_SIZE),
            (header.table_offset, header.table_offset + header.table_bytes),
            batmap,
        )
        parents, rooms = self._locators(footer, header)
        return SparseMetadata(
            **common,
            **self._noted(),
            header=header,
            parent_paths=parents,
            structures=structures,
            locator_rooms=rooms,
            reserved_end=max(end for _, end in (*structures, *rooms)),
            batmap=batmap,
        )

    def _noted(self) -> _Noted:
        return _Noted(checksum_ok=self.checksum_ok, copy_ok=self.copy_ok, findings=tuple(self.findings))

    def _bytes(self, offset: int, length: int) -> bytes:
        if offset >= self.size:
            return b""
        # The copy of the footer, and the header where it nearly always lies, are read at once.
        if offset + length <= _HEAD_BYTES:
            self._head = self._head or read_bytes(self.storage, 0, _HEAD_BYTES)
            buffer = bytearray(self._head[offset : offset + length])
        else:
            buffer = bytearray(length)
            del buffer[self.storage.read_into(offset, buffer) :]
        for patch in self.patches:
            start, stop = max(offset, patch.offset), min(offset + len(buffer), patch.offset + len(patch.after))
            if start < stop:
                buffer[start - offset : stop - offset] = patch.after[start - patch.offset : stop - patch.offset]
        return bytes(buffer)

    def _note(
        self,
        corruption: Corruption,
        message: str,
        offset: int | None = None,
        level: Level = Level.WARNING,
        *,
        is_mended: bool = False,
    ) -> None:
        """Add a finding; `is_mended` says that repairing the footers mends it."""
        path = self.storage.path
        hint = Advice.REPAIR_FOOTERS.hint("{} mends that", path=path) if is_mended else None
        self.findings.append(
            Finding(corruption=corruption, path=path, message=message, level=level, offset=offset, hint=hint)
        )

    def _fail(self, corruption: Corruption, detail: str, offset: int | None = None) -> NoReturn:
        raise CorruptImageError(corruption, detail, path=self.storage.path, offset=offset)

    def _wrong(self, corruption: Corruption, detail: str, offset: int | None = None) -> None:
        """Fail because of something behind which a check can go on."""
        if not self.keep_going:
            self._fail(corruption, detail, offset)
        self._note(corruption, detail, offset, Level.ERROR)

    def _footer(self) -> tuple[Footer, FooterPlace]:
        try:
            return self._first_footer()
        except CorruptImageError as error:
            if not self.keep_going or error.corruption is not Corruption.FOOTER_CHECKSUM:
                raise
            # No footer is right; the fields of the first may be all the same.
            self.findings.append(as_finding(error, self.storage.path))
            self.verify = False
            return self._first_footer()

    def _first_footer(self) -> tuple[Footer, FooterPlace]:
        if self.size < FOOTER_SIZE - 1:
            self._reject_other_formats()
            self._fail(
                Corruption.FILE_TOO_SHORT,
                f"not a VHD: {self.size} bytes are too few for a footer of {FOOTER_SIZE}",
            )
        first_error: CorruptImageError | None = None
        for place, offset, raw in self._footer_places():
            try:
                footer = self._parse_footer(raw)
            except CorruptImageError as error:
                # The first footer that has a cookie but is wrong tells more than one that is not there.
                if first_error is None or first_error.corruption is Corruption.NOT_A_VHD:
                    first_error = error.located(self.storage.path, offset)
                continue
            if place is FooterPlace.COPY and not self._is_plausible_copy(footer):
                continue
            if self.keep_going and first_error is not None and first_error.corruption is Corruption.FOOTER_POISONED:
                self.findings.append(as_finding(first_error, self.storage.path))
            self._compare_copy(footer, place, raw)
            return footer, place
        self._reject_other_formats()
        return self._no_footer(first_error)

    def _no_footer(self, first_error: CorruptImageError | None) -> tuple[Footer, FooterPlace]:
        """Return a footer that lies where none should be; fail if there is none."""
        if first_error is None or first_error.corruption is Corruption.NOT_A_VHD:
            inside = self._misplaced()
            if inside is not None:
                return inside, FooterPlace.INSIDE
            if self._bytes(0, 8) != constants.FOOTER_COOKIE and self._bytes(FOOTER_SIZE, 8) == constants.HEADER_COOKIE:
                detail = "both its footers are lost or damaged; the dynamic header behind the first is there"
                self._fail(Corruption.FOOTERS_LOST, detail, 0)
            self._fail(Corruption.NOT_A_VHD, "not a VHD: neither its end nor its beginning holds a footer")
        raise first_error

    def _footer_places(self) -> list[tuple[FooterPlace, int, bytes]]:
        places: list[tuple[FooterPlace, int, bytes]] = []
        if paths.splitext(self.storage.path)[1].lower() in _VHDX_SUFFIXES and self._bytes(0, 8) == _VHDX_MAGIC:
            return places  # what a VHDX ends with, a guest wrote
        if self.size >= FOOTER_SIZE:
            at = self.size - FOOTER_SIZE
            places.append((FooterPlace.TRAILING, at, self._bytes(at, FOOTER_SIZE)))
        if (self.size - (FOOTER_SIZE - 1)) % SECTOR == 0:
            at = self.size - FOOTER_SIZE + 1
            places.append((FooterPlace.TRAILING_511, at, self._bytes(at, FOOTER_SIZE - 1) + b"\0"))
        if self.size >= FOOTER_SIZE + HEADER_SIZE:
            places.append((FooterPlace.COPY, 0, self._bytes(0, FOOTER_SIZE)))
        # A file that got shorter since its size was taken ends inside of one.
        return [item for item in places if len(item[2]) == FOOTER_SIZE]

    def _parse_footer(self, raw: bytes) -> Footer:
        footer = Footer.from_bytes(raw, verify=self.verify)
        self.checksum_ok = checksum(raw) == stored_checksum(raw)
        return footer

    def _is_plausible_copy(self, footer: Footer) -> bool:
        if footer.disk_type is DiskType.FIXED:
            return False
        return self._bytes(footer.data_offset, 8) == constants.HEADER_COOKIE

    def _misplaced(self) -> Footer | None:
        footer = find_misplaced(self.storage)
        if footer is not None:
            at = footer.current_size
            message = (
                f"its footer is at {at:#x}, {self.size - at - FOOTER_SIZE} bytes before the end: the file was padded or"
                " made longer by another tool, and other readers refuse it"
            )
            self._note(Corruption.FOOTER_MISPLACED, message, at, Level.ERROR, is_mended=True)
        return footer

    def _compare_copy(self, footer: Footer, place: FooterPlace, raw: bytes) -> None:
        if place is FooterPlace.COPY:
            message = (
                "the footer at its end is missing or damaged, and other readers refuse the file; the copy at its"
                " beginning is used"
            )
            at = max(0, self.size - FOOTER_SIZE)
            self._note(Corruption.FOOTER_TRAILING_LOST, message, at, Level.ERROR, is_mended=True)
        elif footer.disk_type is not DiskType.FIXED and self._bytes(0, FOOTER_SIZE) != raw:
            message = "the footer copy at its beginning differs from the footer at its end; the latter is used"
            self._note(Corruption.FOOTER_COPY_DIFFERS, message, 0, Level.ERROR, is_mended=True)
            self.copy_ok = False
        if place is FooterPlace.TRAILING_511:
            message = "the footer has 511 bytes, as before Virtual PC 2004"
            self._note(Corruption.FOOTER_511_BYTES, message, self.size - FOOTER_SIZE + 1)

    def _reject_other_formats(self) -> None:
        head = self._bytes(0, 32)
        for magic, name in _OTHER_FORMATS.items():
            if head.startswith(magic):
                error = UnsupportedImageError(f"this is {name}, not a VHD", path=self.storage.path)
                if magic == _VHDX_MAGIC:
                    text = "VHDX files are read where nothing needs a VHD, and not written yet; {} makes one of it"
                    made = f"{paths.splitext(self.storage.path)[0]}.vhd"
                    error.add_hint(Advice.CONVERT.hint(text, path=self.storage.path, new_path=made))
                raise error
        extension = paths.splitext(self.storage.path)[1].lower()
        if re.fullmatch(r"\.v\d\d", extension):
            message = "this is a piece of a split image (.vhd, .v01, ...); join the pieces in order first"
            raise UnsupportedImageError(message, path=self.storage.path)

    def _check_footer(self, footer: Footer, place: FooterPlace) -> None:
        size = footer.current_size
        at = {
            FooterPlace.TRAILING: self.size - FOOTER_SIZE,
            FooterPlace.TRAILING_511: self.size - FOOTER_SIZE + 1,
            FooterPlace.INSIDE: size,
        }
        start = self.footer_at = at.get(place, 0)
        most = constants.MAX_FIXED_SIZE if footer.disk_type is DiskType.FIXED else constants.MAX_VIRTUAL_SIZE
        if size <= 0 or size % SECTOR or size > most:
            detail = f"the disk's size is {size}: expected a multiple of {SECTOR} up to {most}"
            self._wrong(Corruption.DISK_SIZE, detail, start + 48)
        if footer.saved_state:
            message = "the disk belongs to a saved machine state; it is only read"
            self._note(Corruption.SAVED_STATE, message, start + 84)
        if footer.disk_type is DiskType.FIXED:
            length = FOOTER_SIZE - (place is FooterPlace.TRAILING_511)
            if size > self.size - length:
                detail = f"the disk has {size} bytes, the file only {self.size - length} before its footer"
                self._wrong(Corruption.FIXED_DATA_MISSING, detail, start + 48)

    def _header_if_any(self, footer: Footer) -> DynamicHeader | None:
        try:
            return self._header(footer)
        except (CorruptImageError, UnsupportedImageError) as error:
            if not self.keep_going:
                raise
            self.findings.append(as_finding(error, self.storage.path))
            return None

    def _header(self, footer: Footer) -> DynamicHeader:
        at = footer.data_offset
        if at % SECTOR or at < FOOTER_SIZE or at + HEADER_SIZE > self.size:
            detail = f"the dynamic header should be at {at:#x}, which is not a whole sector inside the file"
            self._fail(Corruption.HEADER_OFFSET, detail, self.footer_at + 16)
        raw = self._bytes(at, HEADER_SIZE)
        try:
            header = DynamicHeader.from_bytes(raw, verify=(self.verify and self.verify_header) or self.keep_going)
        except CorruptImageError as error:
            located = error.located(self.storage.path, at)
            if not self.keep_going or error.corruption is not Corruption.HEADER_CHECKSUM:
                if error.corruption is Corruption.HEADER_CHECKSUM and footer.disk_type is DiskType.DIFFERENCING:
                    text = "if the path in it was edited by hand, {} takes the header as it is"
                    located.add_hint(Advice.ACCEPT_HEADER.hint(text, path=self.storage.path))
                raise located from None
            self.findings.append(as_finding(located, self.storage.path))
            header = DynamicHeader.from_bytes(raw, verify=False)
        self.checksum_ok &= checksum(raw) == stored_checksum(raw)
        return header

    def _check_table(self, footer: Footer, header: DynamicHeader) -> None:
        block = header.block_size
        if block < SECTOR or block > constants.MAX_BLOCK_SIZE or block & (block - 1):
            detail = f"the block size is {block}: expected a power of two from {SECTOR} to {constants.MAX_BLOCK_SIZE}"
            self._wrong(Corruption.BLOCK_SIZE, detail, footer.data_offset + 32)
            return  # nothing can be said about blocks
        needed = ceil_div(footer.current_size, block)
        if header.max_table_entries < needed:
            detail = f"the BAT has {header.max_table_entries} entries, a disk of this size needs {needed}"
            self._wrong(Corruption.BAT_TOO_SHORT, detail, footer.data_offset + 28)
        if header.max_table_entries > constants.MAX_TABLE_ENTRIES:
            detail = f"the BAT has {header.max_table_entries} entries, more than {constants.MAX_TABLE_ENTRIES}"
            self._wrong(Corruption.BAT_TOO_LONG, detail, footer.data_offset + 28)
        at = header.table_offset
        header_end = footer.data_offset + HEADER_SIZE
        if at % SECTOR or at < FOOTER_SIZE or (at < header_end and at + header.table_bytes > footer.data_offset):
            detail = f"the BAT should be at {at:#x}, which is not a sector of its own behind the footer copy"
            self._wrong(Corruption.BAT_OFFSET, detail, footer.data_offset + 16)
        if at + header.max_table_entries * 4 > self.size:
            detail = f"the BAT ends at {at + header.max_table_entries * 4}, the file at {self.size}"
            self._wrong(Corruption.BAT_OUTSIDE_FILE, detail, footer.data_offset + 16)
        self.entry_count = max(0, min(header.max_table_entries, constants.MAX_TABLE_ENTRIES, (self.size - at) // 4))

    def _locators(self, footer: Footer, header: DynamicHeader) -> tuple[tuple[LocatorPath, ...], _Stretches]:
        """Return the paths that can be read, and the rooms of the locators; some dynamic disks have room too."""
        rooms = []
        found = []
        for slot, locator in enumerate(header.locators):
            if not locator.is_used:
                continue
            entry_at = footer.data_offset + LOCATORS_AT + slot * LOCATOR_SIZE
            length, data_end = locator.data_length, locator.data_offset + locator.data_length
            if not 0 < length <= MAX_LOCATOR_BYTES or locator.data_offset < FOOTER_SIZE or data_end > self.size:
                message = f"parent locator {slot} points outside of the file or is too long; it is not used"
                self._note(Corruption.LOCATOR_UNREADABLE, message, entry_at)
                continue
            room_end = locator.data_offset + locator.space
            rooms.append((locator.data_offset, max(data_end, room_end if room_end <= self.size else 0)))
            text = decode_locator(locator.platform_code, self._bytes(locator.data_offset, length))
            if footer.disk_type is not DiskType.DIFFERENCING:
                continue
            if text is not None and len(text) <= _MAX_PATH:
                found.append(LocatorPath(platform_code=locator.platform_code, text=text))
            elif self.keep_going and locator.platform_code in _CODES_WITH_TEXT:
                message = f"parent locator {slot} holds no text that can be a path; it is not used"
                self._note(Corruption.LOCATOR_TEXT, message, locator.data_offset, Level.INFO)
        return tuple(found), tuple(rooms)

    def _batmap(self, footer: Footer, header: DynamicHeader) -> tuple[int, int]:
        """Return [start, end) of blktap's map of full blocks, (0, 0) if there is none (docs/reference/vhd.md 3.3)."""
        at = header.table_offset + header.table_bytes
        raw = self._bytes(at, SECTOR)
        if footer.creator_application != b"tap\0" or raw[:8] != constants.BATMAP_COOKIE or len(raw) < SECTOR:
            return 0, 0
        fields = structs.parse_batmap(raw)
        if fields["key_hash"] == 1:
            raise UnsupportedImageError("the image's blocks are encrypted by blktap", path=self.storage.path)
        end = max(at + SECTOR, int(fields["data_offset"]) + int(fields["sectors"]) * SECTOR)
        return at, end if end <= self.size else at + SECTOR
