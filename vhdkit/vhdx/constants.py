"""Numbers and GUIDs of the VHDX format. GUIDs are the 16 bytes as they lie in the file, in memory order."""

from __future__ import annotations

from uuid import UUID

from vhdkit.units import KiB, MiB, TiB

FILE_SIGNATURE = b"vhdxfile"
HEADER_SIGNATURE = b"head"
REGION_SIGNATURE = b"regi"
METADATA_SIGNATURE = b"metadata"
LOG_SIGNATURE = b"loge"
ZERO_SIGNATURE = b"zero"
DATA_DESCRIPTOR_SIGNATURE = b"desc"
DATA_SIGNATURE = b"data"

IDENTIFIER_SIZE = 520
HEADER_SIZE = 4 * KiB
HEADER_FIELDS_SIZE = 80  # of a header; the rest is reserved
HEADER_OFFSETS = (64 * KiB, 128 * KiB)
TABLE_SIZE = 64 * KiB
REGION_TABLE_OFFSETS = (192 * KiB, 256 * KiB)
# What lies before belongs to no region, and nothing but the region tables in it is ever logged.
FIRST_REGION = MiB
PAGE = 4 * KiB

MAX_ENTRIES = 2047  # of a region table, and of a metadata table
MAX_ITEM_BYTES = MiB
MAX_DISK_SIZE = 64 * TiB
MIN_BLOCK_SIZE = MiB
MAX_BLOCK_SIZE = 256 * MiB
SECTOR_SIZES = (512, 4096)
# A ring is read page by page, so that only patience bounds it; Windows and qemu make rings of 1 MiB.
MAX_LOG_BYTES = 1024 * MiB
# A disk of 64 TiB with all its tables takes 65 TiB. No honest file has anything behind this.
MAX_FILE_SIZE = 96 * TiB
CHUNK_SECTORS = 1 << 23  # sectors that one bitmap block of 1 MiB describes

NULL_GUID = bytes(16)


def _guid(text: str) -> bytes:
    return UUID(text).bytes_le


BAT_REGION = _guid("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_REGION = _guid("8B7CA206-4790-4B9A-B8FE-575F050F886E")

FILE_PARAMETERS = _guid("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
VIRTUAL_DISK_SIZE = _guid("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
VIRTUAL_DISK_ID = _guid("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR_SIZE = _guid("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR_SIZE = _guid("CDA348C7-445D-4471-9CC9-E9885251C556")
PARENT_LOCATOR = _guid("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
INCOMPLETE_FILE = _guid("71CC85F0-1B69-4E28-9558-C3BF83AE75D3")
CHS_PARAMETERS = _guid("DA02D7BC-3D3A-423C-AC88-2A36AB21479B")
PMEM_LABELS = _guid("10E1AE8A-4B7E-4169-A40F-CD70DE928393")

# The last two say nothing about where payload lies.
KNOWN_ITEMS = frozenset(
    {
        FILE_PARAMETERS,
        VIRTUAL_DISK_SIZE,
        VIRTUAL_DISK_ID,
        LOGICAL_SECTOR_SIZE,
        PHYSICAL_SECTOR_SIZE,
        PARENT_LOCATOR,
        INCOMPLETE_FILE,
        CHS_PARAMETERS,
        PMEM_LABELS,
    }
)

VHDX_LOCATOR = _guid("B04AEFB7-D19E-4A81-B789-25B8E9445913")
