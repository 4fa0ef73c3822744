"""Which format a file is in, and what can be done with an image of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vhdkit.disk.image import WritableImage
from vhdkit.errors import ReadOnlyImageError
from vhdkit.vhd.fields import fields as vhd_fields
from vhdkit.vhd.image import FixedImage, VhdImage
from vhdkit.vhd.metadata import Metadata
from vhdkit.vhd.sparse_image import SparseImage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.disk.image import Image, ImageSummary
    from vhdkit.disk.parent_link import ParentChange
    from vhdkit.journal.patch import Patch
    from vhdkit.storage.protocols import Folder, Storage
    from vhdkit.vhd.open_image import Vhd


class RelinkableImage(WritableImage, Protocol):
    """A writable image whose parent can be changed; what that changes can be kept in a journal as bytes."""

    def parent_patches(self, change: ParentChange) -> tuple[Patch, ...]:
        """Return what changes in the file when the parent is another.

        Raises:
            MergeError: it has no parent, or the new path does not fit.

        """
        ...

    def is_parent_change(self, patches: Sequence[Patch], unique_id: bytes) -> bool:
        """Whether patches make the image with an id the parent, and change nothing else."""
        ...

    def apply(self, folder: Folder, patches: Sequence[Patch]) -> None:
        """Write durably what `parent_patches` returned, in one step that a power cut cannot halve."""
        ...

    def forget_step(self, folder: Folder) -> None:
        """Remove what is left of such a step that was done."""
        ...


def writable(image: Image) -> Vhd:
    """Return an open image as one of a format that is written here.

    Raises:
        ReadOnlyImageError: its format is only read.

    """
    match image:
        case FixedImage() | SparseImage():
            return image
        case _:
            raise ReadOnlyImageError(f"{image.kind} files are not written", path=image.path)


def summary_of(image: Image) -> ImageSummary:
    """Return what the file of an open image said of itself when it was opened."""
    return image.metadata if isinstance(image, VhdImage) else image


def fields(summary: ImageSummary, storage: Storage, filename: str) -> dict[str, object]:
    """Return everything that an image says about itself, as plain values by the names of JSON output."""
    match summary:
        case Metadata():
            return vhd_fields(summary, storage, filename)
        case _:
            raise TypeError(f"no format has the fields of a {type(summary).__name__}")
