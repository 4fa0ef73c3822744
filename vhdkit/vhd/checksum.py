"""The checksum of a footer or a dynamic header.

**Source**: docs/reference/vhd.md 1.2, 1.4.
"""

from __future__ import annotations

from vhdkit.vhd.constants import FOOTER_SIZE, HEADER_SIZE

# Where the checksum lies, by the length of the record.
CHECKSUM_OFFSETS = {FOOTER_SIZE: 64, HEADER_SIZE: 36}


def checksum(raw: bytes) -> int:
    """Return the checksum of a footer's or header's raw bytes: the inverted sum of all but its own field.

    It is taken over the bytes and never over a record: some makers keep data of their own in reserved areas.
    """
    at = CHECKSUM_OFFSETS[len(raw)]
    return ~(sum(raw) - sum(raw[at : at + 4])) & 0xFFFF_FFFF


def stored_checksum(raw: bytes) -> int:
    """Return the checksum that the raw bytes of a footer or header carry."""
    at = CHECKSUM_OFFSETS[len(raw)]
    return int.from_bytes(raw[at : at + 4], "big")
