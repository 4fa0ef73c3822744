"""Which format a file is in, and what can be done with an image of it.

The modules of a format that work on tables are loaded when they are needed: reading what files say of themselves is not
to load numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from vhdkit.disk.image import WritableImage
from vhdkit.errors import ReadOnlyImageError
from vhdkit.storage.handle import closing_on_error
from vhdkit.vhd import header_update as vhd_steps
from vhdkit.vhd import read_metadata
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.metadata import Metadata

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.disk.image import FileSummary, Image, ImageSummary
    from vhdkit.disk.parent_link import ParentChange
    from vhdkit.findings import Finding
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.journal.patch import Patch
    from vhdkit.storage.protocols import Folder, Storage
    from vhdkit.units import StrPath
    from vhdkit.vhd.check import FileCheck
    from vhdkit.vhd.open_image import Vhd


# Shorter files are images of no format.
SMALLEST_FILE_BYTES: Final = FOOTER_SIZE - 1


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
    from vhdkit.vhd.open_image import open_image as open_vhd

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


class Examined(NamedTuple):
    """What can be told of a file that may be damaged, None if nothing can, and every rule seen broken on the way."""

    summary: FileSummary | None
    findings: tuple[Finding, ...]


def may_be_image(storage: Storage) -> bool:
    """Whether a file seems to be an image of some format: a glance, for telling images from a folder's other files."""
    return read_metadata.has_cookie(storage)


def read_summary(folder: Folder, storage: Storage, *, verify: bool = True) -> FileSummary:
    """Read what a file says of its disk; no table, and nothing of any parent.

    A change of it that was cut off is read as if it had been finished. With `verify` false wrong checksums are
    tolerated, and told by `checksum_ok`.

    Raises:
        CorruptImageError: a rule without which nothing can be read is broken.
        UnsupportedImageError: the file is of no format that is read here.

    """
    return read_metadata.read_metadata(storage, verify=verify, patches=vhd_steps.pending(folder, storage))


def step_findings(folder: Folder, storage: Storage) -> tuple[Finding, ...]:
    """Return what is to say of a change of an open file that was cut off; it is read as if it were finished."""
    return vhd_steps.step_findings(folder, storage)


def summary_after(storage: Storage, patches: Sequence[Patch]) -> FileSummary:
    """Read what a file will say of its disk when patches are written to it."""
    return read_metadata.read_metadata(storage, patches=patches)


def examine(folder: Folder, storage: Storage) -> Examined:
    """Read what a file says of its disk, going on behind whatever is wrong for as long as anything can be told."""
    found = read_metadata.examine(storage, vhd_steps.pending(folder, storage))
    return Examined(found.metadata, found.findings)


def image_of(storage: Storage, summary: ImageSummary) -> Image:
    """Return the image on a storage from which a summary was read.

    Raises:
        CorruptImageError: its tables are such that nothing can be read by them.

    """
    from vhdkit.vhd.open_image import image_of as vhd_image_of

    match summary:
        case Metadata():
            return vhd_image_of(storage, summary)
        case _:
            raise TypeError(f"no format has images of a {type(summary).__name__}")


def check_file(folder: Folder, storage: Storage, *, deep: bool, now: float, journal: Journal | None) -> FileCheck:
    """Judge one file; with `deep` all bitmaps and the data that they say are not there are read too."""
    from vhdkit.vhd.check import check_file as check_vhd

    return check_vhd(storage, deep=deep, now=now, patches=vhd_steps.pending(folder, storage), journal=journal)


def as_writable(image: Image) -> Vhd:
    """Return an open image as one of a format that is written here.

    Raises:
        ReadOnlyImageError: its format is only read.

    """
    from vhdkit.vhd.image import FixedImage
    from vhdkit.vhd.sparse_image import SparseImage

    match image:
        case FixedImage() | SparseImage():
            return image
        case _:
            raise ReadOnlyImageError(f"{image.kind} files are not written", path=image.path)


def summary_of(image: Image) -> ImageSummary:
    """Return what the file of an open image said of itself when it was opened."""
    from vhdkit.vhd.image import VhdImage

    return image.metadata if isinstance(image, VhdImage) else image


def fields(summary: ImageSummary, storage: Storage, filename: str) -> dict[str, object]:
    """Return everything that an image says about itself, as plain values by the names of JSON output."""
    from vhdkit.vhd.fields import fields as vhd_fields

    match summary:
        case Metadata():
            return vhd_fields(summary, storage, filename)
        case _:
            raise TypeError(f"no format has the fields of a {type(summary).__name__}")
