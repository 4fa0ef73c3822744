"""Opening a VHDX; the storage is open already, for whether a file is one shows in its first bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.vhdx.image import VhdxImage
from vhdkit.vhdx.metadata_reader import read_vhdx

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Storage


def open_image(storage: Storage, *, verify: bool = True) -> VhdxImage:
    """Return the image on a storage, without its parents; with `verify` false wrong checksums are tolerated.

    Raises:
        CorruptImageError, UnsupportedImageError: the file is no VHDX that can be read safely.

    """
    return VhdxImage(storage, read_vhdx(storage, verify=verify))
