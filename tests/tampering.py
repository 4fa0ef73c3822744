"""Writing to an image behind the back of what reads through it, as other programs do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.vhd.open_image import open_image

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder


def write_behind(path: str, offset: int, data: bytes, *, folder: Folder | None = None) -> None:
    """Write whole sectors of one image, whoever reads through it, and sync."""
    with open_image(path, writable=True, exclusive=True, folder=folder) as image:
        image.write(offset, memoryview(data), sync=True)
