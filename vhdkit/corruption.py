"""The rules that a VHD file or a chain of them can break, by the names that findings and errors have."""

from __future__ import annotations

from vhdkit.errors import CorruptImageError, VhdError, WindowsCode
from vhdkit.findings import Finding, Level, Rule


class Corruption(Rule):
    """One member per rule of the format that a file can break; the values are stable names.

    The numbers are the rows of vhd.md 4.1 and 4.2, and `check` reports every one: what keeps a file from being
    opened is of level error. Row 62 has no member: tables are read in windows, so a chain takes no more memory than one
    image.
    """

    # The file and its footers
    UNSUPPORTED = "unsupported"  # 42: a split image; another format; encrypted by blktap
    NOT_A_VHD = "not-a-vhd"  # 2
    FILE_TOO_SHORT = "file-too-short"  # 1
    FILE_LENGTH = "file-length"  # 37
    FOOTER_CHECKSUM = "footer-checksum"  # 3
    FOOTER_POISONED = "footer-poisoned"  # 41
    FOOTER_TRAILING_LOST = "footer-trailing-lost"  # 2, 3
    FOOTER_COPY_DIFFERS = "footer-copy-differs"  # 4
    FOOTER_MISPLACED = "footer-misplaced"  # 2
    FOOTERS_LOST = "footers-lost"  # 2
    FOOTER_511_BYTES = "footer-511-bytes"  # 42
    FOOTER_RESERVED = "footer-reserved"  # 16
    FEATURES = "features"  # 5
    FORMAT_VERSION = "format-version"  # 6
    DISK_TYPE = "disk-type"  # 7
    DISK_SIZE = "disk-size"  # 10
    ORIGINAL_SIZE = "original-size"  # 11
    GEOMETRY = "geometry"  # 12
    GEOMETRY_SIZE = "geometry-size"  # 13
    TIMESTAMP_FUTURE = "timestamp-future"  # 14
    SAVED_STATE = "saved-state"  # 15
    UNIQUE_ID_NULL = "unique-id-null"  # 17
    CREATOR_HOST_OS = "creator-host-os"  # 18
    CREATOR_VERSION = "creator-version"  # 19
    FIXED_DATA_OFFSET = "fixed-data-offset"  # 8
    FIXED_DATA_MISSING = "fixed-data-missing"  # 9
    FIXED_DATA_EXTRA = "fixed-data-extra"  # 9
    # The dynamic header and the BAT
    HEADER_OFFSET = "header-offset"  # 20
    HEADER_COOKIE = "header-cookie"  # 21
    HEADER_CHECKSUM = "header-checksum"  # 21
    HEADER_VERSION = "header-version"  # 22
    HEADER_DATA_OFFSET = "header-data-offset"  # 23
    HEADER_RESERVED = "header-reserved"  # 24
    BLOCK_SIZE = "block-size"  # 25
    BLOCK_SIZE_UNUSUAL = "block-size-unusual"  # 25
    BAT_TOO_SHORT = "bat-too-short"  # 26
    BAT_LARGER = "bat-larger"  # 26
    BAT_TOO_LONG = "bat-too-long"  # 27
    BAT_OUTSIDE_FILE = "bat-outside-file"  # 27
    BAT_OFFSET = "bat-offset"  # 28
    BAT_PADDING = "bat-padding"  # 29
    PARENT_FIELDS = "parent-fields"  # 39
    # The blocks
    BLOCK_IN_HEADERS = "block-in-headers"  # 30
    BLOCK_OUTSIDE_FILE = "block-outside-file"  # 31
    BLOCK_IN_FOOTER = "block-in-footer"  # 31
    BLOCK_TAIL_CUT = "block-tail-cut"  # 31
    BLOCKS_OVERLAP = "blocks-overlap"  # 32
    BLOCK_BEYOND_DISK = "block-beyond-disk"  # 33
    BLOCK_ALIGNMENT = "block-alignment"  # 34
    CLEAR_SECTOR_DATA = "clear-sector-data"  # 35
    BITS_BEYOND_END = "bits-beyond-end"  # 36
    LEAKED_SPACE = "leaked-space"  # 38
    BATMAP = "batmap"  # 40
    # Locators and the chain
    PARENT_ID_NULL = "parent-id-null"  # 50
    PARENT_UNNAMED = "parent-unnamed"  # 51
    LOCATOR_UNREADABLE = "locator-unreadable"  # 52, 53
    LOCATOR_CODE = "locator-code"  # 52
    LOCATOR_DUPLICATE = "locator-duplicate"  # 52
    LOCATOR_RESERVED = "locator-reserved"  # 52
    LOCATOR_OVERLAPS = "locator-overlaps"  # 52
    LOCATOR_LENGTH = "locator-length"  # 53
    LOCATOR_TEXT = "locator-text"  # 54
    LOCATOR_NAME = "locator-name"  # 54
    PARENT_NOT_FOUND = "parent-not-found"  # 55
    PARENT_REFUSED = "parent-refused"  # 55
    PARENT_FOUND_ELSEWHERE = "parent-found-elsewhere"  # 55
    PARENT_ID_DIFFERS = "parent-id-differs"  # 56
    PARENT_TIMESTAMP = "parent-timestamp"  # 57
    PARENT_TIMESTAMP_FUTURE = "parent-timestamp-future"  # 58
    PARENT_SIZE = "parent-size"  # 59
    PARENT_FORMAT = "parent-format"  # 42
    PARENT_ID_IS_OWN = "parent-id-is-own"  # 60
    ID_SHARED = "id-shared"  # 60
    CHAIN_LOOP = "chain-loop"  # 60
    CHAIN_TOO_LONG = "chain-too-long"  # 61
    SIBLINGS = "siblings"  # 63
    UNDO_IMAGE = "undo-image"  # 63
    IN_USE = "in-use"  # 64
    # Work that was cut off
    MERGE_UNFINISHED = "merge-unfinished"
    HEADER_UNFINISHED = "header-unfinished"
    VIEW_ENDED = "view-ended"
    UNDO_DOUBTED = "undo-doubted"

    @property
    def windows_code(self) -> int | None:
        """The code that Windows has for it."""
        return _WINDOWS_CODES.get(self)

    @property
    def is_fault(self) -> bool:
        """Whether a file that breaks it is damaged; else it is of another kind, or not where one may look."""
        return self not in _NO_FAULTS


_NO_FAULTS = frozenset(
    {
        Corruption.UNSUPPORTED,
        Corruption.NOT_A_VHD,
        Corruption.FILE_TOO_SHORT,
        Corruption.PARENT_NOT_FOUND,
        Corruption.PARENT_REFUSED,
    }
)

_WINDOWS_CODES = {
    Corruption.NOT_A_VHD: WindowsCode.VHD_DRIVE_FOOTER_MISSING,
    Corruption.FILE_TOO_SHORT: WindowsCode.VHD_INVALID_FILE_SIZE,
    Corruption.FOOTER_CHECKSUM: WindowsCode.VHD_DRIVE_FOOTER_CHECKSUM_MISMATCH,
    Corruption.FOOTER_POISONED: WindowsCode.VHD_DRIVE_FOOTER_CORRUPT,
    Corruption.DISK_TYPE: WindowsCode.VHD_DRIVE_FOOTER_CORRUPT,
    Corruption.DISK_SIZE: WindowsCode.VHD_INVALID_SIZE,
    Corruption.FIXED_DATA_MISSING: WindowsCode.VHD_INVALID_FILE_SIZE,
    Corruption.HEADER_OFFSET: WindowsCode.VHD_DRIVE_FOOTER_CORRUPT,
    Corruption.HEADER_COOKIE: WindowsCode.VHD_SPARSE_HEADER_CORRUPT,
    Corruption.HEADER_CHECKSUM: WindowsCode.VHD_SPARSE_HEADER_CHECKSUM_MISMATCH,
    Corruption.BLOCK_SIZE: WindowsCode.VHD_INVALID_BLOCK_SIZE,
    Corruption.BAT_TOO_SHORT: WindowsCode.VHD_BLOCK_ALLOCATION_TABLE_CORRUPT,
    Corruption.BAT_TOO_LONG: WindowsCode.VHD_BLOCK_ALLOCATION_TABLE_CORRUPT,
    Corruption.BAT_OFFSET: WindowsCode.VHD_BLOCK_ALLOCATION_TABLE_CORRUPT,
    Corruption.BAT_OUTSIDE_FILE: WindowsCode.VHD_BLOCK_ALLOCATION_TABLE_CORRUPT,
    Corruption.BLOCK_IN_HEADERS: WindowsCode.VHD_BLOCK_ALLOCATION_TABLE_CORRUPT,
    Corruption.BLOCK_OUTSIDE_FILE: WindowsCode.VHD_BLOCK_ALLOCATION_TABLE_CORRUPT,
    Corruption.BLOCKS_OVERLAP: WindowsCode.VHD_BLOCK_ALLOCATION_TABLE_CORRUPT,
    Corruption.BLOCK_IN_FOOTER: WindowsCode.VHD_BLOCK_ALLOCATION_TABLE_CORRUPT,
    Corruption.FOOTER_MISPLACED: WindowsCode.VHD_DRIVE_FOOTER_MISSING,
    Corruption.FOOTERS_LOST: WindowsCode.VHD_DRIVE_FOOTER_MISSING,
}


_VERSION_RULES: dict[int, Corruption] = {
    WindowsCode.VHD_FORMAT_UNSUPPORTED_VERSION: Corruption.FORMAT_VERSION,
    WindowsCode.VHD_SPARSE_HEADER_UNSUPPORTED_VERSION: Corruption.HEADER_VERSION,
}


def as_finding(error: VhdError, path: str) -> Finding:
    """Return a failure to read a file as what was found wrong with it."""
    if isinstance(error, CorruptImageError):
        return Finding(
            corruption=error.corruption,
            path=path,
            message=error.detail,
            level=Level.ERROR,
            offset=error.offset,
            hint=error.hint,
        )
    rule = _VERSION_RULES.get(error.windows_code or 0, Corruption.UNSUPPORTED)
    return Finding(corruption=rule, path=path, message=error.message, level=Level.ERROR, hint=error.hint)
