"""Seconds since 2000-01-01T00:00:00Z, as an unsigned 32-bit number that ends in 2136.

**Source**: docs/reference/vhd.md 1.9.
"""

from __future__ import annotations

from datetime import UTC, datetime

EPOCH = 946_684_800
_LAST = 0xFFFF_FFFF


def from_unix(seconds: float) -> int:
    """Return the time stamp of a Unix time; times that the field cannot hold become its nearest end.

    >>> from_unix(946_684_800 + 5)
    5
    """
    return min(max(int(seconds) - EPOCH, 0), _LAST)


def to_datetime(stamp: int) -> datetime:
    """Return the moment, in UTC, that a time stamp stands for.

    >>> to_datetime(0x2715AB13).isoformat()
    '2020-10-11T11:37:55+00:00'
    """
    return datetime.fromtimestamp(stamp + EPOCH, UTC)
