"""Opening a VHD: locked before anything in it is believed, read as if what was cut off were finished."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from vhdkit.arguments import checked
from vhdkit.disk.file_name import note_raw_disk
from vhdkit.errors import CorruptImageError, ReadOnlyImageError
from vhdkit.storage.handle import closing_on_error
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.remote_paths import is_remote, refusal_to_write, remote_place
from vhdkit.units import as_text
from vhdkit.vhd.header_update import pending
from vhdkit.vhd.image import FixedImage
from vhdkit.vhd.metadata import Metadata, SparseMetadata
from vhdkit.vhd.read_metadata import read_metadata
from vhdkit.vhd.sparse_image import SparseImage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.storage.protocols import Folder, Storage
    from vhdkit.units import StrPath

# A VHD of any type.
Vhd: TypeAlias = FixedImage | SparseImage


@checked
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
) -> Vhd:
    """Open one image, without its parents; with `verify=False`, wrong checksums are tolerated.

    With `verify_header` false that of the dynamic header alone is.
    With `follow_links` false the last component of the path must be no symbolic link: for names from side files.

    Unless `exclusive` is None it is locked before anything in it is believed: for nobody else to use, or to write.
    A change of its header that was cut off is finished if it is opened to be written and `finish_step` is true; until
    then the image is read as if it were finished, and cannot be written.

    Raises:
        CorruptImageError, UnsupportedImageError: the file is no VHD that can be read safely.
        ReadOnlyImageError: it should be written and is marked read-only.
        ImageInUseError: somebody else holds it.
        OSError: the file cannot be opened.

    """
    place = folder or LocalFolder()
    storage = open_file(place, path, writable=writable, exclusive=exclusive, follow_links=follow_links)
    with closing_on_error(storage):
        return open_on(
            place,
            storage,
            verify=verify,
            verify_header=verify_header,
            finish_step=finish_step,
        )


def open_file(
    folder: Folder, path: StrPath, *, writable: bool, exclusive: bool | None, follow_links: bool = True
) -> Storage:
    """Open the file of an image and lock it, before anything in it is believed; see `open_image`."""
    path = folder.real(as_text(path)) if follow_links else as_text(path)
    if writable and is_remote(path):
        raise refusal_to_write(remote_place(path))
    if writable and folder.exists(path) and not folder.may_write(path):
        raise _read_only(folder, path)
    storage = folder.open(path, writable=writable)
    with closing_on_error(storage):
        if exclusive is not None:
            storage.lock(exclusive=exclusive)
        if writable and storage.is_protected:
            # Between the look above and the lock it was frozen.
            raise _read_only(folder, path)
    return storage


def open_on(
    folder: Folder, storage: Storage, *, verify: bool = True, verify_header: bool = True, finish_step: bool = True
) -> Vhd:
    """Return the image on a storage that is open and locked; see `open_image`."""
    with _noting_raw_disks(storage):
        patches = pending(folder, storage)
        metadata = read_metadata(storage, verify=verify, verify_header=verify_header, patches=patches)
        image = image_of(storage, metadata)
        image.step_patches, image.folder = patches, folder
        if storage.writable and finish_step:
            image.finish_step(folder)
    return image


@contextmanager
def _noting_raw_disks(storage: Storage) -> Iterator[None]:
    """Add to the error of a file that is no image what it may be instead."""
    try:
        yield
    except CorruptImageError as error:
        note_raw_disk(error, storage)
        raise


def image_of(storage: Storage, metadata: Metadata) -> Vhd:
    """Return the image on a storage from which the metadata were read, of the class that fits.

    Raises:
        CorruptImageError: a block of it lies where none can.

    """
    return SparseImage(storage, metadata) if isinstance(metadata, SparseMetadata) else FixedImage(storage, metadata)


def _read_only(folder: Folder, path: str) -> ReadOnlyImageError:
    from vhdkit.journal.claims import frozen_by  # noqa: PLC0415 - where a file is refused, and only there

    why, hint = frozen_by(folder, path)
    return ReadOnlyImageError(why or "the file is read-only; allow writing to it first", path=path, hint=hint)
