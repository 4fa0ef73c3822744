"""The rules that a VHDX file or a chain of them can break, by the names that findings and errors have."""

from __future__ import annotations

from vhdkit.errors import WindowsCode
from vhdkit.findings import Rule


class VhdxCorruption(Rule):
    """One member per rule of the format that a file can break; the values are stable names.

    The numbers are the rows of section 5 of the VHDX reference, and a check reports every one: what keeps a file from
    being opened is of level error.
    """

    # The file, its headers and its log
    IMAGE_CUT = "image-cut"  # 1
    FILE_SIGNATURE = "file-signature"  # 2
    RESERVED_BYTES = "reserved-bytes"  # 3
    HEADERS_LOST = "headers-lost"  # 4
    HEADER_DAMAGED = "header-damaged"  # 5
    HEADERS_ALIKE = "headers-alike"  # 6
    HEADERS_DIFFER = "headers-differ"  # 7
    HEADERS_APART = "headers-apart"  # 8
    FORMAT_VERSION = "format-version"  # 9
    LOG_VERSION = "log-version"  # 10
    LOG_PLACE = "log-place"  # 11, 12
    LOG_LENGTH_NULL = "log-length-null"  # 13
    LOG_TO_REPLAY = "log-to-replay"  # 14
    LOG_WITHOUT_ENTRIES = "log-without-entries"  # 15
    LOG_DAMAGED = "log-damaged"  # 15
    LOG_FILE_CUT = "log-file-cut"  # 16
    LOG_TARGET = "log-target"  # 17
    LOG_TARGET_FAR = "log-target-far"  # 18
    LOG_COSTLY = "log-costly"  # 18
    LOG_EXTENDS = "log-extends"  # 19
    # Regions and metadata
    REGION_TABLES_LOST = "region-tables-lost"  # 20
    REGION_TABLES_DIFFER = "region-tables-differ"  # 21
    REGION_TABLE = "region-table"  # 22
    REGION_DUPLICATE = "region-duplicate"  # 23
    REGION_PLACE = "region-place"  # 24
    REGIONS_OVERLAP = "regions-overlap"  # 25
    REGION_MISSING = "region-missing"  # 26
    REGION_REQUIRED = "region-required"  # 27
    REGION_UNKNOWN = "region-unknown"  # 28
    REGION_OPTIONAL = "region-optional"  # 29
    REGION_FLAGS = "region-flags"  # 30
    METADATA_TABLE = "metadata-table"  # 31
    ITEM_DUPLICATE = "item-duplicate"  # 32
    ITEM_PLACE = "item-place"  # 33
    ITEM_EMPTY = "item-empty"  # 34
    USER_ITEMS = "user-items"  # 35
    ITEM_REQUIRED = "item-required"  # 36
    FILE_INCOMPLETE = "file-incomplete"  # 37
    ITEM_FLAGS = "item-flags"  # 38
    METADATA_MISSING = "metadata-missing"  # 39
    ITEM_LENGTH = "item-length"  # 39
    DISK_ID_MISSING = "disk-id-missing"  # 40
    PHYSICAL_SIZE_MISSING = "physical-size-missing"  # 40
    BLOCK_SIZE = "block-size"  # 41
    PARAMETER_FLAGS = "parameter-flags"  # 41
    SECTOR_SIZE = "sector-size"  # 42
    DISK_SIZE = "disk-size"  # 43
    LOCATOR_MISSING = "locator-missing"  # 44
    LOCATOR_UNUSED = "locator-unused"  # 44
    LOCATOR_TYPE = "locator-type"  # 45
    LOCATOR_TABLE = "locator-table"  # 46
    LOCATOR_LINKAGE = "locator-linkage"  # 47
    LOCATOR_SECOND_LINKAGE = "locator-second-linkage"  # 48
    LOCATOR_PATHS = "locator-paths"  # 49
    LOCATOR_PREFIX = "locator-prefix"  # 50
    LOCATOR_KEY = "locator-key"  # 51
    # The BAT and the blocks
    BAT_TOO_SHORT = "bat-too-short"  # 52
    BAT_RESERVED = "bat-reserved"  # 53
    BLOCK_STATE = "block-state"  # 54
    BLOCK_OUTSIDE_FILE = "block-outside-file"  # 55
    BLOCK_TAIL_CUT = "block-tail-cut"  # 56
    PARTIAL_WITHOUT_PARENT = "partial-without-parent"  # 57
    BITMAP_MISSING = "bitmap-missing"  # 58
    BITMAP_STATE = "bitmap-state"  # 59
    BITMAP_WITHOUT_PARENT = "bitmap-without-parent"  # 60
    BLOCKS_OVERLAP = "blocks-overlap"  # 61
    ABSENT_WITH_OFFSET = "absent-with-offset"  # 62
    KEPT_PLACE = "kept-place"  # 63
    BAT_BEHIND = "bat-behind"  # 64
    BLOCK_BEYOND_DISK = "block-beyond-disk"  # 65
    BITMAP_FULL = "bitmap-full"  # 66
    BITMAP_EMPTY = "bitmap-empty"  # 67
    LEAKED_SPACE = "leaked-space"  # 68
    FILE_LENGTH = "file-length"  # 69
    FIXED_WITHOUT_BLOCKS = "fixed-without-blocks"  # 70
    BITMAP_IDLE = "bitmap-idle"  # 79
    BITS_BEYOND_END = "bits-beyond-end"  # 80
    # The chain
    PARENT_ID_DIFFERS = "parent-id-differs"  # 71
    PARENT_FORMAT = "parent-format"  # 72
    PARENT_SECTORS = "parent-sectors"  # 72
    PARENT_SIZE = "parent-size"  # 73
    DISK_ID_DIFFERS = "disk-id-differs"  # 74
    PARENT_LOG = "parent-log"  # 75
    CHAIN_LOOP = "chain-loop"  # 76
    CHAIN_TOO_LONG = "chain-too-long"  # 76
    UNIQUE_ID_NULL = "unique-id-null"  # 77
    CHANGE_TRACKING = "change-tracking"  # 78
    PARENT_NOT_FOUND = "parent-not-found"  # 71
    PARENT_REFUSED = "parent-refused"  # 71
    PARENT_FOUND_ELSEWHERE = "parent-found-elsewhere"  # 71
    PARENT_ID_IS_OWN = "parent-id-is-own"  # 71
    ID_SHARED = "id-shared"  # 71
    SIBLINGS = "siblings"  # 71
    IN_USE = "in-use"

    @property
    def windows_code(self) -> int | None:
        """The code that Windows has for it."""
        return _WINDOWS_CODES.get(self)

    @property
    def is_fault(self) -> bool:
        """Whether a file that breaks it is damaged; else nothing can be said of it."""
        return self not in _NO_FAULTS


_C = VhdxCorruption

# Too short for any image, valid and not known here, or not where one may look.
_NO_FAULTS = frozenset(
    {_C.IMAGE_CUT, _C.REGION_REQUIRED, _C.ITEM_REQUIRED, _C.LOCATOR_TYPE, _C.PARENT_NOT_FOUND, _C.PARENT_REFUSED}
)

_METADATA_CORRUPT = 0xC03A_0010  # ERROR_VHD_METADATA_READ_FAILURE
_TABLE_CORRUPT = WindowsCode.VHD_BLOCK_ALLOCATION_TABLE_CORRUPT
_WINDOWS_CODES: dict[VhdxCorruption, int] = {
    _C.FILE_SIGNATURE: WindowsCode.VHD_FORMAT_UNKNOWN,
    _C.IMAGE_CUT: WindowsCode.VHD_INVALID_FILE_SIZE,
    _C.LOG_FILE_CUT: WindowsCode.VHD_INVALID_FILE_SIZE,
    _C.METADATA_TABLE: _METADATA_CORRUPT,
    _C.ITEM_DUPLICATE: _METADATA_CORRUPT,
    _C.ITEM_PLACE: _METADATA_CORRUPT,
    _C.ITEM_LENGTH: _METADATA_CORRUPT,
    _C.METADATA_MISSING: _METADATA_CORRUPT,
    _C.PARAMETER_FLAGS: _METADATA_CORRUPT,
    _C.BLOCK_SIZE: WindowsCode.VHD_INVALID_BLOCK_SIZE,
    _C.DISK_SIZE: WindowsCode.VHD_INVALID_SIZE,
    _C.BAT_TOO_SHORT: _TABLE_CORRUPT,
    _C.BAT_RESERVED: _TABLE_CORRUPT,
    _C.BLOCK_STATE: _TABLE_CORRUPT,
    _C.PARTIAL_WITHOUT_PARENT: _TABLE_CORRUPT,
    _C.BLOCK_OUTSIDE_FILE: _TABLE_CORRUPT,
    _C.BLOCKS_OVERLAP: _TABLE_CORRUPT,
    _C.BITMAP_MISSING: 0xC03A_000C,  # ERROR_VHD_BITMAP_MISMATCH
    _C.BITMAP_STATE: 0xC03A_000C,
}


def own_rule(rule: Rule) -> Rule:
    """Return the rule of the same name of this format, the rule itself if the format has none.

    >>> own_rule(VhdxCorruption("parent-size")) is VhdxCorruption.PARENT_SIZE
    True
    """
    return _BY_NAME.get(rule.value, rule)


_BY_NAME = {rule.value: rule for rule in VhdxCorruption}
