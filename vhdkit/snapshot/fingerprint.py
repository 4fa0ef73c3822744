"""Protecting frozen layers, and noticing what was changed behind their backs.

Nothing in the format says that a disk is frozen. So its file is marked read-only, and what it is like is noted: its
length, its time, and checksums of its structures. Data that was overwritten in place shows by the time alone.

**Source**: reference 5.2.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING
from zlib import crc32

from vhdkit.journal.manifest import FileMark, Mark
from vhdkit.storage.protocols import read_bytes
from vhdkit.vhd.constants import FOOTER_SIZE, HEADER_SIZE
from vhdkit.vhd.image import VhdImage, open_image

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder

_PIECE_BYTES = 1 << 20
_WHAT = {
    "size": "its length is {now}, was {then}",
    "mtime": "it was written to since it was frozen",
    "footer": "its footer is another",
    "header": "its header is another",
    "table": "its block allocation table is another",
}


def mark_of(image: VhdImage) -> Mark:
    """Return what an open image's file is like."""
    storage, header = image.storage, image.header
    table = b""
    if header is not None:
        table = read_bytes(storage, header.table_offset, header.max_table_entries * 4)
    at = image.footer.data_offset
    return Mark(
        size=storage.size(),
        mtime=storage.mtime,
        footer=crc32(read_bytes(storage, max(0, storage.size() - FOOTER_SIZE), FOOTER_SIZE)),
        header=0 if header is None else crc32(read_bytes(storage, at, HEADER_SIZE)),
        table=crc32(table),
    )


def mark_at(folder: Folder, path: str) -> tuple[Mark, str]:
    """Return what the image at a path is like, and its unique id in hexadecimal; nobody is asked for a lock."""
    with open_image(path, follow_links=False, folder=folder) as image:
        return mark_of(image), image.unique_id.hex()


def parent_id_at(folder: Folder, path: str) -> str:
    """Return the unique id of the parent that the image at a path names, in hexadecimal, "" if it needs none."""
    with open_image(path, follow_links=False, folder=folder) as image:
        is_child = image.is_differencing and image.header is not None
        return image.header.parent_unique_id.hex() if is_child and image.header is not None else ""


def is_alike(folder: Folder, path: str, then: Mark) -> bool:
    """Whether a file has the length and the time that it had."""
    storage = folder.open(path)
    try:
        return (storage.size(), storage.mtime) == (then.size, then.mtime)
    finally:
        storage.close()


def file_mark_at(folder: Folder, path: str) -> FileMark:
    """Return what a file is like, its bytes included."""
    storage = folder.open(path)
    try:
        digest = sha256()
        size = storage.size()
        for at in range(0, size, _PIECE_BYTES):
            digest.update(read_bytes(storage, at, min(_PIECE_BYTES, size - at)))
        return FileMark(size=size, mtime=storage.mtime, ctime=storage.ctime, digest=digest.hexdigest())
    finally:
        storage.close()


def is_changed_file(folder: Folder, path: str, then: FileMark) -> bool:
    """Whether a file is no longer what it was; its bytes are read only if its times or its length differ.

    Nobody can choose a change time, but copying a file gives it another; where there is none the bytes are read.
    """
    storage = folder.open(path)
    try:
        now = (storage.size(), storage.mtime, storage.ctime)
    finally:
        storage.close()
    if now[0] != then.size:
        return True
    is_same = now == (then.size, then.mtime, then.ctime) and now[2] != 0
    return not is_same and file_mark_at(folder, path).digest != then.digest


def differences(then: Mark, now: Mark) -> tuple[str, ...]:
    """Return what is no longer as it was, in words."""
    return tuple(
        text.format(now=getattr(now, name), then=getattr(then, name))
        for name, text in _WHAT.items()
        if getattr(now, name) != getattr(then, name)
    )


def is_relinked_only(then: Mark, now: Mark) -> bool:
    """Whether nothing but the header and the file's time differs: it was told of another parent."""
    return (then.size, then.footer, then.table) == (now.size, now.footer, now.table)
