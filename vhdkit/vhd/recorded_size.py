"""What a file says of its disk's size, kept by a merge that makes the disk larger, and put back when that is undone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.disk.image import DiskKind
from vhdkit.errors import CorruptImageError
from vhdkit.units import ceil_div
from vhdkit.vhd import bat
from vhdkit.vhd.footer import Footer
from vhdkit.vhd.footer_update import write_footers

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder
    from vhdkit.vhd.open_image import Vhd


def size_record(image: Vhd) -> str:
    """Return the footer as it is now, hexadecimal."""
    return image.footer.to_bytes().hex()


def recorded_footer(image: Vhd, record: str, size: int) -> Footer:
    """Return the footer in a record of an image whose disk had a size.

    Raises:
        ValueError: it is none, or another image's, or of a disk of another size.

    """
    try:
        footer = Footer.from_bytes(bytes.fromhex(record))
    except (ValueError, CorruptImageError) as error:
        raise ValueError(f"the footer in it is none: {error}") from error
    if footer.unique_id != image.unique_id or footer.disk_type is not image.disk_type:
        raise ValueError("the footer in it is another image's")
    if footer.current_size != size:
        raise ValueError("the footer in it is of a disk of another size")
    return footer


def restore_size(folder: Folder, image: Vhd, footer: Footer) -> None:
    """Give a disk its recorded size, durably, and drop the blocks behind it.

    **Order**: 1 both footers in one step (see `footer_update`) · 2 the entries of blocks behind the disk's end, sync.
    """
    if image.kind is DiskKind.FIXED:
        return
    image.footer = footer
    write_footers(folder, image)
    first = ceil_div(footer.current_size, image.block_size)
    for base, entries in image.table.windows():
        beyond = bat.allocated(entries) + base
        beyond = beyond[beyond >= first]
        if len(beyond):
            image.table.assign(beyond, np.full(len(beyond), bat.UNALLOCATED, np.uint32))
    image.sync()
