"""CRC-32C, as headers, region tables and log entries carry it.

**Source**: docs/reference/vhdx.md 1.4.
"""

from __future__ import annotations

import google_crc32c

_FIELD = slice(4, 8)


def extended(checksum: int, raw: bytes) -> int:
    """Return the checksum of bytes whose beginning has a checksum already (0 of none) and which end with `raw`.

    >>> hex(extended(extended(0, b"12345"), b"6789"))
    '0xe3069283'
    """
    return int(google_crc32c.extend(checksum, raw))


def computed(raw: bytes) -> int:
    """Return the checksum of a record: of all its bytes, those of the checksum itself taken as zeros."""
    return extended(0, without_field(raw))


def stored(raw: bytes) -> int:
    """Return the checksum that a record carries."""
    return int.from_bytes(raw[_FIELD], "little")


def without_field(raw: bytes) -> bytes:
    """Return a record with zeros for its checksum."""
    return raw[:4] + bytes(4) + raw[8:]


def sealed(raw: bytes) -> bytes:
    """Return a record with the checksum that it should have."""
    return raw[:4] + computed(raw).to_bytes(4, "little") + raw[8:]
