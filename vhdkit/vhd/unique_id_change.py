"""Giving an image another unique id: every image that was made of it looks for the old one, and says so ever after.

A child remembers its parent's id and the second in which that was written last. A write in the same second changes
nothing that a child could notice; another id does, whichever tool reads the child, and without touching the child.

**Source**: docs/reference/vhd.md 2.5.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.disk.image import DiskKind
from vhdkit.vhd.footer_update import write_footers

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder
    from vhdkit.vhd.open_image import Vhd


def change_unique_id(folder: Folder, image: Vhd, unique_id: bytes) -> None:
    """Give an image that is open for writing and held exclusively another id, durably.

    **Order**: of a fixed disk the footer, one sector, sync (a cut leaves one id or the other) · of others the pair
    of footers in one step (see `footer_update`).

    Raises:
        CorruptImageError: its footer at the end is lost, and blocks may lie there.
        OSError: a write failed.

    """
    image.check_sound()
    if image.kind is not DiskKind.FIXED and not image.has_whole_footer:
        image.extend(0, reserve=False, sync=True)
    image.footer = replace(image.footer, unique_id=unique_id)
    if image.kind is DiskKind.FIXED:
        image.write_footer(image.metadata.footer_start)
        image.sync()
    else:
        write_footers(folder, image)
    image.unique_id = unique_id
    image.metadata = replace(image.metadata, footer=image.footer)
