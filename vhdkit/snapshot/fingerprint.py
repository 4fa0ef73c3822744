"""Protecting frozen layers, and noticing what was changed behind their backs.

Nothing in the format says that a disk is frozen. So its file is marked read-only, and what it is like is noted: its
length, its time, and checksums of its structures. Data that was overwritten in place shows by the time alone.

**Source**: docs/reference/vhd.md 5.1.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from vhdkit.formats import open_image
from vhdkit.journal.manifest import FileMark, LayerMark
from vhdkit.storage.protocols import read_bytes

if TYPE_CHECKING:
    from vhdkit.disk.image import Image
    from vhdkit.storage.protocols import Folder

_PIECE_BYTES = 1 << 20
_WHAT = {
    "size": "its length is {now}, was {then}",
    "mtime": "it was written to since it was frozen",
    "footer": "its footer is another",
    "header": "its header is another",
    "table": "its block allocation table is another",
}


def mark_of(image: Image) -> LayerMark:
    """Return what an open image's file is like."""
    return LayerMark(size=image.storage.size(), mtime=image.storage.mtime, **image.checksums()._asdict())


def mark_at(folder: Folder, path: str) -> tuple[LayerMark, str]:
    """Return what the image at a path is like, and its unique id in hexadecimal; nobody is asked for a lock."""
    with open_image(path, follow_links=False, folder=folder) as image:
        return mark_of(image), image.unique_id.hex()


def parent_id_at(folder: Folder, path: str) -> str:
    """Return the unique id of the parent that the image at a path names, in hexadecimal, "" if it needs none."""
    with open_image(path, follow_links=False, folder=folder) as image:
        return "" if image.parent is None else image.parent.unique_id.hex()


def is_alike(folder: Folder, path: str, then: LayerMark) -> bool:
    """Whether a file has the length and the time that it had."""
    with folder.open(path) as storage:
        return (storage.size(), storage.mtime) == (then.size, then.mtime)


def file_mark_at(folder: Folder, path: str) -> FileMark:
    """Return what a file is like, its bytes included."""
    with folder.open(path) as storage:
        digest = sha256()
        size = storage.size()
        for at in range(0, size, _PIECE_BYTES):
            digest.update(read_bytes(storage, at, min(_PIECE_BYTES, size - at)))
        return FileMark(size=size, mtime=storage.mtime, ctime=storage.ctime, digest=digest.hexdigest())


def is_changed_file(folder: Folder, path: str, then: FileMark) -> bool:
    """Whether a file is no longer what it was; its bytes are read only if its times or its length differ.

    Nobody can choose a change time, but copying a file gives it another; where there is none the bytes are read.
    """
    with folder.open(path) as storage:
        now = (storage.size(), storage.mtime, storage.ctime)
    if now[0] != then.size:
        return True
    is_same = now == (then.size, then.mtime, then.ctime) and now[2] != 0
    return not is_same and file_mark_at(folder, path).digest != then.digest


def differences(then: LayerMark, now: LayerMark) -> tuple[str, ...]:
    """Return what is no longer as it was, in words."""
    return tuple(
        text.format(now=getattr(now, name), then=getattr(then, name))
        for name, text in _WHAT.items()
        if getattr(now, name) != getattr(then, name)
    )


def is_relinked_only(then: LayerMark, now: LayerMark) -> bool:
    """Whether nothing but the header and the file's time differs: it was told of another parent."""
    return (then.size, then.footer, then.table) == (now.size, now.footer, now.table)
