"""Which format a file is in, and what can be done with an image of it.

The modules of a format that work on tables are loaded when they are needed: reading what files say of themselves is not
to load numpy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from vhdkit.corruption import Corruption, as_finding
from vhdkit.disk.image import ImageFormat, WritableImage
from vhdkit.errors import ChainError, ReadOnlyImageError, UnsupportedImageError
from vhdkit.findings import Finding, Level
from vhdkit.storage import paths
from vhdkit.storage.handle import closing_on_error
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import SECTOR
from vhdkit.vhd import header_update as vhd_steps
from vhdkit.vhd import read_metadata
from vhdkit.vhd.constants import DEFAULT_BLOCK_SIZE, FOOTER_SIZE, MAX_VIRTUAL_SIZE
from vhdkit.vhd.metadata import Metadata
from vhdkit.vhdx.constants import FILE_SIGNATURE, HEADER_OFFSETS, HEADER_SIGNATURE
from vhdkit.vhdx.refusal import not_written

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhdkit.disk.file_check import FileCheck
    from vhdkit.disk.image import FileSummary, Image, ImageSummary
    from vhdkit.disk.parent_link import ParentChange
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.journal.patch import Patch
    from vhdkit.storage.protocols import Folder, Storage
    from vhdkit.units import StrPath
    from vhdkit.vhd.open_image import Vhd

_VHD_SUFFIXES = (".vhd", ".avhd", ".vud")
_VHDX_SUFFIXES = (".vhdx", ".avhdx")
# What files of one format are called, whatever part of a chain they are: a parent may have been given another of these.
SUFFIX_FAMILIES: Final = (_VHD_SUFFIXES, _VHDX_SUFFIXES)
# Files that are expected to be images, and reported where they cannot be read.
IMAGE_SUFFIXES: Final = frozenset({*_VHD_SUFFIXES, *_VHDX_SUFFIXES, ".vhds"})


# Changes of a header that were cut off, and the suffix of the file beside the image: so far only VHDs have them.
STEP_SUFFIX: Final = vhd_steps.SUFFIX
read_step = vhd_steps.read_step
finish_steps = vhd_steps.finish_all
forget_step = vhd_steps.forget
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
    from vhdkit.vhd.open_image import open_file, open_on

    place = folder or LocalFolder()
    storage = open_file(place, path, writable=writable, exclusive=exclusive, follow_links=follow_links)
    with closing_on_error(storage):
        if not is_vhdx(storage):
            return open_on(place, storage, verify=verify, verify_header=verify_header, finish_step=finish_step)
        from vhdkit.vhdx.open_image import open_image as open_vhdx

        if writable:
            raise not_written(storage.path)
        return open_vhdx(storage, verify=verify)


def is_vhdx(storage: Storage) -> bool:
    """Whether a file is a VHDX, which its first bytes say; else it is taken for a VHD.

    A fixed VHD begins with what a guest wrote, and a VHDX may end with it: of a file that looks like both its name
    decides.

    Raises:
        UnsupportedImageError: it looks like both, and its name does not say which it is.

    """
    suffix = paths.splitext(storage.path)[1].lower()
    if read_bytes(storage, 0, len(FILE_SIGNATURE)) != FILE_SIGNATURE:
        return suffix in _VHDX_SUFFIXES and _has_header(storage)
    if suffix in _VHDX_SUFFIXES or not read_metadata.ends_with_footer(storage):
        return True
    if suffix in _VHD_SUFFIXES:
        return False
    message = "it begins as a VHDX and ends as a VHD, and its name does not say which it is; rename it"
    raise UnsupportedImageError(message, path=storage.path)


def _has_header(storage: Storage) -> bool:
    """Whether a header of a VHDX stands where one should, whatever is left of the first bytes; no VHD ends there."""
    found = (read_bytes(storage, at, len(HEADER_SIGNATURE)) == HEADER_SIGNATURE for at in HEADER_OFFSETS)
    return any(found) and not read_metadata.ends_with_footer(storage)


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
    """What was read of a file that may be damaged, None if nothing was, and every broken rule on the way."""

    summary: FileSummary | None
    findings: tuple[Finding, ...]


def may_be_image(storage: Storage) -> bool:
    """Whether a file seems to be an image of some format: a glance, for telling images from a folder's other files."""
    return read_metadata.has_cookie(storage) or read_bytes(storage, 0, len(FILE_SIGNATURE)) == FILE_SIGNATURE


def read_summary(folder: Folder, storage: Storage, *, verify: bool = True) -> FileSummary:
    """Read what a file says of its disk; no table, and nothing of any parent.

    A change of it that was cut off is read as if it had been finished. With `verify` false wrong checksums are
    tolerated, and reported by `checksum_ok`.

    Raises:
        CorruptImageError: a rule without which nothing can be read is broken.
        UnsupportedImageError: the file is of no format that is read here.

    """
    if is_vhdx(storage):
        from vhdkit.vhdx.metadata_reader import read_vhdx

        return read_vhdx(storage, verify=verify)
    return read_metadata.read_metadata(storage, verify=verify, patches=vhd_steps.pending(folder, storage))


def step_findings(folder: Folder, storage: Storage) -> tuple[Finding, ...]:
    """Return what is to say of a change of an open file that was cut off; it is read as if it were finished."""
    return vhd_steps.step_findings(folder, storage)


def finish_or_forget_step(folder: Folder, storage: Storage) -> None:
    """Finish a change of an open file that was cut off; one that was cut off before it was whole has changed nothing.

    What is not believed stays.
    """
    vhd_steps.finish(folder, storage)
    if folder.exists(storage.path + STEP_SUFFIX) and read_step(folder, storage) is None:
        forget_step(folder, storage.path)


def summary_after(storage: Storage, patches: Sequence[Patch]) -> FileSummary:
    """Read what a file will say of its disk when patches are written to it."""
    return read_metadata.read_metadata(storage, patches=patches)


def examine(folder: Folder, storage: Storage) -> Examined:
    """Read what a file says of its disk, continuing past what is wrong as long as anything can be read."""
    try:
        if is_vhdx(storage):
            from vhdkit.vhdx.metadata_reader import examine_vhdx

            seen = examine_vhdx(storage)
            return Examined(seen.metadata, seen.findings)
    except UnsupportedImageError as error:
        return Examined(None, (as_finding(error, storage.path),))
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
            from vhdkit.vhdx.image import VhdxImage
            from vhdkit.vhdx.metadata import VhdxMetadata

            if isinstance(summary, VhdxMetadata):
                return VhdxImage(storage, summary)
            raise TypeError(f"no format has images of a {type(summary).__name__}")


def check_file(folder: Folder, storage: Storage, *, deep: bool, now: float, journal: Journal | None) -> FileCheck:
    """Judge one file; with `deep` all bitmaps and the data that they say are not there are read too."""
    from vhdkit.vhd.check import check_file as check_vhd
    from vhdkit.vhd.check import unchecked

    try:
        if is_vhdx(storage):
            from vhdkit.vhdx.check import check_vhdx

            return check_vhdx(folder, storage, deep=deep)
    except UnsupportedImageError as error:
        return unchecked(storage, error.message)
    return check_vhd(storage, deep=deep, now=now, patches=vhd_steps.pending(folder, storage), journal=journal)


def compare_pair(child: ImageSummary, parent: ImageSummary) -> Iterator[Finding]:
    """Yield what does not fit between a child and its parent besides ids, sizes and times, by the rules of formats."""
    if parent.file_format not in {child.file_format, ImageFormat.RAW}:
        message = f"it is a {child.file_format}, and its parent {paths.basename(parent.path)} is a {parent.file_format}"
        finding = Finding(corruption=Corruption.PARENT_FORMAT, path=child.path, message=message, level=Level.ERROR)
        yield named_by_format(child, finding)
    elif child.file_format is ImageFormat.VHDX:
        from vhdkit.vhdx.check import compare_vhdx
        from vhdkit.vhdx.metadata import VhdxMetadata

        if isinstance(child, VhdxMetadata) and isinstance(parent, VhdxMetadata):
            yield from compare_vhdx(child, parent)


def named_by_format(summary: ImageSummary | None, finding: Finding) -> Finding:
    """Return what was found out about a file among others, with the rule as the file's own format has it."""
    if summary is None or summary.file_format is not ImageFormat.VHDX:
        return finding
    from vhdkit.vhdx.corruption import own_rule

    return replace(finding, corruption=own_rule(finding.corruption))


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
            check_written(image)
            raise ReadOnlyImageError(f"{image.kind} files are not written", path=image.path)


def check_written(summary: ImageSummary) -> None:
    """Refuse an image whose format is only read, where it would be written sooner or later.

    Raises:
        ReadOnlyImageError: its format is.

    """
    if summary.file_format is ImageFormat.VHDX:
        raise not_written(summary.path)


def check_pair(child: Image, parent: Image) -> None:
    """Refuse a parent of another format than the child's, or with sectors of another size.

    Raises:
        ChainError: it is one.

    """
    if parent.file_format not in {child.file_format, ImageFormat.RAW}:
        message = f"it is a {child.file_format}, and its parent {parent.path} is a {parent.file_format}"
        raise ChainError(message, path=child.path)
    own, below = child.logical_sector_size, parent.logical_sector_size
    if own != below:
        raise ChainError(f"its sectors have {own} bytes, those of its parent {parent.path} {below}", path=child.path)


def check_sectors_as_vhd(image: Image) -> None:
    """Refuse a disk whose sectors have another size than those of a VHD, which would show it with wrong sectors.

    Raises:
        UnsupportedImageError: they have.

    """
    own = image.logical_sector_size
    if own != SECTOR:
        message = f"its sectors have {own} bytes, and those of a VHD {SECTOR}: a raw file can hold it"
        raise UnsupportedImageError(message, path=image.path)


def block_size_as_vhd(image: Image) -> int:
    """Return the block size of a dynamic VHD that is to show an image's disk: its own, if it is one that VHDs have.

    Raises:
        UnsupportedImageError: no VHD can show it.

    """
    check_sectors_as_vhd(image)
    if image.file_format is not ImageFormat.VHDX:
        return image.block_size or DEFAULT_BLOCK_SIZE
    if image.size > MAX_VIRTUAL_SIZE:
        most = f"and a dynamic VHD has at most {MAX_VIRTUAL_SIZE}"
        message = f"its disk has {image.size} bytes, {most}: a raw file can hold it"
        raise UnsupportedImageError(message, path=image.path)
    return DEFAULT_BLOCK_SIZE


def summary_of(image: Image) -> ImageSummary:
    """Return what the file of an open image said of itself when it was opened."""
    if image.file_format is ImageFormat.VHDX:
        from vhdkit.vhdx.image import VhdxImage

        return image.metadata if isinstance(image, VhdxImage) else image
    from vhdkit.vhd.image import VhdImage

    return image.metadata if isinstance(image, VhdImage) else image


def fields(summary: ImageSummary, storage: Storage, filename: str) -> dict[str, object]:
    """Return everything that an image says about itself, as plain values by the names of JSON output."""
    from vhdkit.vhd.fields import fields as vhd_fields

    match summary:
        case Metadata():
            return vhd_fields(summary, storage, filename)
        case _:
            from vhdkit.vhdx.fields import fields as vhdx_fields
            from vhdkit.vhdx.metadata import VhdxMetadata

            if isinstance(summary, VhdxMetadata):
                return vhdx_fields(summary, storage, filename)
            raise TypeError(f"no format has the fields of a {type(summary).__name__}")
