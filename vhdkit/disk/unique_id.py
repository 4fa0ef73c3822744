"""Unique ids are 16 opaque bytes, compared as bytes and printed as a GUID.

Tools write the same bytes in two ways. Windows, disk2vhd and OpenVMM store a GUID in memory order, so that its text is
mixed-endian; Virtual PC, qemu, blktap and the others store it big-endian. Which of the two an image's own maker would
print cannot be decided for a child and its parent alike: a child made on Windows may have a parent made by qemu. So
`guid` is what is printed wherever two ids may be compared, whichever tool made the images.

**Source**: docs/reference/vhd.md 1.14.
"""

from __future__ import annotations

from uuid import UUID

NULL = bytes(16)


def guid(unique_id: bytes) -> str:
    """Return the id as Windows shows it (`Get-VHD`, `DiskIdentifier`), in lower case.

    >>> guid(bytes.fromhex("722fa4e259c4c6458456ddb430ac4a19"))
    'e2a42f72-c459-45c6-8456-ddb430ac4a19'
    """
    return str(UUID(bytes_le=unique_id))


def big_endian(unique_id: bytes) -> str:
    """Return the id as qemu, blktap and libvhdi show it, for fields that say so in their names.

    >>> big_endian(bytes.fromhex("722fa4e259c4c6458456ddb430ac4a19"))
    '722fa4e2-59c4-c645-8456-ddb430ac4a19'
    """
    return str(UUID(bytes=unique_id))
