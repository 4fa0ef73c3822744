"""Reading a stretch of a storage as bytes, without numpy: headers and small files are read so."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhdkit.storage.seam import Storage


def read_bytes(storage: Storage, offset: int, length: int) -> bytes:
    """Return file bytes, fewer where the file ends."""
    raw = bytearray(length)
    return bytes(raw[: storage.read_into(offset, raw)])
