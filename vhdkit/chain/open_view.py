"""Open a file to look at what it shows: an image through its chain, or a file that is nothing but a disk's content."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.chain.chain import Chain, open_chain_with
from vhdkit.corruption import Corruption
from vhdkit.disk.file_name import may_be_raw
from vhdkit.disk.image import DiskKind
from vhdkit.disk.raw_image import RawImage
from vhdkit.errors import CorruptImageError
from vhdkit.storage.handle import closing_on_error

if TYPE_CHECKING:
    from vhdkit.disk.image import Image
    from vhdkit.options import ParentPolicy
    from vhdkit.storage.protocols import Folder


def open_view(path: str, file_format: str | None, policy: ParentPolicy, folder: Folder, *, lock: bool) -> Chain:
    """Open a file as "vhd" or "raw"; with None one without any footer is raw, unless its suffix says another format.

    Raises:
        VhdError, OSError: it cannot be read.

    """
    if file_format == "raw":
        return open_raw(path, folder, lock=lock)
    try:
        return open_chain_with(path, policy, folder, lock=lock)
    except CorruptImageError as error:
        if error.corruption not in {Corruption.NOT_A_VHD, Corruption.FILE_TOO_SHORT}:
            raise
        if error.path != folder.real(path) or file_format == "vhd":
            raise
        if not may_be_raw(path):
            raise
    return open_raw(path, folder, lock=lock)


def open_raw(path: str, folder: Folder, *, lock: bool = True) -> Chain:
    """Open a file as nothing but a disk's content, and hold it for reading."""
    storage = folder.open(folder.real(path))
    with closing_on_error(storage):
        if lock:
            storage.lock(exclusive=False)
        return Chain([RawImage(storage)])


def view_length(leaf: Image) -> int:
    """Return the bytes that a leaf shows: those of a raw file need not be whole sectors."""
    return leaf.storage.size() if leaf.kind is DiskKind.RAW else leaf.size
