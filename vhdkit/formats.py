"""Which format a file is in, and what can be done with an image of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vhdkit.disk.image import WritableImage
from vhdkit.errors import ReadOnlyImageError
from vhdkit.storage.handle import closing_on_error
from vhdkit.vhd.fields import fields as vhd_fields
from vhdkit.vhd.image import FixedImage, VhdImage
from vhdkit.vhd.metadata import Metadata
from vhdkit.vhd.open_image import open_image as open_vhd
from vhdkit.vhd.sparse_image import SparseImage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.disk.image import Image, ImageSummary
    from vhdkit.disk.parent_link import ParentChange
    from vhdkit.journal.patch import Patch
    from vhdkit.storage.protocols import Folder, Storage
    from vhdkit.units import StrPath
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

    def is_step_changed(self, folder: Folder) -> bool:
        """Whether somebody has begun or finished such a step since the image was opened."""
        ...

    def forget_step(self, folder: Folder) -> None:
        """Remove what is left of such a step that was done."""
        ...


def open_image(
    path: StrPath,
    *,
    writable: bool = False,
    verify: bool = True,
    verify_header: bool = True,
    exclusive: bool | None = None,
    finish_step: bool = True,
    follow_links: bool = True,
    folder: Folder | None = None,
) -> Image:
    """Open one image of any format, without its parents.

    With `verify` false wrong checksums are tolerated, with `verify_header` false that of the header that names the
    parent. With `follow_links` false the last component of the path must be no symbolic link: for names from side
    files. Unless `exclusive` is None it is locked before anything in it is believed. A change of its header that was
    cut off is finished if it is opened to be written and `finish_step` is true.

    Raises:
        CorruptImageError, UnsupportedImageError: the file is no image that can be read safely.
        ReadOnlyImageError: it should be written and is marked read-only, or its format is only read.
        ImageInUseError: somebody else holds it.
        OSError: the file cannot be opened.

    """
    return open_vhd(
        path,
        writable=writable,
        verify=verify,
        verify_header=verify_header,
        exclusive=exclusive,
        finish_step=finish_step,
        follow_links=follow_links,
        folder=folder,
    )


def open_changeable(
    path: StrPath,
    *,
    writable: bool,
    verify: bool = True,
    verify_header: bool = True,
    exclusive: bool | None = None,
    finish_step: bool = True,
    folder: Folder | None = None,
) -> Vhd:
    """Open one image of a format that is written here, as `open_image`; any other is refused."""
    image = open_image(
        path,
        writable=writable,
        verify=verify,
        verify_header=verify_header,
        exclusive=exclusive,
        finish_step=finish_step,
        folder=folder,
    )
    with closing_on_error(image):
        return as_writable(image)


def as_writable(image: Image) -> Vhd:
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
