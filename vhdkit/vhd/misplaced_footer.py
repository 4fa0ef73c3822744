"""A fixed disk's footer that is not at its file's end, because another tool padded the file or made it longer.

Such a footer says itself where it should be: behind as many bytes as its disk has. The search for it is bounded, since
any file without a footer comes here.

**Source**: docs/reference/vhd.md 1.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.errors import CorruptImageError, UnsupportedImageError
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import SECTOR
from vhdkit.vhd import constants
from vhdkit.vhd.checksum import checksum, stored_checksum
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.footer import DiskType, Footer

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Storage

# What is read of a file, from its end, in pieces; holes are passed over in steps that double, and cost nothing.
_SEARCHED_BYTES = 16 << 20
_PIECE_BYTES = 1 << 20
_MAX_STEPS = 4096


def find_misplaced(storage: Storage) -> Footer | None:
    """Return a fixed disk's valid footer that lies where its disk ends, the last one in the file's last megabytes."""
    stop, length, budget = storage.size() // SECTOR * SECTOR, _PIECE_BYTES, _SEARCHED_BYTES
    for _ in range(_MAX_STEPS):
        if stop <= 0 or budget <= 0:
            break
        start = max(0, stop - length)
        if storage.hole_bytes(start, stop - start) == stop - start:
            stop, length = start, length * 2
            continue
        start = max(0, stop - _PIECE_BYTES)
        raw = read_bytes(storage, start, stop - start)
        for at in reversed(_sectors_with_cookie(raw)):
            footer = _footer_at(raw[at : at + FOOTER_SIZE], start + at)
            if footer is not None:
                return footer
        stop, length, budget = start, _PIECE_BYTES, budget - len(raw)
    return None


def _footer_at(raw: bytes, offset: int) -> Footer | None:
    # Parsing is the costlier part, and a file may be full of cookies. One that gets shorter ends inside of one.
    if len(raw) != FOOTER_SIZE or checksum(raw) != stored_checksum(raw):
        return None
    try:
        footer = Footer.from_bytes(raw)
    except (CorruptImageError, UnsupportedImageError):
        return None
    return footer if footer.disk_type is DiskType.FIXED and footer.current_size == offset else None


def _sectors_with_cookie(raw: bytes) -> list[int]:
    """Return the offsets of the sectors that begin as a footer does; no sector is looked at twice."""
    found = []
    at = raw.find(constants.FOOTER_COOKIE)
    while at >= 0:
        if at % SECTOR == 0:
            found.append(at)
        # In a sector that has the cookie elsewhere it may be at the beginning of the next one first.
        at = raw.find(constants.FOOTER_COOKIE, (at // SECTOR + 1) * SECTOR)
    return found
