"""Unique ids are 16 opaque bytes; these are the two ways in which people write them.

They are always compared as bytes. Windows, disk2vhd and OpenVMM store a GUID in memory order, so that its text
is mixed-endian; Virtual PC, qemu, blktap and the others store it big-endian.

**Source**: reference 1.14.
"""

from __future__ import annotations

from uuid import UUID

NULL = bytes(16)
_MIXED_ENDIAN_CREATORS = frozenset({b"win ", b"d2v\0", b"d2v "})


def mixed_endian(unique_id: bytes) -> str:
    """Return the id as Windows shows it (`Get-VHD`, `DiskIdentifier`).

    >>> mixed_endian(bytes.fromhex("722fa4e259c4c6458456ddb430ac4a19"))
    'e2a42f72-c459-45c6-8456-ddb430ac4a19'
    """
    return str(UUID(bytes_le=unique_id))


def big_endian(unique_id: bytes) -> str:
    """Return the id as qemu, blktap and libvhdi show it.

    >>> big_endian(bytes.fromhex("722fa4e259c4c6458456ddb430ac4a19"))
    '722fa4e2-59c4-c645-8456-ddb430ac4a19'
    """
    return str(UUID(bytes=unique_id))


def display(unique_id: bytes, creator: bytes) -> str:
    """Return the id as the tools of the image's creator show it."""
    return mixed_endian(unique_id) if creator in _MIXED_ENDIAN_CREATORS else big_endian(unique_id)
