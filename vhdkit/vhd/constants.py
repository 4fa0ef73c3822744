"""The VHD format's constants and limits, each limit with its reason.

**Source**: docs/reference/vhd.md 1.2, 1.4, 1.5, 1.8.
"""

from __future__ import annotations

from vhdkit.units import SECTOR

FOOTER_SIZE = 512
HEADER_SIZE = 1024
UNUSED_OFFSET = 0xFFFF_FFFF_FFFF_FFFF
FORMAT_VERSION = 0x0001_0000

# The creator version of an undo image: a field that decides nothing for any reader. So the file itself says, under any
# name and in any folder, that merging it into its parent takes a merge back.
UNDO_IMAGE_VERSION = 0x000A_7576

FOOTER_COOKIE = b"conectix"
POISONED_COOKIE = b"v_poison"
HEADER_COOKIE = b"cxsparse"
BATMAP_COOKIE = b"tdbatmap"

LOCATOR_COUNT = 8
PARENT_NAME_BYTES = 512

# The format's own limit: 2040 GiB, above which the last blocks could lie beyond 32-bit sector numbers.
MAX_VIRTUAL_SIZE = 2040 << 30
# A fixed disk has no table and no such limit; positions are signed 64-bit numbers everywhere.
MAX_FIXED_SIZE = (1 << 62) - SECTOR

DEFAULT_BLOCK_SIZE = 2 << 20
# Ours: a block this large still has its bitmap read in one go, 64 KiB.
MAX_BLOCK_SIZE = 256 << 20
# 2 TiB of 512 KiB blocks, the smallest size that Microsoft tested: 16 MiB of table.
MAX_TABLE_ENTRIES = 4_194_304
