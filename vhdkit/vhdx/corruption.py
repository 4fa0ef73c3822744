"""The rules that a VHDX file can break, by the names that findings and errors have."""

from __future__ import annotations

from vhdkit.findings import Rule


class VhdxCorruption(Rule):
    """One member per rule that is looked at when a file is read; the values are stable names.

    The numbers are the rows of section 5 of the VHDX reference.
    """

    # The file, its headers and its log
    IMAGE_CUT = "image-cut"  # 1
    FILE_SIGNATURE = "file-signature"  # 2
    HEADERS_LOST = "headers-lost"  # 4
    HEADER_DAMAGED = "header-damaged"  # 5
    HEADERS_ALIKE = "headers-alike"  # 6
    HEADERS_DIFFER = "headers-differ"  # 7
    LOG_PLACE = "log-place"  # 11, 12, 13
    LOG_TO_REPLAY = "log-to-replay"  # 14
    LOG_WITHOUT_ENTRIES = "log-without-entries"  # 15
    LOG_FILE_CUT = "log-file-cut"  # 16
    LOG_TARGET = "log-target"  # 17, 18
    LOG_COSTLY = "log-costly"
    # Regions and metadata
    REGION_TABLES_LOST = "region-tables-lost"  # 20
    REGION_TABLES_DIFFER = "region-tables-differ"  # 21
    REGION_TABLE = "region-table"  # 22, 23
    REGION_PLACE = "region-place"  # 24
    REGIONS_OVERLAP = "regions-overlap"  # 25
    REGION_MISSING = "region-missing"  # 26
    METADATA_TABLE = "metadata-table"  # 31, 32
    METADATA_ITEM = "metadata-item"  # 33, 39
    METADATA_MISSING = "metadata-missing"  # 39
    FILE_INCOMPLETE = "file-incomplete"  # 37
    DISK_ID_MISSING = "disk-id-missing"  # 40
    BLOCK_SIZE = "block-size"  # 41
    SECTOR_SIZE = "sector-size"  # 42
    DISK_SIZE = "disk-size"  # 43
    LOCATOR_MISSING = "locator-missing"  # 44
    LOCATOR_UNUSED = "locator-unused"  # 44
    LOCATOR_TABLE = "locator-table"  # 46
    LOCATOR_LINKAGE = "locator-linkage"  # 47
    LOCATOR_SECOND_LINKAGE = "locator-second-linkage"  # 48
    # The BAT
    BAT_TOO_SHORT = "bat-too-short"  # 52
    BAT_ENTRY = "bat-entry"  # 53, 54, 57
    BLOCK_OUTSIDE_FILE = "block-outside-file"  # 55
    BITMAP_MISSING = "bitmap-missing"  # 58, 59
    BLOCKS_OVERLAP = "blocks-overlap"  # 61

    @property
    def windows_code(self) -> int | None:
        """The code that Windows has for it."""
        return _WINDOWS_CODES.get(self)


_WINDOWS_CODES = {
    VhdxCorruption.FILE_SIGNATURE: 0xC03A_0004,
    VhdxCorruption.IMAGE_CUT: 0xC03A_0013,
    VhdxCorruption.LOG_FILE_CUT: 0xC03A_0013,
    VhdxCorruption.METADATA_TABLE: 0xC03A_0010,
    VhdxCorruption.METADATA_ITEM: 0xC03A_0010,
    VhdxCorruption.METADATA_MISSING: 0xC03A_0010,
    VhdxCorruption.BLOCK_SIZE: 0xC03A_000B,
    VhdxCorruption.DISK_SIZE: 0xC03A_0012,
    VhdxCorruption.BAT_TOO_SHORT: 0xC03A_000A,
    VhdxCorruption.BAT_ENTRY: 0xC03A_000A,
    VhdxCorruption.BLOCK_OUTSIDE_FILE: 0xC03A_000A,
    VhdxCorruption.BLOCKS_OVERLAP: 0xC03A_000A,
    VhdxCorruption.BITMAP_MISSING: 0xC03A_000C,
}
